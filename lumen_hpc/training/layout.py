"""How a global batch is laid out over ranks and micro-batches.

Samples about the same images are one sequence (their image tokens are computed once); sequences are
packed into micro-batches of at most a token budget; every rank gets the same number of micro-batches.
All of it follows from the lengths, so every rank computes the same layout without communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class PerSample(Protocol):
    """A number for each sample id: a list or an integer array."""

    def __getitem__(self, sample: int, /) -> int: ...


@dataclass(frozen=True)
class Shared:
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
) -> list[Shared]:
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
    return [Shared(tuple(s), prefix[s[0]] + sum(suffix[i] for i in s)) for s in [*closed, *open_.values()]]


def layout(items: list[Shared], world_size: int, budget: int) -> list[list[list[Shared]]]:
    """Packs sequences into `[rank][micro-batch]` lists, the longest first into the emptiest.

    No micro-batch exceeds `budget` tokens unless a single sequence does. Every rank has the same number of
    micro-batches (ZeRO's collectives need it); the last of some may be empty where sequences are few.
    """
    longest_first = sorted(items, key=lambda s: (-s.tokens, s.samples))
    total = sum(min(s.tokens, budget) for s in items)
    micro = max(1, -(-total // (budget * world_size)))
    while True:
        bins: list[list[Shared]] = [[] for _ in range(world_size * micro)]
        load = [0] * len(bins)
        for item in longest_first:
            emptiest = min(range(len(bins)), key=lambda b: (load[b], b))
            bins[emptiest].append(item)
            load[emptiest] += item.tokens
        over = any(tokens > budget and len(packed) > 1 for tokens, packed in zip(load, bins))
        if not over:
            # The bins of one micro-step run in parallel on the ranks: give them similar loads.
            order = sorted(range(len(bins)), key=lambda b: (-load[b], b))
            return [[bins[order[m * world_size + r]] for m in range(micro)] for r in range(world_size)]
        micro += 1
