"""The estimate of a training's hours against the layout of all its steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lumen_hpc.config.schema import Train
from lumen_hpc.models import KINDS, MODELS, Workload
from lumen_hpc.training import sampler
from lumen_hpc.training.layout import critical_path, lay_out
from lumen_hpc.training.occupancy import Occupancy, choose_group_size, occupancy, recorded_steps, stated_steps
from lumen_hpc.training.sizing import plan

HEADS = 28
"""Of NVILA-8B's language model."""
GPUS = [4, 8, 16, 32, 64, 128, 256]
IMAGES = 1500


def records(workload: Workload, spread: str) -> dict[str, np.ndarray]:
    """A record index with a model's shares: questions an image vary more than the estimate assumes, and so do texts."""
    rng = np.random.default_rng(1)
    share = workload.pairs / workload.image_sets
    mean = (workload.samples - workload.pairs) / (workload.image_sets - workload.pairs)
    asked = rng.geometric(1 / mean, size=IMAGES) if spread == "wide" else 1 + rng.poisson(mean - 1, size=IMAGES)
    pair = rng.random(IMAGES) < share
    asked = np.where(pair, 1, asked)
    groups, pairs = np.repeat(np.arange(IMAGES), asked), np.repeat(pair, asked)
    kinds = np.where(pairs, "difference", "diagnostic")
    prefix = np.where(pairs, 2, 1) * workload.image_tokens + 60
    return {"groups": groups, "kinds": kinds, "prefix": prefix, "suffix": rng.integers(60, 140, size=len(groups))}


@pytest.fixture(params=["ft", "lumen"])
def workload(request) -> Workload:
    return MODELS[request.param].workload


def all_steps(index: dict[str, np.ndarray], train: Train, gpus: int, together: int = 1) -> float:
    """Mean critical path of every whole step where `together` ranks divide a micro-batch."""
    groups = gpus // together
    order = sampler.make_sampler(index["groups"], index["kinds"], train, seed=0)
    columns = [index[name].tolist() for name in ("groups", "prefix", "suffix")]
    paths = [
        critical_path(lay_out(order.batch(step), *columns, world_size=groups, budget=train.token_budget, shared=True))
        for step in range(order.steps - 1)  # the last one is short
    ]
    return sum(paths) / len(paths) / together


@pytest.mark.parametrize("gpus", GPUS)
@pytest.mark.parametrize("spread", ["narrow", "wide"])
def test_sampled_and_stated_steps_take_what_all_steps_do_within_a_tenth(tmp_path, workload, spread, gpus):
    index, train = records(workload, spread), Train()
    np.savez(tmp_path / "record_index.npz", **index)
    steps = recorded_steps(tmp_path / "record_index.npz", train, seed=0)
    assert steps is not None and steps.recorded and steps.samples == len(index["groups"])
    for together in (1, choose_group_size(steps, train, gpus, HEADS)):
        fixed = dataclasses.replace(train, sequence_parallel=together)
        real = all_steps(index, train, gpus, together)
        assert occupancy(steps, fixed, gpus, HEADS).path == pytest.approx(real, rel=0.05)
        if spread == "narrow":
            assert occupancy(stated_steps(train, workload), fixed, gpus, HEADS).path == pytest.approx(real, rel=0.1)


def chosen(workload: Workload, gpus: int, heads: int = HEADS, **options) -> Occupancy:
    return occupancy(stated_steps(Train(), workload), Train(), gpus, heads, **options)


def test_auto_keeps_32_and_64_gpus_busy_at_the_paper_s_batch():
    lumen = Workload()
    assert Train().global_batch == 128
    ranks = {gpus: chosen(lumen, gpus).sequence_parallel for gpus in GPUS}
    assert ranks == {4: 1, 8: 1, 16: 1, 32: 2, 64: 4, 128: 4, 256: 4}
    assert chosen(lumen, 32).efficiency >= 0.85
    assert chosen(lumen, 64).efficiency >= 0.85
    assert chosen(lumen, 128).efficiency >= 0.75
    two = dataclasses.replace(Train(), sequence_parallel=2)
    assert occupancy(stated_steps(two, lumen), two, 64, HEADS).efficiency >= 0.75


@pytest.mark.parametrize("model", ["ft", "lumen", "lumen-outcomes"])
@pytest.mark.parametrize("spread", ["narrow", "wide"])
def test_auto_keeps_gpus_busy_on_records_too(tmp_path, model, spread):
    workload = MODELS[model].workload
    assert workload is not None
    np.savez(tmp_path / "record_index.npz", **records(workload, spread))
    steps = recorded_steps(tmp_path / "record_index.npz", Train(), seed=0)
    assert steps is not None
    efficiency = {gpus: occupancy(steps, Train(), gpus, HEADS).efficiency for gpus in (4, 8, 16, 24, 32, 48, 64)}
    assert min(efficiency.values()) >= 0.8 and efficiency[32] >= 0.85, efficiency


def test_auto_divides_only_where_ranks_would_wait(workload):
    for gpus in GPUS:
        one = dataclasses.replace(Train(), sequence_parallel=1)
        alone, found = occupancy(stated_steps(one, workload), one, gpus, HEADS), chosen(workload, gpus)
        assert found.efficiency >= alone.efficiency
        assert (found.sequence_parallel > 1) == (gpus > 16)


def test_auto_stays_within_a_node_and_within_the_heads():
    assert chosen(Workload(), 64, nodes=32).sequence_parallel == 2
    assert chosen(Workload(), 64, nodes=64).sequence_parallel == 1
    assert chosen(Workload(), 64, heads=14).sequence_parallel == 2
    assert chosen(Workload(), 33).sequence_parallel == 1


@pytest.mark.parametrize("gpus", GPUS)
def test_the_hours_are_those_of_the_longest_rank(workload, gpus):
    found, one = plan(Train(), gpus, workload=workload), plan(Train(), 1, workload=workload)
    computing = found.gpu_hours * (1 - found.sending_share)
    assert computing == pytest.approx(one.gpu_hours / found.occupancy.efficiency, rel=1e-6)
    longest = found.occupancy.longest_sample / found.occupancy.sequence_parallel
    assert found.occupancy.path >= longest, "no layout divides a sample"
    assert (found.sending_share > 0) == (found.occupancy.sequence_parallel > 1) and found.sending_share < 0.05


def test_a_mixture_takes_its_samples_a_step_of_each_kind():
    train = dataclasses.replace(Train(), steps=10, mixture={"diagnostic": 24, "difference": 8, "prediction": 6})
    for groups, prefix, _ in stated_steps(train, Workload()):
        assert len(groups) == 38 and prefix.count(2 * Workload.image_tokens) == 8
    for groups, _, _ in stated_steps(train, MODELS["ft"].workload):
        assert len(groups) == 24


def test_without_an_index_or_with_a_broken_one_nothing_is_recorded(tmp_path):
    assert recorded_steps(tmp_path / "none.npz", Train(), 0) is None
    (tmp_path / "record_index.npz").write_bytes(b"cut off")
    assert recorded_steps(tmp_path / "record_index.npz", Train(), 0) is None


def test_a_mixture_of_every_kind_has_an_estimate():
    train = Train(steps=100, mixture=dict.fromkeys(KINDS, 8))
    planned = plan(train, 4, workload=MODELS["lumen-outcomes"].workload)
    assert 0.5 < planned.occupancy.efficiency <= 1


@pytest.mark.parametrize(("batch", "steps"), [(128, 32), (1024, 32), (2048, 16), (8192, 4)])
def test_large_batches_lay_out_fewer_steps(batch, steps):
    groups, *_ = dataclasses.astuple(stated_steps(Train(global_batch=batch), Workload()))
    assert [len(step) for step in groups] == [batch] * steps
