"""Fixtures: the golden files, tiny models of the three families, and records with seeded pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lumen_hpc.nvila.tiny import make_tiny

torch.set_num_threads(1)
GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden_nvila"
TEXTS = [
    "What has changed? Nothing has changed. The heart size is normal.",
    "Is there a pneumothorax? Yes. No. The main image has an additional finding of pleural effusion.",
]
FAMILIES = {
    "s2": dict(aspect="dynamic_s2", projector="mlp_downsample", image_size=32, tiles=(1, 12)),
    "lite": dict(aspect="dynamic", projector="mlp_downsample_3x3_fix", image_size=40, tiles=(1, 4)),
    "resize": dict(aspect="resize", projector="mlp_downsample_2x2_fix", image_size=32),
}


@pytest.fixture(scope="session")
def golden() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden files at {GOLDEN}")
    return GOLDEN


def make_family(name: str):
    sizes = dict(vision_width=32, vision_layers=3, width=32, layers=2, vocab_size=400)
    return make_tiny(TEXTS, **sizes, **FAMILIES[name])


@pytest.fixture(params=list(FAMILIES))
def family(request):
    """A fresh tiny model of each family."""
    return make_family(request.param)


@pytest.fixture
def tiny():
    """A fresh tiny model of the family `resize`."""
    return make_family("resize")


@pytest.fixture(scope="session")
def records() -> list[dict]:
    """Two questions about one picture, one about two pictures with a second turn, one without a picture."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 256, size, dtype=np.uint8) for size in [(90, 60), (64, 64), (50, 120)])

    def ask(question: str, answer: str) -> list[dict]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    return [
        {"images": [a], "conversations": ask("Is there a pneumothorax?", "Yes.")},
        {"images": [a], "conversations": ask("What has changed?", "Nothing.\nThe heart size is normal.")},
        {
            "images": [b, c],
            "conversations": ask("What has changed?", "Nothing has changed.") + ask("Is the heart normal?", "No."),
        },
        {"conversations": ask("Is the heart size normal?", "No.")},
    ]
