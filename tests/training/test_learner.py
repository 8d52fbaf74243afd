"""NVILA as the loop sees it: a micro-batch leaves the GPU's queue full."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lumen_hpc import nvila
from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.training.learner import Learner
from lumen_hpc.training.samples import MicroBatch
from tests.nvila.conftest import make_family, records  # noqa: F401  (a fixture)

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")
"""Operators whose result, or its shape, the host must wait for."""


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator._schema.name.removeprefix("aten::")
        self.seen.update([name] if name in WAITS else [])
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["resize", "s2"])
@pytest.mark.parametrize(("kernel", "zero"), [("sdpa", 1), ("flex", 1), ("flex", 3)])
def test_the_host_waits_for_nothing_in_a_micro_batch(records, family, kernel, zero):  # noqa: F811
    model = make_family(family)
    model.kernel = kernel
    learner = Learner(model, Train(zero=zero, checkpointing="full", compiled=False))
    samples = model.preprocess(records).samples
    batch = nvila.pack([samples[:2], samples[2:3], samples[3:]])
    of_token = torch.zeros(batch.supervised, dtype=torch.int64)
    micro = MicroBatch(batch, of_token, of_token.bool(), batch.tokens)
    learner(micro)  # tables that are made once
    with Waits() as waits:
        learner(micro).sum().backward()
    assert not waits.seen


def test_a_wait_would_be_seen():
    with Waits() as waits:
        float(torch.ones(3).sum())
    assert waits.seen["_local_scalar_dense"] == 1


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"tune": ["projector", "llm"]}, True),
        ({"tune": ["projector", "llm"], "zero": 3}, False),  # whose calls of the tower the ranks agree on
        ({"tune": ["projector", "llm"], "cache_images_gb": 0.0}, False),
        ({}, False),
        ({"tune": ["vision_tower", "llm"], "adapter": Adapter(kind="lora")}, False),
    ],
)
def test_features_are_kept_of_a_frozen_tower_alone(settings, kept):
    train = Train(**{"zero": 1, "checkpointing": "none", "compiled": False, "cache_images_gb": 1.0} | settings)
    learner = Learner(make_family("resize"), train)
    assert (learner.model.tower_cache is not None) == (kept and not torch.cuda.is_available())


def test_no_features_are_kept_of_a_tower_that_drops_some_at_random():
    model = make_family("resize")
    model.vision_tower.config.attention_dropout = 0.1
    train = Train(tune=["llm"], zero=1, checkpointing="none", compiled=False, cache_images_gb=1.0)
    assert Learner(model, train).model.tower_cache is None
