"""Memory of a training by arithmetic."""

from __future__ import annotations

import dataclasses

import pytest

from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.models import Workload
from lumen_hpc.training.memory import checkpoint_gb, learning_parameters, memory_by_use
from lumen_hpc.training.model_sizes import Sizes


def test_recomputing_less_takes_more_memory():
    takes = [
        memory_by_use(Train(checkpointing=how), 4, 1, Sizes(), Workload())["activations"]
        for how in ("full", "selective", "none")
    ]
    assert takes == sorted(takes)


def test_every_use_of_a_small_training_by_hand():
    """In float32: weights 4 bytes, AdamW's moments 8; ZeRO-3 gathers two layers and the head."""
    sizes = Sizes(width=64, layers=2, mlp=128, heads=4, kv_heads=2, vocabulary=1000)
    train = Train(precision="fp32", zero=1, checkpointing="none", compiled=False, tune=list(Sizes().parts))
    uses = memory_by_use(train, 1, 1, sizes, Workload())
    assert uses["optimizer"] == pytest.approx(8 * sizes.total / 1e9) and uses["weights"] == 4 * sizes.total / 1e9
    assert checkpoint_gb(train, sizes) == pytest.approx(16 * sizes.total / 1e9)
    gathered = 2 * sizes.layer + 1000 * 64
    stage3 = memory_by_use(dataclasses.replace(train, zero=3), 4, 1, sizes, Workload())
    assert stage3["weights"] == pytest.approx(4 * (sizes.total / 4 + gathered) / 1e9)


def test_a_checkpoint_of_adapters_holds_them_alone():
    train = Train(adapter=Adapter(kind="lora", rank=8), tune=["llm"])
    assert checkpoint_gb(train, Sizes()) == pytest.approx(14 * learning_parameters(train, Sizes()) / 1e9)


def test_a_frozen_tower_saves_no_activations_and_ranks_that_compute_together_divide_them():
    parts = list(Sizes().parts)

    def activations(**settings):
        train = Train(**{"zero": 1, "checkpointing": "none", "tune": parts, **settings})
        return memory_by_use(train, 8, 1, Sizes(), Workload())["activations"]

    assert activations(tune=["llm"]) < 0.8 * activations()
    assert activations(sequence_parallel=2) < 0.6 * activations()
