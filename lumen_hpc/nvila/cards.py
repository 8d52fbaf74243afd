"""Counts the parameters of the published models without their weights: `python -m lumen_hpc.nvila.cards`.

Shapes from the published config.json files; parameters are counted on the meta device.
"""

from __future__ import annotations

import torch

from .config import NVILAConfig
from .new_config import official_config

_SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
_QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 151651,
}
_QWEN_14B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 151651,
}


def _card(llm: dict[str, int], *, lite: bool = False) -> NVILAConfig:
    aspect, projector = ("dynamic", "mlp_downsample_3x3_fix") if lite else ("dynamic_s2", "mlp_downsample")
    return official_config(vision=_SIGLIP, llm=llm, aspect=aspect, projector=projector, dtype="bfloat16")


def cards() -> dict[str, NVILAConfig]:
    """Configurations of the published models by name."""
    return {
        "NVILA-8B": _card(_QWEN_7B),
        "NVILA-15B": _card(_QWEN_14B),
        "NVILA-Lite-8B": _card(_QWEN_7B, lite=True),
        "NVILA-Lite-15B": _card(_QWEN_14B, lite=True),
    }


def count_parameters(config: NVILAConfig) -> dict[str, int]:
    """Parameters of vision_tower, projector and llm."""
    from .model import NVILA

    with torch.device("meta"):
        model = NVILA(config, kernel="sdpa")
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts.items()}


if __name__ == "__main__":
    print(f"{'':16}{'vision_tower':>16}{'projector':>16}{'llm':>18}")
    for card, config in cards().items():
        print(f"{card:16}{''.join(f'{n:>{w},}' for n, w in zip(count_parameters(config).values(), (16, 16, 18)))}")
