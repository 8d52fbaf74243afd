"""Attends all spans of a batch in a few calls of sdpa, for CPUs, where a call per span costs more than its maths.

Spans of similar size are gathered into one padded batch. Spans without a prefix need no mask: padding follows their
tokens, so causality hides it. The others have one additive mask, built once for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .spans import Span

MAX_AREA_RATIO = 1.3
"""Most scores per span in a padded batch, relative to the scores of the span itself."""


@dataclass(frozen=True)
class PaddedSpans:
    """Spans of similar size; their padding repeats each span's first token."""

    queries: torch.Tensor
    """int64 [spans, longest], places in the flattened rows."""
    keys: torch.Tensor
    """int64 [spans, longest], each span's prefix and itself."""
    bias: torch.Tensor | None
    """float32 [spans, 1, queries, keys], added to the scores; None for a causal mask."""

    @classmethod
    def of(cls, spans: Sequence[Span], length: int) -> PaddedSpans:
        """From spans that all have a prefix, or all have none, in rows of `length` tokens."""
        sizes = [(span.stop - span.start, span.prefix[1] - span.prefix[0]) for span in spans]
        own, shared = torch.tensor(sizes)[:, :, None].unbind(1)
        start = torch.tensor([span.row * length + span.start for span in spans])[:, None]
        prefix = torch.tensor([span.row * length + span.prefix[0] for span in spans])[:, None]
        query, key = torch.arange(max(own for own, _ in sizes)), torch.arange(max(map(sum, sizes)))
        queries = start + torch.where(query < own, query, 0)
        if not any(shared for _, shared in sizes):
            return cls(queries, queries, None)
        keys = torch.where(key < shared, prefix + key, start + torch.where(key < shared + own, key - shared, 0))
        # A padding query, too, sees the prefix: a row of only -inf would give NaN.
        visible = key <= shared[:, :, None] + torch.where(query < own, query, 0)[:, :, None]
        bias = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        return cls(queries, keys, bias[:, None])

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """q, k, v at the batch's places, [spans · longest, heads, d] each -> [spans · longest, heads, d]."""
        q = q.unflatten(0, self.queries.shape).transpose(1, 2)
        k, v = (x.unflatten(0, self.keys.shape).transpose(1, 2) for x in (k, v))
        bias = None if self.bias is None else self.bias.to(q.dtype)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=bias is None, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class PaddedBatches:
    """All spans of some rows, and the places of their results."""

    batches: list[PaddedSpans]
    queries: torch.Tensor
    """int64, of all batches concatenated, as are `keys`: every gather has a gradient as long as the rows."""
    keys: torch.Tensor
    source: torch.Tensor
    """int64 [rows · length], places in the concatenated results, whose last is zero, for places without a span."""

    @classmethod
    def of(cls, spans: Sequence[Span], rows: int, length: int) -> PaddedBatches:
        """The batches of `spans` in rows of `length` tokens."""
        batches, owners, places, total = [], [], [], 0
        for similar in _similar_spans(spans):
            batch = PaddedSpans.of(similar, length)
            for number, span in enumerate(similar):
                size = span.stop - span.start
                owners.append(torch.arange(size) + span.row * length + span.start)
                places.append(torch.arange(size) + total + number * batch.queries.shape[1])
            batches.append(batch)
            total += batch.queries.numel()
        source = torch.full((rows * length,), total)
        if batches:
            source[torch.cat(owners)] = torch.cat(places)
        empty = source[:0]
        queries = torch.cat([empty, *(batch.queries.flatten() for batch in batches)])
        keys = torch.cat([empty, *(batch.keys.flatten() for batch in batches)])
        return cls(batches, queries, keys, source)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """q [rows, heads, T, d], k and v [rows, kv heads, T, d] -> [rows, T, heads, d]."""
        rows, heads, length, width = q.shape
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        queries = q.index_select(0, self.queries).split([batch.queries.numel() for batch in self.batches])
        sizes = [batch.keys.numel() for batch in self.batches]
        keys, values = (x.index_select(0, self.keys).split(sizes) for x in (k, v))
        results = [b.attend(*qkv, scale) for b, qkv in zip(self.batches, zip(queries, keys, values))]
        results_by_place = torch.cat([*results, q.new_zeros(1, heads, width)])
        return results_by_place.index_select(0, self.source).view(rows, length, heads, width)


def _similar_spans(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Spans in groups of similar size, those with a prefix apart from those without."""

    def size(span: Span) -> tuple[bool, int, int]:
        own, shared = span.stop - span.start, span.prefix[1] - span.prefix[0]
        return shared > 0, own + shared, own

    group: list[Span] = []
    area, queries, keys = 0, 0, 0
    for span in sorted(spans, key=size, reverse=True):
        shared, visible, own = size(span)
        area = max(keys, visible) * max(queries, own)
        if group and ((size(group[0])[0] != shared) or area > MAX_AREA_RATIO * visible * own):
            yield group
            group, queries, keys = [], 0, 0
        group.append(span)
        queries, keys = max(queries, own), max(keys, visible)
    if group:
        yield group
