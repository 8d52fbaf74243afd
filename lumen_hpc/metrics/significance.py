"""Paired tests, effect sizes and intervals of per-sample values.

Every measure here is a ratio of sums, part over whole (a mean has whole 1), so one bootstrap serves them all.
Questions of one patient are not independent: intervals resample patients. The Wilcoxon test, kept because the
paper uses it, treats questions as independent; read its p beside the interval of the difference.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Column(NamedTuple):
    """One measure over n samples: its value over any of them is `part.sum() / whole.sum()`.

    `whole` is 0 where the measure does not apply; both float64 [n].
    """

    part: np.ndarray
    whole: np.ndarray

    def mean(self, where: np.ndarray | slice = slice(None)) -> float | None:
        """The value over some samples; None if it applies to none of them."""
        whole = self.whole[where].sum()
        return float(self.part[where].sum() / whole) if whole else None

    def applies(self) -> np.ndarray:
        """Where it applies, bool [n]."""
        return self.whole > 0

    def values(self) -> np.ndarray:
        """Per-sample values, NaN where it does not apply."""
        return np.divide(self.part, self.whole, out=np.full(len(self.part), np.nan), where=self.whole > 0)


@dataclass(frozen=True)
class Paired:
    """Two-sided Wilcoxon signed-rank test of x against y."""

    n: int
    """Pairs."""
    ties: int
    """Pairs with equal values, which the test leaves out."""
    p: float
    effect: float
    """Matched-pairs rank-biserial correlation, -1 to 1: positive where x is higher."""


def wilcoxon(x: np.ndarray, y: np.ndarray) -> Paired:
    """scipy's Wilcoxon signed-rank test (`method="auto"`) with its effect size; equal inputs have p 1 and effect 0.

    Source: paper, section 2.5. Raises ValueError for unequal lengths or values that are not finite.
    """
    from scipy.stats import rankdata
    from scipy.stats import wilcoxon as test

    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or not np.isfinite(x - y).all():
        raise ValueError(f"wilcoxon takes paired finite values, not {x.shape} and {y.shape} or NaN")
    differences = (x - y)[x != y]
    if not differences.size:
        return Paired(len(x), len(x), 1.0, 0.0)
    ranks = rankdata(np.abs(differences))
    effect = float((ranks * np.sign(differences)).sum() / ranks.sum())
    p = float(test(x, y, alternative="two-sided", method="auto").pvalue)
    return Paired(len(x), len(x) - differences.size, p, effect)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in the order given."""
    order = sorted(range(len(p)), key=p.__getitem__)
    corrected, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected


class Interval(NamedTuple):
    """A value with its percentile bootstrap interval; the bounds are None where there is nothing to resample."""

    value: float | None
    low: float | None
    high: float | None


class ClusterBootstrap:
    """Resamples of patients, drawn once, so that every measure and model sees the same ones.

    `clusters` names each sample's patient. Memory: resamples x patients x 2 bytes.
    """

    def __init__(self, clusters: Sequence[Hashable], resamples: int, seed: int, confidence: float = 0.95) -> None:
        names = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
        self._of = np.array([names[name] for name in clusters], np.int64)
        self._clusters = len(names)
        rng = np.random.default_rng(seed)
        # How often each patient was drawn, uint16 [resamples, patients].
        self._weights: np.ndarray = np.zeros((resamples, self._clusters), np.uint16)
        for row in self._weights:
            row[:] = np.bincount(rng.integers(self._clusters, size=self._clusters), minlength=self._clusters)
        self._tail = (1 - confidence) / 2

    def interval(self, column: Column, where: np.ndarray | None = None) -> Interval:
        """The measure over the samples where `where` (bool [n]) is true, and its interval."""
        value = column.mean(slice(None) if where is None else where)
        return self._bounds(value, self._resampled(column, where))

    def difference(self, one: Column, other: Column, where: np.ndarray | None = None) -> Interval:
        """`one` minus `other` on the same samples, paired in every resample."""
        here = slice(None) if where is None else where
        ours, theirs = one.mean(here), other.mean(here)
        value = None if ours is None or theirs is None else ours - theirs
        return self._bounds(value, self._resampled(one, where) - self._resampled(other, where))

    def _resampled(self, column: Column, where: np.ndarray | None) -> np.ndarray:
        sums = np.stack([
            np.bincount(self._of, side if where is None else np.where(where, side, 0), minlength=self._clusters)
            for side in column
        ], axis=1)  # fmt: skip
        used = np.flatnonzero(sums[:, 1])
        part, whole = (self._weights[:, used].astype(np.float64) @ sums[used]).T
        return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)

    def _bounds(self, value: float | None, resampled: np.ndarray) -> Interval:
        resampled = resampled[np.isfinite(resampled)]
        if value is None or self._clusters < 2 or not resampled.size:
            return Interval(value, None, None)
        low, high = (float(np.quantile(resampled, at)) for at in (self._tail, 1 - self._tail))
        return Interval(value, low, high)
