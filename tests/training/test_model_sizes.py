"""Parameters counted from sizes: those of the official model, and of any checkpoint."""

from __future__ import annotations

from lumen_hpc.training.model_sizes import Sizes


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
