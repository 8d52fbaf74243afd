import json
from dataclasses import replace

import pytest

from lumen_hpc.errors import UserError
from lumen_hpc.nvila.cards import cards
from lumen_hpc.nvila.config import NVILAConfig


def _changed(config: NVILAConfig, **root) -> NVILAConfig:
    parts = {"llm": config.llm, "vision_tower": config.vision_tower, "mm_projector": config.mm_projector}
    return NVILAConfig(root=config.root | root, **parts)


@pytest.mark.parametrize(
    "root, message",
    [
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio='pad'"),
        ({"image_aspect_ratio": []}, r"image_aspect_ratio=\[\]"),
        ({"chat_template": "vicuna"}, "chat_template='vicuna'"),
        ({"s2_scales": "448,900"}, "s2_scales='448,900'"),
        ({"dynamic_s2": False}, "needs dynamic_s2=true"),
        ({"dynamic_s2": False, "s2": True, "image_aspect_ratio": "resize"}, "s2=true"),
        ({"ps3": True}, "ps3=true"),
        ({"image_encoder": {"end_tokens": None}}, "image_encoder"),
        ({"image_encoder": '{"start_tokens": "<img>"}'}, "image_encoder"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_value(root, message):
    with pytest.raises(UserError, match=message):
        _changed(cards()["NVILA-8B"], **root)


@pytest.mark.parametrize("stored", [{"image_mean": [0.48, 0.45, 0.4]}, {"resample": 2}, {"size": {"height": 384}}])
def test_other_preprocessing_than_the_published_is_refused(stored):
    config = cards()["NVILA-8B"]
    parts = {"llm": config.llm, "vision_tower": config.vision_tower, "mm_projector": config.mm_projector}
    files = {"vision_tower/preprocessor_config.json": json.dumps(stored).encode()}
    with pytest.raises(UserError, match=f"preprocessor_config.json has .*{next(iter(stored))}"):
        NVILAConfig(root=config.root, files=files, **parts)


def test_a_part_without_its_sizes_is_named():
    config = cards()["NVILA-8B"]
    vision = {key: value for key, value in config.vision_tower.items() if key != "image_size"}
    with pytest.raises(UserError, match=r"vision_tower/config\.json gives no whole number for image_size"):
        NVILAConfig(root=config.root, llm=config.llm, vision_tower=vision, mm_projector=config.mm_projector)


def test_an_unknown_projector_is_refused():
    config = cards()["NVILA-8B"]
    parts = {"llm": config.llm, "vision_tower": config.vision_tower}
    with pytest.raises(UserError, match="mm_projector_type='linear'"):
        NVILAConfig(root=config.root, mm_projector={"mm_projector_type": "linear"}, **parts)


def test_scales_may_be_resized_to_another_than_the_finest():
    config = _changed(cards()["NVILA-8B"], s2_resize_output_to_scale_idx=0)
    assert config.output_block((4, 3)) == (1, 1)
    assert config.image_tokens((4, 3)) == 257
    assert cards()["NVILA-8B"].image_tokens((4, 3)) == 3073


def test_tokens_of_a_picture_of_one_tile():
    assert cards()["NVILA-8B"].image_tokens(None) == 257
    assert cards()["NVILA-Lite-8B"].image_tokens(None) == 122


@pytest.mark.parametrize("named, dtype", [({"torch_dtype": "float32"}, "float32"), ({"dtype": "float16"}, "float16"),
                                          ({"torch_dtype": None}, "bfloat16"), ({}, "bfloat16")])  # fmt: skip
def test_weights_without_a_stated_format_are_the_published_checkpoints(named, dtype):
    config = cards()["NVILA-8B"]
    unnamed = {key: value for key, value in config.llm.items() if key not in ("torch_dtype", "dtype")}
    assert replace(config, llm=unnamed | named).dtype == dtype
