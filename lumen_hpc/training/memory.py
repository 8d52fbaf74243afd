"""Computes the GPU memory that a training takes (paper, section 2.5).

Bytes per weight: 2 for bf16, 2 for its gradient, 12 for the float32 master weight and AdamW's two moments; ZeRO divides
them over the GPUs.
"""

from __future__ import annotations

from lumen_hpc.config import schema
from lumen_hpc.models import Workload
from lumen_hpc.training import activations
from lumen_hpc.training.model_sizes import Sizes

RESERVE_GB = 5.0
"""CUDA context, NCCL buffers and fragmentation on a GPU [GB]."""
QUANTISED_BYTES = {8: 1.002, 4: 0.52}
"""Bytes per weight in bitsandbytes' formats, with its share of the scales (a float32 per row; NF4 in blocks of 64)."""


def memory_gb(
    train: schema.Train, gpus: int, *, nodes: int = 1, sizes: Sizes | None = None, workload: Workload | None = None
) -> float:
    """Memory per GPU [GB] of these settings, which have no `auto`."""
    return sum(memory_by_use(train, gpus, nodes, sizes or Sizes(), workload or Workload()).values())


def _bytes_per_weight(train: schema.Train) -> int:
    """Bytes of a weight in the forward pass."""
    return 2 if train.precision == "bf16" else 4


def learning_parameters(train: schema.Train, sizes: Sizes) -> int:
    """Trained parameters; of adapters, `rank` per input and output of the tuned parts' linear layers."""
    if train.adapter.kind == "none":
        return sum(count for part, count in sizes.parts.items() if part in train.tune)
    return train.adapter.rank * sum(inputs + outputs for inputs, outputs in _adapted_layers(train, sizes))


def adapted_weights(train: schema.Train, sizes: Sizes) -> int:
    """Weights of the linear layers that get adapters."""
    return sum(inputs * outputs for inputs, outputs in _adapted_layers(train, sizes))


def _adapted_layers(train: schema.Train, sizes: Sizes) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers that get adapters."""
    c, h, kv = sizes.vision_width, sizes.width, sizes.width // sizes.heads * sizes.kv_heads
    downsample = 3 if sizes.projector.endswith("3x3_fix") else 2
    joined_width, inner_width = downsample * downsample * c * sizes.scales, 3 * c * sizes.scales
    vision = [(c, c)] * 4 + [(c, sizes.vision_mlp)] * 2  # q, k, v, out; fc1, fc2
    llm = [(h, h)] * 2 + [(h, kv)] * 2 + [(h, sizes.mlp)] * 3  # q, o; k, v; gate, up, down
    layers = {
        "vision_tower": vision * (sizes.vision_layers - 1),
        "projector": [(joined_width, h), (h, h)]
        if downsample == 2
        else [(joined_width, inner_width), (inner_width, h), (h, h)],
        "llm": llm * sizes.layers,
    }
    return [layer for part, of_part in layers.items() if part in train.tune for layer in of_part]


def checkpoint_gb(train: schema.Train, sizes: Sizes) -> float:
    """A checkpoint's size: all parameters, or only the adapters, and the optimizer state of the trained ones."""
    learning = learning_parameters(train, sizes)
    saved = sizes.total if train.adapter.kind == "none" else learning
    return (_bytes_per_weight(train) * saved + 12 * learning) / 1e9


def memory_by_use(train: schema.Train, gpus: int, nodes: int, sizes: Sizes, workload: Workload) -> dict[str, float]:
    """GB per GPU by use; `train` has no `auto` about memory."""
    width, learning = _bytes_per_weight(train), learning_parameters(train, sizes)
    weights: float = width * sizes.total
    if train.quantised:
        weights -= (width - QUANTISED_BYTES[train.adapter.base_bits]) * adapted_weights(train, sizes)
    stage = int(train.zero)
    if stage == 3:  # the shard, and what is gathered while one layer runs and the next is fetched
        shards = weights / gpus + (weights * nodes / gpus if train.node_shards is True and nodes > 1 else 0)
        weights = shards + width * (2 * sizes.layer + sizes.vocabulary * sizes.width)
    gradients = width * learning / (gpus if stage >= 2 else 1)
    # In float32 there are no separate master weights.
    optimizer = (12 if width == 2 else 8) * learning / gpus
    tokens, group_size = train.token_budget, train.ranks_a_micro_batch
    tiles = tokens / workload.image_tokens * workload.tiles
    layer_activations, recomputed_layer = _activations(train, sizes, tokens / group_size, tiles / group_size)
    # Every rank joins the scales of all tiles, and any rank may have all supervised tokens.
    joined_features = 2 * width * tiles * sizes.patches * sizes.vision_width * sizes.scales
    supervised_tokens = (
        tokens
        / (workload.image_tokens * workload.images / _sharing(train, workload) + workload.text_tokens)
        * workload.answer_tokens
    )
    logits = supervised_tokens * sizes.vocabulary * (width + 4 + 4)
    uses = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": layer_activations + recomputed_layer + joined_features,
        "logits": logits,
    }
    return {**{name: value / 1e9 for name, value in uses.items()}, "reserve": RESERVE_GB}


def _activations(train: schema.Train, sizes: Sizes, tokens: float, tiles: float) -> tuple[float, float]:
    """Bytes that all layers save for the backward pass, and those of one layer while it is recomputed."""
    frozen = "vision_tower" not in train.tune  # it saves nothing: no gradient passes through it
    rank = 0 if train.adapter.kind == "none" else train.adapter.rank
    compiled = train.compiled is True

    def layers(checkpointing: str) -> tuple[float, float]:
        kv = sizes.width // sizes.heads * sizes.kv_heads
        llm = activations.language_layer(
            checkpointing,
            width=sizes.width,
            kv=kv,
            mlp=sizes.mlp,
            size=_bytes_per_weight(train),
            rank=rank,
            compiled=compiled,
        )
        tower = activations.vision_layer(
            checkpointing, width=sizes.vision_width, mlp=sizes.vision_mlp, size=_bytes_per_weight(train), rank=rank,
            compiled=compiled,
        )  # fmt: skip
        return tokens * llm, sizes.patches * tower

    llm, tile = layers(train.checkpointing)
    saved = llm * sizes.layers + (0.0 if frozen else tile * tiles * sizes.vision_layers)
    if train.checkpointing == "none":
        return saved, 0.0
    llm, tile = layers("none")
    tiles_at_once = tiles if train.zero == 3 else min(64, tiles)
    return saved, max(llm, tiles_at_once * tile)


def _sharing(train: schema.Train, workload: Workload) -> float:
    """Samples that share one set of images."""
    samples_per_set = workload.samples / workload.image_sets
    return max(1.0, min(samples_per_set, train.questions_per_image or samples_per_set)) if train.shared_prefix else 1.0
