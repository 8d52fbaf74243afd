"""Estimates the share of GPU time that a training computes, from the critical paths of sampled steps.

The steps are drawn from the record index once a training has made one, else from the paper's mixture of questions. The
latter needs only the standard library, so that a login node can do it before anything is submitted.
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

SAMPLED_STEPS = 32
"""Steps that are laid out: the mean of their critical paths is within about 3 % of the mean of all steps."""
MAX_SAMPLES = 1 << 15
"""Most samples that are laid out: of global batches above 1,024, fewer steps are."""
GROUP_SIZES = (1, 2, 4)
"""Numbers of ranks that may compute a micro-batch together (`train.sequence_parallel`)."""
TARGET_EFFICIENCY = 0.85
"""Efficiency that `train.sequence_parallel=auto` aims at."""


@dataclass(frozen=True)
class Steps:
    """Sampled steps, each with numbers per sample: its image group, the tokens that can be shared, the others."""

    groups: tuple[tuple[int, ...], ...]
    prefix: tuple[tuple[int, ...], ...]
    suffix: tuple[tuple[int, ...], ...]
    samples: int = 0
    """Of the whole training set."""
    recorded: bool = False
    """Whether they are from a record index, not from the paper's mixture."""

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        return iter(zip(self.groups, self.prefix, self.suffix))


@dataclass(frozen=True)
class Occupancy:
    """Means over the sampled steps, on a given number of GPUs."""

    gpus: int
    path: float
    """Tokens of the longest rank, summed over its micro-steps: what a step takes. Ranks that compute a micro-batch
    together share it equally."""
    tokens: float
    """Tokens of a step if no image is computed twice."""
    sequences: float
    """Sequences per step if questions about the same images stay together."""
    longest_sample: float
    """Tokens of a step's longest sample, which only sequence parallelism can divide."""
    samples: float
    """Samples per step."""
    sequence_parallel: int = 1
    """Ranks that compute a micro-batch together."""

    @property
    def efficiency(self) -> float:
        """Share of GPU time that would remain without repeated images and without waiting."""
        return self.tokens / (self.gpus * self.path)


def occupancy(steps: Steps, train: schema.Train, gpus: int, heads: int, *, nodes: int = 1) -> Occupancy:
    """Lays the sampled steps out on `gpus` GPUs, as training does; `heads` of the language model's attention."""
    group_size = choose_group_size(steps, train, gpus, heads, nodes=nodes)
    return _measure_occupancy(steps, gpus, group_size, train.token_budget, train.shared_prefix)


def choose_group_size(steps: Steps, train: schema.Train, gpus: int, heads: int, *, nodes: int = 1) -> int:
    """`train.sequence_parallel`, resolved if it is `auto`.

    1 if a step has at least two sequences per GPU, which balances well. Otherwise the smallest group that reaches
    TARGET_EFFICIENCY, or the most efficient one, of those that divide a node's GPUs and the heads.
    """
    if train.sequence_parallel != "auto":
        return train.ranks_a_micro_batch
    candidates = [n for n in GROUP_SIZES if gpus % (n * nodes) == 0 and heads % n == 0]
    measured = {
        n: _measure_occupancy(steps, gpus, n, train.token_budget, train.shared_prefix) for n in candidates or [1]
    }
    if measured[1].sequences >= 2 * gpus:
        return 1
    return next(
        (n for n in measured if measured[n].efficiency >= TARGET_EFFICIENCY),
        max(measured, key=lambda n: measured[n].efficiency),
    )


@lru_cache(maxsize=256)
def _measure_occupancy(steps: Steps, gpus: int, group_size: int, budget: int, shared: bool) -> Occupancy:
    sums = [0.0] * 5
    groups_of_ranks = max(1, gpus // group_size)
    for groups, prefix, suffix in steps:
        batch = range(len(groups))
        items = sequences(batch, groups, prefix, suffix, budget=budget, shared=shared)
        layout = lay_out(batch, groups, prefix, suffix, world_size=groups_of_ranks, budget=budget, shared=shared)
        sums[0] += critical_path(layout) / group_size
        sums[1] += sum(item.tokens for item in items)
        sums[2] += len(items)
        sums[3] += max(map(sum, zip(prefix, suffix)))
        sums[4] += len(batch)
    path, tokens, count, longest, samples = (total / len(steps.groups) for total in sums)
    return Occupancy(gpus, path, tokens, count, longest, samples, group_size)


def recorded_steps(index: Path, train: schema.Train, seed: int) -> Steps | None:
    """Steps of a training's own record index in the sampler's order; None without an index, or without numpy."""
    if not index.is_file():  # before heavy imports
        return None
    try:
        import numpy as np

        with np.load(index) as archive:
            return sampled_steps({name: archive[name] for name in ("groups", "kinds", "prefix", "suffix")}, train, seed)
    except (ImportError, OSError, ValueError, KeyError, UserError):  # the training itself names the fault
        return None


def sampled_steps(index: Mapping[str, Any], train: schema.Train, seed: int) -> Steps:
    """Steps of a record index, whose columns are arrays, in the sampler's order.

    Raises UserError as `sampler.make_sampler` does.
    """
    from lumen_hpc.training import sampler

    groups, prefix, suffix = (index[name] for name in ("groups", "prefix", "suffix"))
    order = sampler.make_sampler(groups, index["kinds"], train, seed)
    # A short last step does not represent the others.
    whole = max(1, order.consumed(order.steps) // len(order.batch(0)))
    batches = [order.batch(step * whole // SAMPLED_STEPS) for step in range(min(SAMPLED_STEPS, whole))]
    columns = [tuple(tuple(column[step].tolist()) for step in batches) for column in (groups, prefix, suffix)]
    return Steps(columns[0], columns[1], columns[2], len(groups), recorded=True)


def stated_steps(train: schema.Train, workload: Workload) -> Steps:
    """Steps of the paper's mixture: images with a varying number of questions, in the sampler's order."""
    kinds = tuple(sorted(train.mixture.items()))
    return _draw_steps(workload, train.global_batch, kinds, train.questions_per_image if train.shared_prefix else 1)


@lru_cache(maxsize=64)
def _draw_steps(workload: Workload, global_batch: int, mixture: tuple[tuple[str, int], ...], max_per_set: int) -> Steps:
    rng = random.Random(0)
    pair_share = workload.pairs / workload.image_sets
    questions_per_set = (workload.samples - workload.pairs) / (workload.image_sets - workload.pairs)
    # (share of pairs, questions per image, samples per step); kinds without records take no part (`mixed_streams`).
    streams = [(pair_share, questions_per_set, global_batch)]
    if mixture:
        single, double = (0.0, 1.0), (1.0, 1.0)
        stream_of = {
            "diagnostic": (0.0, questions_per_set),
            "difference": double,
            "prediction": single,
            "outcome": single,
            "timeline": double,
        }
        streams = [(*stream_of[kind], count) for kind, count in mixture if workload.pairs or kind == "diagnostic"]
    # Large steps differ little from one another, and take longer.
    step_count = min(SAMPLED_STEPS, max(1, MAX_SAMPLES // sum(count for *_, count in streams)))
    steps: list[list[tuple[int, int]]] = [[] for _ in range(step_count)]  # (group, images) per sample
    number = 0
    for pairs, questions, count in streams:
        stream: list[tuple[int, int]] = []
        while len(stream) < step_count * count:
            number += 1
            pair = rng.random() < pairs
            times = 1 if pair else 1 + _poisson(questions - 1, rng)
            stream += [(number, 1 + pair)] * min(times, max_per_set or times)
        for k, step in enumerate(steps):
            step += stream[k * count : (k + 1) * count]
    return Steps(
        tuple(tuple(group for group, _ in step) for step in steps),
        tuple(tuple(images * workload.image_tokens for _, images in step) for step in steps),
        tuple((workload.text_tokens,) * len(step) for step in steps),
        workload.samples,
    )


def _poisson(mean: float, rng: random.Random) -> int:
    """A Poisson number (Knuth's product of uniform numbers)."""
    count, limit = 0, math.exp(-mean)
    product = rng.random()
    while product > limit:
        count += 1
        product *= rng.random()
    return count
