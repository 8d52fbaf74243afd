"""A model over several devices: equal answers, weights on disk never loaded whole, and what does not fit is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from accelerate.utils import convert_file_size_to_int

from lumen_hpc import nvila
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import placement
from lumen_hpc.nvila.tiny import make_tiny
from tests.nvila.conftest import FAMILIES, TEXTS


@pytest.fixture(params=["s2", "lite", "resize"])
def folder(request, tmp_path):
    """A checkpoint of each family with four layers."""
    sizes = dict(vision_width=32, vision_layers=3, width=32, layers=4, vocab_size=400)
    return nvila.save(make_tiny(TEXTS, **sizes, **FAMILIES[request.param]), tmp_path / "model")


def _memory(folder, layers_in_memory: float, dtype=torch.float32) -> dict:
    """Room for the fixed parts and so many layers, and a disk without limit."""
    model = nvila.load(folder)
    fixed = sum(placement._bytes(model.get_submodule(name), dtype) for name in placement.FIXED_MODULES)
    layer = placement._bytes(model.llm.model.layers[0], dtype)
    return {"cpu": int(fixed + layers_in_memory * layer), "disk": 10**12}


def test_layers_on_disk_answer_as_those_in_memory(folder, records):
    whole = nvila.load(folder)
    spread = nvila.load(folder, memory=_memory(folder, 2.5))
    on_disk = {name.split(".")[3] for name, tensor in spread.named_parameters() if tensor.is_meta}
    assert on_disk == {"2", "3"}
    assert spread.generate(records, max_new_tokens=10) == whole.generate(records, max_new_tokens=10)
    with torch.inference_mode():
        losses = [model(model.preprocess(records), logits="all") for model in (whole, spread)]
    assert torch.equal(losses[0].logits, losses[1].logits)
    assert {name.split(".")[3] for name, tensor in spread.named_parameters() if tensor.is_meta} == on_disk


def test_another_dtype_is_that_of_layers_on_disk_too(folder, records):
    spread = nvila.load(folder, dtype=torch.bfloat16, memory=_memory(folder, 1, torch.bfloat16))
    assert spread.llm.model.layers[3].mlp.down_proj.weight.is_meta
    expected = nvila.load(folder, dtype=torch.bfloat16).generate(records, max_new_tokens=6)
    assert spread.generate(records, max_new_tokens=6) == expected


def test_the_flat_layout_is_read_from_its_own_files(folder, records, tmp_path):
    from lumen_hpc.serving.export import export

    export(folder, tmp_path / "flat", "# A card\n")
    spread = nvila.load(tmp_path / "flat", memory=_memory(folder, 0))
    assert spread.generate(records, max_new_tokens=6) == nvila.load(folder).generate(records, max_new_tokens=6)


def test_several_gpus_take_the_layers_in_order(folder):
    model = nvila.load(folder)
    fixed = sum(placement._bytes(model.get_submodule(name), torch.bfloat16) for name in placement.FIXED_MODULES)
    layer = placement._bytes(model.llm.model.layers[0], torch.bfloat16)
    placed = placement.device_map(model, torch.bfloat16, {0: fixed + layer, 1: layer, "cpu": layer, "disk": "1GiB"})
    assert [placed[f"{placement.LAYERS}{number}"] for number in range(4)] == [0, 1, "cpu", "disk"]
    assert {placed[name] for name in placement.FIXED_MODULES} == {0}


@pytest.mark.parametrize(
    ("needed", "free", "device"),
    [(16, [], "cpu"), (16, [80], "cuda"), (16, [80, 80], "cuda"), (16, [12], "auto"), (16, [12, 12], "auto")],
)
def test_a_model_is_spread_only_where_the_first_gpu_cannot_hold_it(needed, free, device):
    assert placement.device_for(needed, free) == device


def test_what_fits_nowhere_is_named(folder):
    with pytest.raises(UserError, match=r"device cpu lacks 0\.0 GB for the parts that must be together"):
        nvila.load(folder, memory={"cpu": 100})
    room = _memory(folder, 1)
    with pytest.raises(UserError, match="layer 1 fits on none of cpu: give more memory"):
        nvila.load(folder, memory={"cpu": room["cpu"]})


def test_auto_fills_what_is_free(folder, records):
    whole = nvila.load(folder)
    assert nvila.load(folder, device="auto").generate(records, max_new_tokens=6) == whole.generate(
        records, max_new_tokens=6
    )


def test_sizes_as_the_page_writes_them_are_read():
    page = Path(__file__).parents[2] / "docs" / "nvila.md"
    sizes = re.findall(r'"(\d+[A-Za-z]+B)"', page.read_text())
    assert len(sizes) == 4 and all(convert_file_size_to_int(size) for size in sizes)
