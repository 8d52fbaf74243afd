"""Two halves of a batch in two threads: the gradients of the whole batch, whatever the number of cores."""

import pytest
import torch
from torch import nn

from lumen_hpc.replicas import PARTS, Replicas, one_core_threads


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", torch._C.set_num_threads)  # vLLM replaces it in a process it ran in
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def _loss(model, part):
    return model(part).pow(2).sum()


def _trained(threads, steps=3):
    torch.set_num_threads(threads)
    model, data = _model(), torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with one_core_threads() as pool:
        replicas = Replicas(model, pool)
        losses = []
        for _ in range(steps):
            losses.append(replicas.backward(_loss, data.tensor_split(PARTS)))
            optimizer.step()
    assert torch.get_num_threads() == threads
    return model, losses, data


def test_the_gradients_are_those_of_the_whole_batch():
    model, (loss, *_), data = _trained(2, steps=1)
    plain = _model()
    expected = _loss(plain, data)
    expected.backward()
    assert loss == pytest.approx(expected.item())
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        assert torch.allclose(ours.grad, theirs.grad)


def test_replicas_follow_the_optimizer_and_the_cores_change_no_bit():
    one, two = _trained(1), _trained(2)
    assert one[1] == two[1]
    assert one[1][0] > one[1][1] > one[1][2]
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), two[0].parameters()))


def test_what_is_frozen_gets_no_gradient():
    model = _model()
    model[0].requires_grad_(False)
    with one_core_threads() as pool:
        Replicas(model, pool).backward(_loss, torch.ones(4, 5, dtype=torch.float64).tensor_split(PARTS))
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None


def test_a_step_begins_without_the_last_ones_gradients_and_a_layer_may_serve_one_half_alone():
    def loss(model, part):
        return model[0](part).sum() + (model[2](torch.ones(1, 7).double()).sum() if float(part.sum()) < 0 else 0)

    model, data = _model(), torch.tensor([[1.0] * 5, [-1.0] * 5], dtype=torch.float64)
    with one_core_threads() as pool:
        replicas = Replicas(model, pool)
        first = [replicas.backward(loss, data.tensor_split(PARTS)), model[0].bias.grad.clone()]
        second = [replicas.backward(loss, data.tensor_split(PARTS)), model[0].bias.grad]
    assert first[0] == second[0] and torch.equal(first[1], second[1])
    assert torch.equal(model[2].weight.grad, torch.ones(1, 7, dtype=torch.float64))  # of the second half
