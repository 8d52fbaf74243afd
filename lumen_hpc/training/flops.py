"""Floating-point operations of a training's forward and backward passes; what is recomputed is not counted."""

from __future__ import annotations

from lumen_hpc.config import schema
from lumen_hpc.models import Workload
from lumen_hpc.training.model_sizes import Sizes


def matrix_flops(train: schema.Train, sizes: Sizes, tokens: float, tiles: float) -> float:
    """FLOPs of the weights, forward and backward: 6 per weight and token, 4 under adapters, 2 in a frozen tower.

    Attention is not counted. `tokens`: of the language model, image tokens included; `tiles`: of the tower.
    """
    flops_per_weight = 6 if train.adapter.kind == "none" else 4  # a frozen weight has no gradient, its input still has
    llm = flops_per_weight * tokens * (sizes.llm - sizes.vocabulary * sizes.width)
    tower = (flops_per_weight if "vision_tower" in train.tune else 2) * tiles * sizes.patches * sizes.vision_tower
    return llm + tower


def token_flops(train: schema.Train, sizes: Sizes, workload: Workload, sharing: float) -> float:
    """FLOPs per token, forward and backward, with tower and attention; recomputation is not counted.

    `sharing`: samples that share one set of images.
    """
    images = workload.images / sharing
    tokens = images * workload.image_tokens + workload.text_tokens
    length = workload.images * workload.image_tokens + workload.text_tokens
    tiles = images * workload.tiles
    token_attention = 6 * tokens * length * sizes.width * sizes.layers
    passes = 3 if "vision_tower" in train.tune else 1
    patch_attention = 4 * passes * tiles * sizes.patches**2 * sizes.vision_width * sizes.vision_layers
    projector = 6 * images * workload.image_tokens * sizes.mm_projector
    return (matrix_flops(train, sizes, tokens, tiles) + token_attention + patch_attention + projector) / tokens
