"""How much of a training's GPU time computes: the layout of sampled steps, measured by its critical path.

The steps are drawn from the record index where a training has made one, else from the paper's mixture of questions.
The second needs the standard library alone, so that a login node can do it before anything is submitted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lumen_hpc.config import schema
from lumen_hpc.errors import UserError
from lumen_hpc.models import Workload
from lumen_hpc.training.layout import critical_path, lay_out, sequences

SAMPLED = 32
"""Steps that are laid out: the mean of their critical paths is within about 3 % of that of all."""
MOST_SAMPLES = 1 << 15
"""Samples that are laid out: of a global batch above 1,024, fewer steps."""
TOGETHER = (1, 2, 4)
"""Ranks that may compute a micro-batch together (`train.sequence_parallel`)."""
BUSY = 0.85
"""Efficiency that `train.sequence_parallel=auto` is content with."""


@dataclass(frozen=True)
class Steps:
    """Sampled steps, each with a number for every sample: its images, the tokens that can be shared, the others."""

    groups: tuple[tuple[int, ...], ...]
    prefix: tuple[tuple[int, ...], ...]
    suffix: tuple[tuple[int, ...], ...]
    samples: int = 0
    """Of the whole training set."""
    recorded: bool = False
    """From a record index, not from the paper's mixture."""

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        return iter(zip(self.groups, self.prefix, self.suffix))


@dataclass(frozen=True)
class Occupancy:
    """Mean of the sampled steps on one number of GPUs."""

    gpus: int
    path: float
    """Tokens of the longest rank, its micro-steps added: what a step takes. Ranks that compute a micro-batch together
    have an equal part of it."""
    tokens: float
    """Tokens of a step if no image is computed twice."""
    sequences: float
    """Sequences a step has if questions about the same images stay together."""
    longest_sample: float
    """Tokens of a step's longest sample, which no layout can divide, but sequence parallelism can."""
    samples: float
    """Samples a step."""
    sequence_parallel: int = 1
    """Ranks that compute a micro-batch together."""

    @property
    def efficiency(self) -> float:
        """Share of the GPUs' time that must be computed: what no image computed twice, and no waiting, would take."""
        return self.tokens / (self.gpus * self.path)


def occupancy(steps: Steps, train: schema.Train, gpus: int, heads: int, *, nodes: int = 1) -> Occupancy:
    """Lays the sampled steps out on `gpus` GPUs, as training does; `heads` of the language model's attention."""
    together = parallel(steps, train, gpus, heads, nodes=nodes)
    return _occupancy(steps, gpus, together, train.token_budget, train.shared_prefix)


def parallel(steps: Steps, train: schema.Train, gpus: int, heads: int, *, nodes: int = 1) -> int:
    """`train.sequence_parallel`, decided where it is `auto`.

    Up to half as many GPUs as a step has sequences balance well by themselves. Of more, the fewest compute a
    micro-batch together that keep busy, or what is best, as far as a node's GPUs and the heads divide.
    """
    if train.sequence_parallel != "auto":
        return train.ranks_a_micro_batch
    possible = [n for n in TOGETHER if gpus % (n * nodes) == 0 and heads % n == 0]
    found = {n: _occupancy(steps, gpus, n, train.token_budget, train.shared_prefix) for n in possible or [1]}
    if found[1].sequences >= 2 * gpus:
        return 1
    return next((n for n in found if found[n].efficiency >= BUSY), max(found, key=lambda n: found[n].efficiency))


@lru_cache(maxsize=256)
def _occupancy(steps: Steps, gpus: int, together: int, budget: int, shared: bool) -> Occupancy:
    sums = [0.0] * 5
    groups_of_ranks = max(1, gpus // together)
    for groups, prefix, suffix in steps:
        batch = range(len(groups))
        items = sequences(batch, groups, prefix, suffix, budget=budget, shared=shared)
        ranks = lay_out(batch, groups, prefix, suffix, world_size=groups_of_ranks, budget=budget, shared=shared)
        sums[0] += critical_path(ranks) / together
        sums[1] += sum(item.tokens for item in items)
        sums[2] += len(items)
        sums[3] += max(map(sum, zip(prefix, suffix)))
        sums[4] += len(batch)
    path, tokens, count, longest, samples = (total / len(steps.groups) for total in sums)
    return Occupancy(gpus, path, tokens, count, longest, samples, together)


def recorded(index: Path, train: schema.Train, seed: int) -> Steps | None:
    """Steps of a training's own record index in the sampler's order; None where there is none, or numpy is missing."""
    if not index.is_file():  # before anything heavy is imported
        return None
    try:
        import numpy as np

        with np.load(index) as kept:
            return sampled({name: kept[name] for name in ("groups", "kinds", "prefix", "suffix")}, train, seed)
    except (ImportError, OSError, ValueError, KeyError, UserError):  # training itself says what is wrong
        return None


def sampled(index: Mapping[str, Any], train: schema.Train, seed: int) -> Steps:
    """Steps of a record index, whose columns are arrays, in the sampler's order. Raises UserError as `sampler.make`."""
    from lumen_hpc.training import sampler

    groups, prefix, suffix = (index[name] for name in ("groups", "prefix", "suffix"))
    order = sampler.make(groups, index["kinds"], train, seed)
    # A short last step is none that represents the others.
    whole = max(1, order.consumed(order.steps) // len(order.batch(0)))
    chosen = [order.batch(step * whole // SAMPLED) for step in range(min(SAMPLED, whole))]
    numbers = [tuple(tuple(column[step].tolist()) for step in chosen) for column in (groups, prefix, suffix)]
    return Steps(numbers[0], numbers[1], numbers[2], len(groups), recorded=True)


def stated(train: schema.Train, workload: Workload) -> Steps:
    """Steps of the paper's mixture: images with a varying number of questions, in the sampler's order."""
    kinds = tuple(sorted(train.mixture.items()))
    return _stated(workload, train.global_batch, kinds, train.questions_per_image if train.shared_prefix else 1)


@lru_cache(maxsize=64)
def _stated(workload: Workload, global_batch: int, mixture: tuple[tuple[str, int], ...], most: int) -> Steps:
    draw = random.Random(0)
    pair_share = workload.pairs / workload.image_sets
    asked = (workload.samples - workload.pairs) / (workload.image_sets - workload.pairs)
    # Kinds that the records lack take no part (sampler.mixed): (share of pairs, questions an image, samples a step).
    streams = [(pair_share, asked, global_batch)]
    if mixture:
        one, two = (0.0, 1.0), (1.0, 1.0)
        of = {"diagnostic": (0.0, asked), "difference": two, "prediction": one, "outcome": one, "timeline": two}
        streams = [(*of[kind], count) for kind, count in mixture if workload.pairs or kind == "diagnostic"]
    # Large steps differ little from one another, and each takes its time.
    sampled = min(SAMPLED, max(1, MOST_SAMPLES // sum(count for *_, count in streams)))
    steps: list[list[tuple[int, int]]] = [[] for _ in range(sampled)]  # (group, images) of each sample
    number = 0
    for pairs, questions, count in streams:
        stream: list[tuple[int, int]] = []
        while len(stream) < sampled * count:
            number += 1
            pair = draw.random() < pairs
            times = 1 if pair else 1 + _poisson(questions - 1, draw)
            stream += [(number, 1 + pair)] * min(times, most or times)
        for k, step in enumerate(steps):
            step += stream[k * count : (k + 1) * count]
    return Steps(
        tuple(tuple(group for group, _ in step) for step in steps),
        tuple(tuple(images * workload.image_tokens for _, images in step) for step in steps),
        tuple((workload.text_tokens,) * len(step) for step in steps),
        workload.samples,
    )


def _poisson(mean: float, draw: random.Random) -> int:
    """A Poisson number (Knuth's product of uniform numbers)."""
    count, left = 0, math.exp(-mean)
    product = draw.random()
    while product > left:
        count += 1
        product *= draw.random()
    return count
