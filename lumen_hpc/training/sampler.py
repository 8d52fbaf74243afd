"""Chooses the samples of each optimizer step: a pure function of the seed and the step.

The order does not depend on the number of ranks, so a run may continue with another one, and the number of steps done
is the only state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lumen_hpc.config import schema
from lumen_hpc.errors import UserError


class Stream:
    """An endless seeded sequence of sample ids: one permutation per epoch.

    Samples about the same images stay together in runs of at most `max_run_length`, so that they can share their
    images' tokens; the runs are permuted.
    """

    def __init__(self, ids: np.ndarray, groups: np.ndarray, *, max_run_length: int, seed: tuple[int, ...]) -> None:
        """`ids`, `groups`: [n] int, the latter equal for samples with equal images; `max_run_length`: 0 is no limit."""
        order = np.argsort(groups, kind="stable")
        ids, groups = np.asarray(ids)[order], np.asarray(groups)[order]
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(ids) else np.zeros(0, int)
        sizes = np.diff(np.r_[starts, len(ids)])
        if max_run_length:
            pieces = -(-sizes // max_run_length)
            first: np.ndarray = np.repeat(np.r_[0, np.cumsum(pieces)[:-1]], pieces) if len(pieces) else np.zeros(0, int)
            starts = np.repeat(starts, pieces) + (np.arange(pieces.sum()) - first) * max_run_length
            sizes = np.diff(np.r_[starts, len(ids)])
        self._ids, self._starts, self._sizes, self._seed = ids, starts, sizes, seed
        self._epochs: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def _epoch(self, epoch: int) -> np.ndarray:
        """The ids in the order of this epoch, [n] int."""
        if epoch not in self._epochs:
            runs = np.random.default_rng((*self._seed, epoch)).permutation(len(self._starts))
            starts, sizes = self._starts[runs], self._sizes[runs]
            offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            self._epochs = {k: v for k, v in self._epochs.items() if k == epoch - 1}
            self._epochs[epoch] = self._ids[np.repeat(starts, sizes) + offsets]
        return self._epochs[epoch]

    def take(self, start: int, stop: int) -> list[int]:
        """The ids at positions `start` to `stop` of the endless sequence."""
        ids: list[int] = []
        while start < stop:
            epoch, within = divmod(start, len(self))
            end = min(len(self), within + stop - start)
            ids += self._epoch(epoch)[within:end].tolist()
            start += end - within
        return ids


@dataclass(frozen=True)
class Sampler:
    """The samples of every step of a training."""

    streams: tuple[tuple[Stream, int], ...]
    """Each stream with the number of samples that a step takes from it."""
    total: int | None
    """Samples of the whole training, whose last step may be a short one; None: `steps` full steps."""
    steps: int

    def batch(self, step: int) -> list[int]:
        """The sample ids of `step` (from 0), the whole global batch."""
        ids: list[int] = []
        for stream, count in self.streams:
            stop = (step + 1) * count
            ids += stream.take(step * count, stop if self.total is None else min(stop, self.total))
        return ids

    def consumed(self, step: int) -> int:
        """Samples taken before `step`."""
        samples = step * sum(count for _, count in self.streams)
        return samples if self.total is None else min(samples, self.total)


def make_sampler(groups: np.ndarray, kinds: np.ndarray, settings: schema.Train, seed: int) -> Sampler:
    """The order of samples under these settings; `groups` and `kinds` [samples] as in the record index."""
    longest = settings.questions_per_image if settings.shared_prefix else 1
    if settings.mixture:
        mixture = dict(settings.mixture)
        return mixed_streams(groups, kinds, mixture, steps=settings.steps, max_run_length=longest, seed=seed)
    return single_stream(
        groups, global_batch=settings.global_batch, epochs=settings.epochs, steps=settings.steps,
        max_run_length=longest, seed=seed,
    )  # fmt: skip


def single_stream(
    groups: np.ndarray, *, global_batch: int, epochs: float, steps: int, max_run_length: int, seed: int
) -> Sampler:
    """One stream of all samples: `epochs` passes with every sample once in each.

    The last step takes the rest. `groups` [samples] int is equal for equal images; a positive `steps` replaces
    `epochs`. Raises UserError if these make no sample.
    """
    stream = Stream(np.arange(len(groups)), groups, max_run_length=max_run_length, seed=(seed,))
    total = steps * global_batch if steps else round(len(groups) * epochs)
    if not total:
        raise UserError(f"train.epochs={epochs:g} of {len(groups)} records is no sample; give more, or train.steps=N")
    return Sampler(((stream, global_batch),), total, math.ceil(total / global_batch))


def mixed_streams(
    groups: np.ndarray, kinds: np.ndarray, mixture: dict[str, int], *, steps: int, max_run_length: int, seed: int
) -> Sampler:
    """A fixed number of samples of each kind per step; every kind has its own stream.

    `kinds` [samples] holds names of `mixture`. Kinds without records are left out (the diagnostic model trains with the
    same settings). Raises UserError for a kind of the records that `mixture` does not name.
    """
    present_kinds = set(np.unique(kinds).tolist())
    if unnamed_kinds := sorted(present_kinds - set(mixture)):
        raise UserError(
            f"train.mixture={mixture} has no entry for the kinds {unnamed_kinds} in the records: "
            "give each a number of samples a step, or empty the mixture"
        )
    if not steps:
        raise UserError(
            "train.mixture mixes kinds that end at different times: set the number of steps with train.steps"
        )
    entries = [(kind, count) for kind, count in mixture.items() if kind in present_kinds and count]
    if not entries:
        raise UserError(
            f"train.mixture={mixture}: a step would have no sample, of records of the kinds {sorted(present_kinds)}; "
            "give one of these a number above 0"
        )
    ids = np.arange(len(groups))
    # The kind's name seeds its stream, so that one kind's order does not depend on the others.
    streams = tuple(
        (
            Stream(
                ids[kinds == kind], groups[kinds == kind], max_run_length=max_run_length, seed=(seed, *kind.encode())
            ),
            count,
        )
        for kind, count in entries
    )
    return Sampler(streams, None, steps)
