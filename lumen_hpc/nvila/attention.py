"""Attention over rows that hold several samples, and over the cache during generation.

A batch describes its attention by a list of `Span`s instead of a token-by-token mask: the tokens of a span see their
own span causally and, if it has one, all of a shared prefix. On a GPU all spans are one call per layer
(flash-attention's `varlen`, or FlexAttention, block_mask.py); with sdpa each span is a call of a causal kernel, and on
a CPU spans of similar size are one call (padded_spans.py). No 16k x 16k mask exists. transformers' Qwen2 layers call
this module through the attention registry, which passes the keyword `plan` on unchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from lumen_hpc.errors import UserError

from . import flash
from .block_mask import BlockMaskPlan, block_mask_plan
from .padded_spans import PaddedBatches
from .spans import Span

NAME = "lumen_spans"
KERNELS = ("sdpa", "eager", "flash", "flex")


class Plan(Protocol):
    """The attention of one forward pass."""

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """q [rows, heads, T, d], k and v [rows, kv heads, T, d] -> [rows, T, heads, d]."""


def resolve_kernel(kernel: str) -> str:
    """The kernel to use: for `auto`, flash-attention if a version of it works on the GPU (`flash.varlen`), else sdpa.

    flash-attention computes only half precision; sdpa replaces it in float32. Raises UserError for a kernel that cannot
    be used here.
    """
    if kernel == "auto":
        return "flash" if flash.varlen() else "sdpa"
    if kernel not in KERNELS:
        raise UserError(f"attention={kernel!r}: use one of {('auto', *KERNELS)}")
    if kernel == "flash" and not flash.varlen():
        raise UserError("attention='flash' needs flash-attn (2, 3 or 4) and a GPU that it works on; use auto or sdpa")
    return kernel


def plan(
    spans: Sequence[Span], rows: int, length: int, kernel: str, device: torch.device, *, keep: bool = False
) -> SpanPlan | BlockMaskPlan:
    """The attention of a batch of `rows` rows of `length` tokens, built once for all its layers.

    `keep`: keys and values are kept for a cache.
    """
    if kernel == "flex":
        return block_mask_plan(spans, rows, length, device, keep=keep)
    return SpanPlan(spans, kernel, keep)


@dataclass
class SpanPlan:
    """Attention of a padded, packed or prefix-sharing batch; with `keep`, keys and values are kept for a cache."""

    spans: Sequence[Span]
    kernel: str = "sdpa"
    keep: bool = False
    keys_values: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _varlen_index: dict[torch.device, VarlenIndex] = field(default_factory=dict)
    _padded: PaddedBatches | None = None

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        if self.keep:
            self.keys_values[layer] = (k, v)
        if self.kernel == "flash" and q.dtype in (torch.float16, torch.bfloat16) and (varlen := flash.varlen()):
            if q.device not in self._varlen_index:  # once a batch, not once a layer
                self._varlen_index[q.device] = VarlenIndex.of(self.spans, q.shape[2], q.device)
            return spans_varlen(self._varlen_index[q.device], q, k, v, scale, varlen)
        if self.kernel != "eager" and q.device.type == "cpu":
            if self._padded is None:  # once a batch, not once a layer
                self._padded = PaddedBatches.of(self.spans, q.shape[0], q.shape[2])
            return self._padded.attend(q, k, v, scale)
        return _attend_spans(self.spans, q, k, v, scale, _eager if self.kernel == "eager" else _sdpa)


def _attend_spans(spans, q, k, v, scale, kernel) -> torch.Tensor:
    """One kernel call per span. Rows are split, not sliced: the gradient of every slice would be as long as its row."""
    rows = [sorted((span for span in spans if span.row == row), key=lambda span: span.start) for row in range(len(q))]
    return torch.stack([_attend_row(*parts, scale, kernel) for parts in zip(rows, q, k, v)]).transpose(1, 2)


def _attend_row(spans, q, k, v, scale, kernel) -> torch.Tensor:
    """One row, [heads, T, d]; the result is zero at places without a span."""
    edges = sorted({0, q.shape[1], *(edge for span in spans for edge in (span.start, span.stop, *span.prefix))})
    widths = [end - begin for begin, end in itertools.pairwise(edges)]
    piece_at = {edge: number for number, edge in enumerate(edges)}
    q, k, v = (x.split(widths, dim=1) for x in (q, k, v))

    def join(pieces: Sequence[torch.Tensor], *ranges: tuple[int, int]) -> torch.Tensor:
        parts = [piece for begin, end in ranges for piece in pieces[piece_at[begin] : piece_at[end]]]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[None]

    out: list[torch.Tensor] = []
    next_piece = 0
    for span in spans:
        own = (span.start, span.stop)
        out += [torch.zeros_like(piece) for piece in q[next_piece : piece_at[span.start]]]
        out.append(kernel(join(q, own), join(k, span.prefix, own), join(v, span.prefix, own), scale)[0])
        next_piece = piece_at[span.stop]
    return torch.cat([*out, *(torch.zeros_like(piece) for piece in q[next_piece:])], dim=1)


def _sdpa(q, k, v, scale) -> torch.Tensor:
    if q.shape[2] == k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    mask = causal_lower_right(q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def _eager(q, k, v, scale) -> torch.Tensor:
    """Softmax in float32, as in transformers' eager attention."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(k.shape[2] - q.shape[2] + 1)
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(hidden, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


@dataclass(frozen=True)
class VarlenIndex:
    """Places of the queries and keys of all spans in the flattened rows, for flash-attention's `varlen`."""

    queries: torch.Tensor
    """int64 [covered tokens]; `keys`, int64 [keys], has a prefix once for every span that sees it."""
    keys: torch.Tensor
    query_ends: torch.Tensor
    """int32 [spans + 1], cumulative lengths from 0, as is `key_ends`."""
    key_ends: torch.Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, spans: Sequence[Span], length: int, device: torch.device) -> VarlenIndex:
        """The index of `spans` in rows of `length` tokens."""
        queries, keys, query_lengths, key_lengths = [], [], [0], [0]
        for span in spans:
            base = span.row * length
            own = torch.arange(base + span.start, base + span.stop)
            prefix = torch.arange(base + span.prefix[0], base + span.prefix[1])
            queries.append(own)
            keys += [prefix, own]
            query_lengths.append(len(own))
            key_lengths.append(len(prefix) + len(own))
        ends = [torch.tensor(x).cumsum(0, dtype=torch.int32) for x in (query_lengths, key_lengths)]
        query_places, key_places, query_ends, key_ends = (
            x.to(device, non_blocking=True) for x in (torch.cat(queries), torch.cat(keys), *ends)
        )
        return cls(query_places, key_places, query_ends, key_ends, (max(query_lengths), max(key_lengths)))


def spans_varlen(index: VarlenIndex, q, k, v, scale, varlen: flash.Varlen) -> torch.Tensor:
    """All spans in one call of flash-attention's `varlen` function, whose causal mask ends at the bottom right.

    A span's keys, its prefix and itself, are gathered: a prefix is copied for every span, but never scored twice.
    """
    rows, heads, length, width = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    ends = index.query_ends, index.key_ends
    attended = varlen(
        q[index.queries], k[index.keys], v[index.keys], *ends, *index.longest, softmax_scale=scale, causal=True
    )
    return torch.zeros_like(q).index_copy(0, index.queries, attended).view(rows, length, heads, width)


class StepTensors(NamedTuple):
    """Tensors of one step of generation, on one device; N branches."""

    group: torch.Tensor
    slot: torch.Tensor
    own_lengths: torch.Tensor
    branches: torch.Tensor
    """[N], 0 to N - 1."""
    prefix_padding: torch.Tensor
    """bool [N, 1, 1, P], True for padding after a prefix."""
    own_padding: torch.Tensor
    """bool [N, 1, 1, used], True for places that are still empty."""


@dataclass
class CachePlan:
    """One step of generation: one query token for each of N branches; branches of a group share their prefix.

    Keys and values, per layer: `prefix` [groups, kv heads, P, d] and `own` [N, kv heads, capacity, d], which is
    filled in place. Padding is masked. All branches of a group score their prefix in one matrix product, so it is
    stored and read once.
    """

    prefix: list[tuple[torch.Tensor, torch.Tensor]]
    own: list[tuple[torch.Tensor, torch.Tensor]]
    prefix_lengths: torch.Tensor
    own_lengths: torch.Tensor
    group: torch.Tensor
    """[N], each branch's group."""
    slot: torch.Tensor
    """[N], each branch's place within its group."""

    def __post_init__(self) -> None:
        self._slots = int(self.slot.max()) + 1
        places = torch.arange(self.prefix[0][0].shape[2], device=self.group.device)
        self._prefix_padding = (places >= self.prefix_lengths[:, None])[self.group][:, None, None]
        self._update()

    def _update(self) -> None:
        """Recompute what depends on `own_lengths`, the number of tokens before this step's."""
        self._used = int(self.own_lengths.max()) + 1
        places = torch.arange(self._used, device=self.group.device)
        own_padding = (places > self.own_lengths[:, None])[:, None, None]
        branches = torch.arange(len(self.group), device=self.group.device)
        tensors = StepTensors(self.group, self.slot, self.own_lengths, branches, self._prefix_padding, own_padding)
        self._tensors = {self.group.device: tensors}

    def _tensors_on(self, device: torch.device) -> StepTensors:
        """This step's tensors on a layer's device; a model may be spread over several (`placement`)."""
        if device not in self._tensors:
            self._tensors[device] = StepTensors(*(tensor.to(device) for tensor in self._tensors[self.group.device]))
        return self._tensors[device]

    def advance(self) -> None:
        """Go on to the next step: count this step's query token."""
        self.own_lengths += 1
        self._update()

    def select(self, branches: torch.Tensor) -> None:
        """Keep only these branches, int64 [n], and the prefixes that they see."""
        groups, self.group = self.group[branches].unique(return_inverse=True)
        self.slot, self.own_lengths = self.slot[branches], self.own_lengths[branches]
        self.prefix_lengths = self.prefix_lengths[groups]
        self.prefix = [(k[groups.to(k.device)], v[groups.to(v.device)]) for k, v in self.prefix]
        self.own = [(k[branches.to(k.device)], v[branches.to(v.device)]) for k, v in self.own]
        self.__post_init__()

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        tensors = self._tensors_on(q.device)
        keys, values = self.own[layer]
        keys[tensors.branches, :, tensors.own_lengths] = k[:, :, 0]
        values[tensors.branches, :, tensors.own_lengths] = v[:, :, 0]
        keys, values = keys[:, :, : self._used], values[:, :, : self._used]
        prefix_keys, prefix_values = self.prefix[layer]
        n, heads, _, width = q.shape
        kv_heads = keys.shape[1]
        q = q.view(n, kv_heads, heads // kv_heads, width)
        prefix_scores = self._by_branch(self._by_group(q, tensors) @ prefix_keys.transpose(2, 3), tensors)
        prefix_scores = prefix_scores.masked_fill(tensors.prefix_padding, -torch.inf)
        own_scores = (q @ keys.transpose(2, 3)).masked_fill(tensors.own_padding, -torch.inf)
        weights = (torch.cat([prefix_scores, own_scores], dim=-1) * scale).softmax(-1, dtype=torch.float32).to(q.dtype)
        prefix_weights, own_weights = weights.split([prefix_keys.shape[2], self._used], dim=-1)
        out = self._by_branch(self._by_group(prefix_weights, tensors) @ prefix_values, tensors) + own_weights @ values
        return out.reshape(n, 1, heads, width)

    def _by_group(self, x: torch.Tensor, tensors: StepTensors) -> torch.Tensor:
        """[N, kv heads, heads a kv head, d] -> [groups, kv heads, slots·heads a kv head, d]."""
        grouped = x.new_zeros(len(self.prefix_lengths), self._slots, *x.shape[1:])
        grouped[tensors.group, tensors.slot] = x
        return grouped.transpose(1, 2).flatten(2, 3)

    def _by_branch(self, x: torch.Tensor, tensors: StepTensors) -> torch.Tensor:
        """Undo `_by_group`."""
        return x.unflatten(2, (self._slots, -1)).transpose(1, 2)[tensors.group, tensors.slot]


def _attention(module, q, k, v, attention_mask, *, scaling, plan: Plan, **_) -> tuple[torch.Tensor, None]:
    return plan.attend(module.layer_idx, q, k, v, scaling), None


AttentionInterface.register(NAME, _attention)
