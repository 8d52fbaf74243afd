"""FlexAttention for packed rows: one call a layer, with the batch's block mask built once.

The mask of a `Span` list is three numbers per query: where its own span starts, and where its prefix starts and stops.
They determine the mask within a block, and which blocks are empty, partial or full, without a token-by-token mask.
All of them are tensors, so that a compiled layer takes every batch of the same shape without a recompilation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lumen_hpc.scratch import use_private_cache

from .spans import Span

BLOCK = 128
"""Side of a block [tokens], FlexAttention's own default."""


@dataclass
class BlockMaskPlan:
    """Attention of a batch in one FlexAttention call per layer; the result is zero at places without a span."""

    mask: BlockMask
    uncovered: torch.Tensor | None
    """bool [rows, T, 1, 1]; None if spans cover all places."""
    dense: torch.Tensor | None = None
    """bool [rows, 1, T, T], only on a CPU, where FlexAttention has no backward pass: for tests of the mask."""
    keep: bool = False
    """Keep keys and values for a cache; not with compiled layers, each of which would then compile separately."""
    keys_values: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        if self.keep:
            self.keys_values[layer] = (k, v)
        if self.dense is None:
            out = _fused_attention()(q, k, v, block_mask=self.mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.dense, scale=scale, enable_gqa=True)
        out = out.transpose(1, 2)
        return out if self.uncovered is None else out.masked_fill(self.uncovered, 0)


@cache
def _fused_attention() -> Any:
    """The fused kernel; without compilation, FlexAttention materialises every score."""
    return torch.compile(flex_attention, dynamic=False)


def block_mask_plan(
    spans: Sequence[Span], rows: int, length: int, device: torch.device, *, keep: bool = False
) -> BlockMaskPlan:
    """The plan of `rows` rows of `length` tokens; `keep`: keys and values are kept for a cache."""
    padded = -(-length // BLOCK) * BLOCK
    limits: np.ndarray = np.empty((3, rows, padded), dtype=np.int32)
    limits[0], limits[1:] = np.arange(padded), 0  # a place without a span sees itself, since an empty softmax is NaN
    uncovered: np.ndarray = np.ones((rows, length), dtype=bool)
    for span in spans:
        uncovered[span.row, span.start : span.stop] = False
        limits[:, span.row, span.start : span.stop] = np.array([[span.start], span.prefix[:1], span.prefix[1:]])
    start, prefix_start, prefix_stop = torch.from_numpy(limits).to(device, non_blocking=True)

    def visible(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own = (key >= start[row, query]) & (key <= query)
        return own | ((key >= prefix_start[row, query]) & (key < prefix_stop[row, query]))

    pairs = _visible_pairs(start, prefix_start, prefix_stop)
    full = pairs == BLOCK * BLOCK
    mask = BlockMask.from_kv_blocks(
        *_block_indices((pairs > 0) & ~full),
        *_block_indices(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )
    uncovered_tensor = (
        torch.from_numpy(uncovered)[:, :, None, None].to(device, non_blocking=True) if uncovered.any() else None
    )
    dense = None
    if device.type == "cpu":
        places = torch.arange(length)
        dense = visible(torch.arange(rows)[:, None, None, None], places[0], places[:, None], places)
    else:
        use_private_cache()  # for the fused kernel; the default, /tmp/torchinductor_USER, is anybody's to create
    return BlockMaskPlan(mask, uncovered_tensor, dense, keep)


def _visible_pairs(start: torch.Tensor, prefix_start: torch.Tensor, prefix_stop: torch.Tensor) -> torch.Tensor:
    """Visible (query, key) pairs of each block, [rows, query blocks, key blocks]; the limits are [rows, T]."""
    rows, length = start.shape
    begin = torch.arange(0, length, BLOCK, device=start.device)
    after = torch.arange(1, length + 1, device=start.device)[:, None]
    own = torch.minimum(begin + BLOCK, after) - torch.maximum(begin, start[..., None])
    prefix = torch.minimum(begin + BLOCK, prefix_stop[..., None]) - torch.maximum(begin, prefix_start[..., None])
    return (own.clamp_min(0) + prefix.clamp_min(0)).view(rows, -1, BLOCK, len(begin)).sum(2)


def _block_indices(selection: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [rows, query blocks, key blocks] → (number per query block, indices with theirs first), with a head axis."""
    order = selection.int().argsort(dim=-1, descending=True, stable=True)
    return selection.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]
