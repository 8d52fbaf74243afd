"""The arithmetic of a training's cost."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.errors import UserError
from lumen_hpc.training.sizing import check_fit, plan, resolve


def test_the_paper_s_run_takes_what_the_arithmetic_of_16_bytes_a_weight_says():
    zero3 = plan(Train(shared_prefix=False), 4)
    shares = ("gradients", "optimizer")
    assert sum(zero3.memory[name] for name in shares) == pytest.approx(14 * 8.088 / 4, rel=0.01)
    assert zero3.steps == 4030
    assert zero3.checkpoint_gb == pytest.approx(113, abs=1)
    assert 25 < zero3.hours < 36 and zero3.mfu == 0.304
    assert plan(Train(), 4).hours < zero3.hours / 1.9  # questions share their images
    assert plan(Train(), 4).hours / 2 < plan(Train(), 8).hours < plan(Train(), 4).hours / 1.9


def test_what_does_not_fit_is_refused_with_settings_that_do():
    assert check_fit(Train(), 4, 80).memory_gb < 80
    with pytest.raises(UserError, match=r"these fit: .*train\.checkpointing=full") as refused:
        check_fit(Train(checkpointing="none"), 4, 80)
    assert "80 GB" in str(refused.value)
    with pytest.raises(UserError, match=r"on (2|4) GPUs"):
        check_fit(Train(), 1, 80)


def test_a_login_node_needs_no_heavy_packages():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, lumen_hpc.training.sizing; "
            "print([m for m in ('torch', 'numpy', 'deepspeed') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_auto_takes_the_least_recomputation_and_the_lowest_stage_that_fit():
    auto = Train(zero="auto", checkpointing="auto")

    def chosen(gpus, memory, **changes):
        found = resolve(dataclasses.replace(auto, **changes), gpus, memory)
        return found.zero, found.checkpointing

    assert chosen(4, 0.0) == (1, "none")  # no GPU
    assert chosen(4, 1000.0) == (1, "none")
    assert chosen(4, 10.0) == (3, "full")  # nothing fits: `check` says so
    assert chosen(4, 90.0) == (1, "full")
    assert chosen(4, 80.0) == (2, "full")
    assert chosen(4, 65.0) == (3, "full")
    assert chosen(64, 200.0) == (1, "selective")
    fixed = Train(zero=3, checkpointing="full", node_shards=False)
    assert resolve(fixed, 4, 80.0) == fixed
    for memory in range(20, 300, 10):
        zero, checkpointing = chosen(8, memory)
        found = plan(dataclasses.replace(auto, zero=zero, checkpointing=checkpointing), 8)
        assert found.memory_gb <= memory or (zero, checkpointing) == (3, "full")


@pytest.mark.parametrize(("gpus", "nodes", "memory", "kept"), [(8, 2, 80, True), (4, 1, 80, False), (2, 2, 90, False),
                                                              (8, 2, 45, False)])  # fmt: skip
def test_weights_are_kept_once_more_inside_each_of_several_nodes_where_they_fit(gpus, nodes, memory, kept):
    train = Train(zero=3)
    found = resolve(train, gpus, memory, nodes=nodes)
    assert found.node_shards is kept
    more = plan(found, gpus, nodes=nodes).memory["weights"] - plan(train, gpus, nodes=nodes).memory["weights"]
    assert more == pytest.approx(2 * 8.088 * nodes / gpus if kept else 0, rel=0.01)


@pytest.mark.parametrize("memory", range(4, 60, 2))
def test_a_quantised_base_never_trains_with_zero_3(memory):
    train = Train(adapter=Adapter(kind="lora", base_bits=4), zero="auto", checkpointing="full")
    assert resolve(train, 8, memory).zero in (1, 2)
