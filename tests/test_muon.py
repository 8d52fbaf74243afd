"""Muon: matrices inside layers move as far in every direction; everything else is AdamW's."""

import pytest
import torch
from torch import nn

from lumen_hpc.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 40), (2, 40, 16)])
def test_orthogonal_keeps_the_singular_vectors_and_evens_the_values(shape):
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices)
    assert found.shape == shape
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ found @ right.mT
    values = turned.diagonal(dim1=1, dim2=2)
    assert (turned - torch.diag_embed(values)).abs().max() < 1e-3
    assert values.median() == pytest.approx(1, abs=0.3) and values.min() > 0 and values.max() < 1.3


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.body = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)])})
        self.body["layers"][1].requires_grad_(False)

    def forward(self, ids):
        return self.body["layers"][1](self.body["layers"][0](self.embed(ids))).pow(2).mean()  # the last is not run


def test_a_step_moves_what_learns_and_leaves_the_rest():
    torch.manual_seed(0)
    model = _Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = Muon(model, 0.1, 1e-3)
    model(torch.tensor([0, 1, 2])).backward()
    optimizer.step(0.5)
    moved = {name: (value - before[name]).abs().max().item() for name, value in model.state_dict().items()}
    assert [name for name, far in moved.items() if not far] == [
        f"body.layers.{kept}" for kept in ("1.weight", "1.bias", "2.weight", "2.bias")
    ]
    change = model.body["layers"][0].weight - before["body.layers.0.weight"] * (1 - 0.05 * 0.02)
    # of three tokens, whose gradient has three directions
    assert torch.linalg.svdvals(change)[:3].tolist() == pytest.approx([0.05] * 3, rel=0.35)
    assert moved["embed.weight"] == pytest.approx(0.5e-3, rel=0.05) == moved["body.layers.0.bias"]


def test_it_minimises():
    torch.manual_seed(0)
    model = _Model()
    optimizer, losses = Muon(model, 0.05, 1e-2), []
    for step in range(60):
        model.zero_grad()
        loss = model(torch.tensor([0, 1, 2, 3]))
        loss.backward()
        optimizer.step(1 - step / 60)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20
