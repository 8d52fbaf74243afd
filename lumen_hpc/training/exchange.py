"""Computes what sequence parallelism sends between GPUs; `dry_run=true` prints it with the plan of a training.

Only the standard library. In each layer of the language model a token's queries, keys and values go to the ranks that
compute their heads, and the attention's result comes back: (2 · heads + 2 · key heads) · head width numbers, of which
1/n stays on its rank. The backward pass sends as much, and recomputed layers send it a third time.
"""

from __future__ import annotations

from lumen_hpc.config import schema
from lumen_hpc.models import Workload
from lumen_hpc.training.model_sizes import Sizes

BANDWIDTH = 200e9
"""Bytes per second that a GPU sends within its node: under half of an H100's 450e9 over NVLink (NVIDIA's data sheet),
which an all-to-all does not reach. Not measured here."""


def layer_bytes(train: schema.Train, sizes: Sizes) -> float:
    """Bytes that a GPU sends for one of its tokens in one layer of the language model, in all passes."""
    ranks = train.ranks_a_micro_batch
    key_heads = max(sizes.kv_heads, ranks)  # fewer key heads than ranks are sent more than once
    numbers = (2 * sizes.heads + 2 * key_heads) * (sizes.width // sizes.heads)
    passes = 2 if train.checkpointing == "none" else 3
    return passes * numbers * _size(train) * (ranks - 1) / ranks


def sent_bytes(train: schema.Train, sizes: Sizes, workload: Workload, tokens: float) -> float:
    """Bytes that a GPU sends for `tokens` of its own: in all layers, and to join features of tower and projector."""
    ranks = train.ranks_a_micro_batch
    tower = workload.tiles / workload.image_tokens * sizes.patches * sizes.vision_width
    features = 2 * (tower + sizes.width) * _size(train) * (ranks - 1)  # an all-gather, and the sum of its gradients
    return tokens * (sizes.layers * layer_bytes(train, sizes) + features)


def _size(train: schema.Train) -> int:
    return 2 if train.precision == "bf16" else 4
