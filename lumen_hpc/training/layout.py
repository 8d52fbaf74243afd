"""Lays a global batch out over ranks and micro-batches.

Samples about the same images form one sequence (their image tokens are computed once); sequences are packed into
micro-batches within a token budget; every rank gets the same number of micro-batches. If ranks would wait for a long
sequence, its samples are spread over several, each of which repeats the images. The layout follows from the lengths
alone, so every rank computes the same one without communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Protocol


class PerSample(Protocol):
    """A number per sample id: a list or an integer array."""

    def __getitem__(self, sample: int, /) -> int: ...


@dataclass(frozen=True)
class SharedSequence:
    """Samples that share one prefix, and their tokens, with the prefix counted once."""

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
    open_sequences: dict[int, list[int]] = {}
    full_sequences: list[list[int]] = []
    lengths: dict[int, int] = {}
    for sample in batch:
        group = groups[sample]
        if group in open_sequences and shared and lengths[group] + suffix[sample] <= budget:
            open_sequences[group].append(sample)
            lengths[group] += suffix[sample]
            continue
        if group in open_sequences:
            full_sequences.append(open_sequences[group])
        open_sequences[group] = [sample]
        lengths[group] = prefix[sample] + suffix[sample]
    return [
        SharedSequence(tuple(s), prefix[s[0]] + sum(suffix[i] for i in s))
        for s in [*full_sequences, *open_sequences.values()]
    ]


Layout = list[list[list[SharedSequence]]]
"""`[rank][micro-batch]` lists of sequences."""

LENGTH_TRIALS = 8
"""Lengths that are tried as the limit of a step's sequences."""
MIN_GAIN = 0.01
"""Share of the critical path that repeated images must save."""
HIGH_EFFICIENCY = 0.9
"""A step in which ranks compute for this share of the time is left unchanged."""


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
    """The layout of one step; the arguments are those of `sequences` and `pack_sequences`.

    Samples about the same images stay together unless spreading them over ranks shortens the critical path. It does
    with few samples per rank: the longest sequence determines the step, and idle ranks have time for its images.
    """
    joined_sequences = sequences(batch, groups, prefix, suffix, budget=budget, shared=shared)
    best_layout = pack_sequences(joined_sequences, world_size, budget)
    shortest_path = critical_path(best_layout)
    if not shared or sum(item.tokens for item in joined_sequences) >= HIGH_EFFICIENCY * world_size * shortest_path:
        return best_layout
    longest_sequence = max(item.tokens for item in joined_sequences)
    longest_sample = max(prefix[sample] + suffix[sample] for sample in batch)  # one sample cannot be divided
    for part in range(1, LENGTH_TRIALS + 1):
        limit = longest_sequence - (longest_sequence - longest_sample) * part // LENGTH_TRIALS
        candidate = pack_sequences(
            sequences(batch, groups, prefix, suffix, budget=limit, shared=True), world_size, budget
        )
        if (path := critical_path(candidate)) < shortest_path * (1 - MIN_GAIN):
            best_layout, shortest_path = candidate, path
    return best_layout


def critical_path(ranks: Layout) -> int:
    """Tokens of the longest rank, summed over the micro-steps: what a step takes."""
    return sum(max(sum(item.tokens for item in micro) for micro in step) for step in zip(*ranks))


def pack_sequences(items: list[SharedSequence], world_size: int, budget: int) -> Layout:
    """Packs sequences into `[rank][micro-batch]` lists, the longest first, each into the emptiest micro-batch.

    No micro-batch exceeds `budget` tokens unless a single sequence does. Every rank has the same number of
    micro-batches, which ZeRO's collectives need; if sequences are few, some micro-batches are empty.
    """
    longest_first = sorted(items, key=lambda s: (-s.tokens, s.samples))
    total = sum(min(s.tokens, budget) for s in items)
    micro_batches = max(1, -(-total // (budget * world_size)))
    while True:
        bins: list[list[SharedSequence]] = [[] for _ in range(world_size * micro_batches)]
        loads = [0] * len(bins)
        bins_by_load = [(0, b) for b in range(len(bins))]
        heapify(bins_by_load)
        for item in longest_first:
            _, emptiest = bins_by_load[0]
            bins[emptiest].append(item)
            loads[emptiest] += item.tokens
            heapreplace(bins_by_load, (loads[emptiest], emptiest))
        overfull = any(tokens > budget and len(contents) > 1 for tokens, contents in zip(loads, bins))
        if not overfull:
            # Ranks run the bins of one micro-step in parallel, so these get similar loads.
            order = sorted(range(len(bins)), key=lambda b: (-loads[b], b))
            return [[bins[order[m * world_size + r]] for m in range(micro_batches)] for r in range(world_size)]
        micro_batches += 1
