"""The arithmetic of a training's cost."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.errors import UserError
from lumen_hpc.models import Workload
from lumen_hpc.training.flops import matrix_flops, token_flops
from lumen_hpc.training.model_sizes import Sizes
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


def test_operations_are_those_of_the_weights_and_of_attention():
    sizes = Sizes()
    layers, tower = sizes.layers * sizes.layer + sizes.vocabulary * sizes.width + sizes.width, sizes.vision_tower
    lora = Adapter(kind="lora")
    for settings, of_llm, of_tower in (
        ({}, 6, 6),  # 2 forward, 4 backward
        ({"tune": ["projector", "llm"]}, 6, 2),
        ({"adapter": lora}, 4, 4),  # a frozen weight has no gradient
        ({"adapter": lora, "tune": ["llm"]}, 4, 2),
    ):
        assert matrix_flops(Train(**settings), sizes, 1000, 0) == of_llm * 1000 * layers
        assert matrix_flops(Train(**settings), sizes, 0, 10) == of_tower * 10 * sizes.patches * tower
    picture_alone = Workload(samples=1, pairs=0, tiles=17, image_tokens=3000, text_tokens=0)
    causal = 3 * 2 * 3000**2 * sizes.width * sizes.layers  # half of all pairs, forward once and backward twice
    patches = 3 * 4 * 17 * sizes.patches**2 * sizes.vision_width * sizes.vision_layers
    other = matrix_flops(Train(), sizes, 3000, 17) + causal + patches + 6 * 3000 * sizes.mm_projector
    assert token_flops(Train(), sizes, picture_alone, sharing=1) == pytest.approx(other / 3000)
    with_text = Workload(samples=1, pairs=0, tiles=17, image_tokens=3000, text_tokens=2000)
    whole, shared = (token_flops(Train(), sizes, with_text, sharing=n) * (3000 / n + 2000) for n in (1, 3))
    assert whole / shared > 1.75  # 1.67 by tokens alone, and a third of the tower


def test_what_does_not_fit_is_refused_with_settings_that_do():
    assert check_fit(Train(), 4, 80).memory_gb < 80
    with pytest.raises(UserError, match=r"these fit: .*train\.checkpointing=full") as refused:
        check_fit(Train(checkpointing="none"), 4, 80)
    assert "80 GB" in str(refused.value)
    with pytest.raises(UserError, match=r"training on 1 GPU of .* on 1 GPU at .* on (2|4) GPUs"):
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
