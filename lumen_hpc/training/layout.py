"""How a global batch is laid out over ranks and micro-batches.

Samples about the same images are one sequence (their image tokens are computed once); sequences are
packed into micro-batches of at most a token budget; every rank gets the same number of micro-batches.
Where the ranks would wait for a long sequence, its samples are spread over several, each with the images again.
All of it follows from the lengths, so every rank computes the same layout without communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Protocol


class PerSample(Protocol):
    """A number for each sample id: a list or an integer array."""

    def __getitem__(self, sample: int, /) -> int: ...


@dataclass(frozen=True)
class SharedSequence:
    """Samples that share one prefix, and the tokens they cost together."""

    samples: tuple[int, ...]
    tokens: int


def sequences(
    batch: Sequence[int],
    groups: PerSample,
    prefix: PerSample,
    suffix: PerSample,
    *,
    budget: int,
    shared: bool,
) -> list[SharedSequence]:
    """The batch's samples joined where they share images; a sequence longer than `budget` tokens is split.

    `groups`, `prefix` and `suffix` are indexed by sample id: images, tokens that can be shared, tokens that cannot.
    """
    open_: dict[int, list[int]] = {}
    closed: list[list[int]] = []
    cost: dict[int, int] = {}
    for sample in batch:
        group = groups[sample]
        if group in open_ and shared and cost[group] + suffix[sample] <= budget:
            open_[group].append(sample)
            cost[group] += suffix[sample]
            continue
        if group in open_:
            closed.append(open_[group])
        open_[group] = [sample]
        cost[group] = prefix[sample] + suffix[sample]
    return [SharedSequence(tuple(s), prefix[s[0]] + sum(suffix[i] for i in s)) for s in [*closed, *open_.values()]]


Layout = list[list[list[SharedSequence]]]
"""`[rank][micro-batch]` lists of sequences."""

LIMITS = 8
"""Lengths that are tried as the longest sequence of a step."""
GAIN = 0.01
"""Share of the critical path that images computed twice must save."""
FULL = 0.9
"""A step in which the ranks compute for this share of its time is left as it is."""


def lay_out(
    batch: Sequence[int],
    groups: PerSample,
    prefix: PerSample,
    suffix: PerSample,
    *,
    world_size: int,
    budget: int,
    shared: bool,
) -> Layout:
    """The layout of one step; the arguments are those of `sequences` and `layout`.

    Samples about the same images are kept together unless spreading them over ranks shortens the critical path. With
    few samples a rank it does: the longest sequence decides, and ranks without one have time for its images.
    """
    together = sequences(batch, groups, prefix, suffix, budget=budget, shared=shared)
    best = layout(together, world_size, budget)
    shortest = critical_path(best)
    if not shared or sum(item.tokens for item in together) >= FULL * world_size * shortest:
        return best
    longest = max(item.tokens for item in together)
    least = max(prefix[sample] + suffix[sample] for sample in batch)  # one sample cannot be divided
    for part in range(1, LIMITS + 1):
        limit = longest - (longest - least) * part // LIMITS
        tried = layout(sequences(batch, groups, prefix, suffix, budget=limit, shared=True), world_size, budget)
        if (path := critical_path(tried)) < shortest * (1 - GAIN):
            best, shortest = tried, path
    return best


def critical_path(ranks: Layout) -> int:
    """Tokens of the longest rank in each micro-step, added over the micro-steps: the time of the step."""
    return sum(max(sum(item.tokens for item in micro) for micro in step) for step in zip(*ranks))


def layout(items: list[SharedSequence], world_size: int, budget: int) -> Layout:
    """Packs sequences into `[rank][micro-batch]` lists, the longest first into the emptiest.

    No micro-batch exceeds `budget` tokens unless a single sequence does. Every rank has the same number of
    micro-batches (ZeRO's collectives need it); the last of some may be empty where sequences are few.
    """
    longest_first = sorted(items, key=lambda s: (-s.tokens, s.samples))
    total = sum(min(s.tokens, budget) for s in items)
    micro = max(1, -(-total // (budget * world_size)))
    while True:
        bins: list[list[SharedSequence]] = [[] for _ in range(world_size * micro)]
        load = [0] * len(bins)
        emptiest_first = [(0, b) for b in range(len(bins))]
        heapify(emptiest_first)
        for item in longest_first:
            _, emptiest = emptiest_first[0]
            bins[emptiest].append(item)
            load[emptiest] += item.tokens
            heapreplace(emptiest_first, (load[emptiest], emptiest))
        over = any(tokens > budget and len(packed) > 1 for tokens, packed in zip(load, bins))
        if not over:
            # The bins of one micro-step run in parallel on the ranks: give them similar loads.
            order = sorted(range(len(bins)), key=lambda b: (-load[b], b))
            return [[bins[order[m * world_size + r]] for m in range(micro)] for r in range(world_size)]
        micro += 1
