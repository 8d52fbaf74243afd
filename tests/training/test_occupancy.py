"""The estimate of a training's hours against the layout of all its steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lumen_hpc.config.schema import KINDS, Train
from lumen_hpc.models import MODELS, Workload
from lumen_hpc.training import sampler
from lumen_hpc.training.layout import critical_path, lay_out
from lumen_hpc.training.occupancy import occupancy, recorded, stated
from lumen_hpc.training.sizing import plan

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


def all_steps(index: dict[str, np.ndarray], train: Train, gpus: int) -> float:
    """Mean critical path of every whole step."""
    order = sampler.make(index["groups"], index["kinds"], train, seed=0)
    columns = [index[name].tolist() for name in ("groups", "prefix", "suffix")]
    paths = [
        critical_path(lay_out(order.batch(step), *columns, world_size=gpus, budget=train.token_budget, shared=True))
        for step in range(order.steps - 1)  # the last one is short
    ]
    return sum(paths) / len(paths)


@pytest.mark.parametrize("gpus", GPUS)
@pytest.mark.parametrize("spread", ["narrow", "wide"])
def test_sampled_and_stated_steps_take_what_all_steps_do_within_a_tenth(tmp_path, workload, spread, gpus):
    index, train = records(workload, spread), Train()
    np.savez(tmp_path / "survey.npz", **index)
    steps = recorded(tmp_path / "survey.npz", train, seed=0)
    assert steps is not None and steps.recorded and steps.samples == len(index["groups"])
    real = all_steps(index, train, gpus)
    assert occupancy(steps, train, gpus).path == pytest.approx(real, rel=0.05)
    if spread == "narrow":
        assert occupancy(stated(train, workload), train, gpus).path == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("gpus", GPUS)
def test_the_hours_are_those_of_the_longest_rank(workload, gpus):
    found, one = plan(Train(), gpus, workload=workload), plan(Train(), 1, workload=workload)
    assert found.gpu_hours == pytest.approx(one.gpu_hours / found.occupancy.efficiency, rel=1e-6)
    assert found.occupancy.path >= found.occupancy.longest_sample, "no layout divides a sample"


def test_a_mixture_takes_its_samples_a_step_of_each_kind():
    train = dataclasses.replace(Train(), steps=10, mixture={"diagnostic": 24, "difference": 8, "prediction": 6})
    for groups, prefix, _ in stated(train, Workload()):
        assert len(groups) == 38 and prefix.count(2 * Workload.image_tokens) == 8
    for groups, _, _ in stated(train, MODELS["ft"].workload):
        assert len(groups) == 24


def test_without_an_index_or_with_a_broken_one_nothing_is_recorded(tmp_path):
    assert recorded(tmp_path / "none.npz", Train(), 0) is None
    (tmp_path / "survey.npz").write_bytes(b"cut off")
    assert recorded(tmp_path / "survey.npz", Train(), 0) is None


def test_a_mixture_of_every_kind_has_an_estimate():
    train = Train(steps=100, mixture=dict.fromkeys(KINDS, 8))
    planned = plan(train, 4, workload=MODELS["lumen-outcomes"].workload)
    assert 0.5 < planned.occupancy.efficiency <= 1
