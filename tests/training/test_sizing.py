"""The arithmetic of a training's cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lumen_hpc.config.schema import Train
from lumen_hpc.errors import UserError
from lumen_hpc.training.sizing import Sizes, check, plan


def test_parameters_equal_the_official_counts():
    assert Sizes().parts == {"vision_tower": 413_327_088, "projector": 62_425_088, "llm": 7_612_634_624}
    assert Sizes(projector="mlp_downsample_3x3_fix", scales=1).mm_projector == 61_101_440


def test_sizes_read_from_a_checkpoint_count_what_the_model_has(tmp_path):
    from lumen_hpc import nvila
    from lumen_hpc.nvila.tiny import make_tiny

    for form in (
        {"aspect": "resize"},
        {"aspect": "dynamic_s2", "projector": "mlp_downsample"},
        {"aspect": "dynamic", "projector": "mlp_downsample_3x3_fix"},
    ):
        model = make_tiny(["a text"], **form)
        nvila.save(model, tmp_path / "model")
        sizes = Sizes.read(tmp_path / "model")
        assert sizes.total == sum(p.numel() for p in model.parameters()), form


def test_the_paper_s_run_takes_what_the_arithmetic_of_16_bytes_a_weight_says():
    zero3 = plan(Train(shared_prefix=False), 4)
    shares = ("gradients", "optimizer")
    assert sum(zero3.memory[name] for name in shares) == pytest.approx(14 * 8.088 / 4, rel=0.01)
    assert zero3.steps == 4030
    assert zero3.checkpoint_gb == pytest.approx(113, abs=1)
    assert 15 < zero3.hours < 27
    assert plan(Train(), 4).hours < zero3.hours / 2  # questions share their images
    assert plan(Train(), 8).hours == pytest.approx(plan(Train(), 4).hours / 2)


def test_what_does_not_fit_is_refused_with_settings_that_do():
    assert check(Train(), 4, 80).memory_gb < 80
    with pytest.raises(UserError, match=r"these fit: .*train\.gradient_checkpointing=true") as refused:
        check(Train(gradient_checkpointing=False), 4, 80)
    assert "80 GB" in str(refused.value)
    with pytest.raises(UserError, match=r"on (2|4) GPUs"):
        check(Train(), 1, 80)


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
