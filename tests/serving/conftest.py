"""Tiny NVILA checkpoints of the three families, the golden ones, and records about one, two and three images."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumen_hpc import nvila
from lumen_hpc.nvila.tiny import make_tiny
from tests.serving.pages import address, browser_page, files, model  # noqa: F401  (fixtures)

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden_nvila"
TEXTS = [
    "What has changed? Nothing has changed. The heart size is normal. Reference image: Main image:",
    "Is there a pneumothorax? Yes. No. The main image has an additional finding of pleural effusion.",
]
FAMILIES = {
    "dynamic_s2": dict(aspect="dynamic_s2", projector="mlp_downsample", image_size=32),
    "dynamic": dict(aspect="dynamic", projector="mlp_downsample_3x3_fix", image_size=40, tiles=(1, 4)),
    "resize": dict(aspect="resize", projector="mlp_downsample_2x2_fix", image_size=32),
}
CHECKPOINTS = (*FAMILIES, "golden_s2", "golden_lite")


def make_family(name: str) -> nvila.NVILA:
    """A random model whose heads are 32 wide, the narrowest that vLLM's CPU kernels take."""
    sizes = dict(vision_width=32, vision_layers=3, width=64, layers=2, heads=2, kv_heads=1, vocab_size=400)
    return make_tiny(TEXTS, **sizes, **FAMILIES[name])


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The folder of each tiny checkpoint, official layout."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: nvila.save(make_family(name), root / name) for name in FAMILIES}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def folder(request, folders) -> Path:
    """Each checkpoint in turn; the golden ones have heads of 16, which the CPU kernels get padded."""
    if request.param in folders:
        return folders[request.param]
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden files at {GOLDEN}")
    return GOLDEN / request.param.replace("golden", "ckpt")


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return make_pictures()


def make_pictures() -> list[Image.Image]:
    """Three seeded pictures of unlike shapes, the last in colour."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in [(90, 60), (64, 64), (50, 120, 3)]]


@pytest.fixture(scope="session")
def records() -> list[dict]:
    return make_records()


def make_records() -> list[dict]:
    """Questions about one, two and three images and none; two of them about the same images."""
    a, b, c = make_pictures()

    def ask(images: list, question: str) -> dict:
        return {"images": images, "conversations": [{"from": "human", "value": question}]}

    return [
        ask([a], "<image>\nIs there a pneumothorax?"),
        ask([b, c], "Reference image: <image>\nMain image: <image>\nWhat has changed?"),
        ask([], "Is the heart size normal?"),
        ask([a, b, c], "<image><image><image>What has changed?"),
        ask([b, c], "Reference image: <image>\nMain image: <image>\nIs there a pleural effusion?"),
    ]


@pytest.fixture
def frozen_heap(monkeypatch) -> None:
    """vLLM freezes all objects and thaws them, and looks through them six times: half a second each.

    Here those of other tests and of vLLM's modules stay frozen: a look is through one model's.
    """
    gc.collect()
    gc.freeze()
    for name in ("freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, lambda: None)


@pytest.fixture
def open_vllm(frozen_heap):
    """Opens a checkpoint in vLLM, in float32 with small cache blocks; closed after the test."""
    from lumen_hpc.serving.vllm_answerer import VLLMModel

    opened = []

    def open_model(folder: Path, **options) -> VLLMModel:
        opened.append(VLLMModel(folder, dtype="float32", max_model_len=1024, block_size=32, **options))
        return opened[-1]

    yield open_model
    for one in opened:
        one.llm.llm_engine.engine_core.shutdown()
        del one.llm
    gc.collect()


@pytest.fixture(scope="module")
def native(folder) -> nvila.NVILA:
    return nvila.load(folder, dtype=torch.float32)
