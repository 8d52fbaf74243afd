"""Paired tests, effect sizes and intervals of per-sample values.

Every measure here is a ratio of sums, part over whole (a mean has whole 1), so one bootstrap serves them all.
Questions of one patient are not independent, so intervals resample patients and the permutation test exchanges two
models' answers patient by patient; both are of the difference that the tables display. The Wilcoxon test is the
paper's: it treats questions as independent, and on correlated questions it rejects far more often than it states
(`benchmarks/significance.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
    """Pairs with equal values, which the test and the effect size leave out."""
    p: float
    effect: float
    """Matched-pairs rank-biserial correlation of the untied pairs, -1 to 1: positive where x is higher."""

    @property
    def untied(self) -> int:
        """Pairs that the test and the effect size are computed from."""
        return self.n - self.ties


def wilcoxon(x: np.ndarray, y: np.ndarray) -> Paired:
    """scipy's Wilcoxon signed-rank test (`method="auto"`) with its effect size; equal inputs have p 1 and effect 0.

    Differences tie where they are equal but for rounding: 0.3 - 0.1 and 0.5 - 0.3 differ in their last bit, and ranks
    that follow from such bits are no ranks. Of few pairs p is exact, as scipy's is after thousands of permutations one
    by one.
    Source: paper, section 2.5. Raises ValueError for unequal lengths or values that are not finite.
    """
    from scipy.stats import rankdata
    from scipy.stats import wilcoxon as test

    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or not np.isfinite(x - y).all():
        raise ValueError(f"wilcoxon takes paired finite values, not {x.shape} and {y.shape} or NaN")
    all_differences = np.round(x - y, _DECIMALS)
    differences = all_differences[all_differences != 0]
    if not differences.size:
        return Paired(len(x), len(x), 1.0, 0.0)
    ranks = rankdata(np.abs(differences))
    effect = float((ranks * np.sign(differences)).sum() / ranks.sum())
    if len(x) <= _MOST_EXACT_PAIRS:
        p = _exact_p(ranks, differences > 0)
    else:
        p = float(test(all_differences, alternative="two-sided", method="auto").pvalue)
    return Paired(len(x), len(x) - differences.size, p, effect)


_DECIMALS = 12
"""Of a difference: scores are ratios of small numbers, far more than this apart unless they are equal."""
_MOST_EXACT_PAIRS = 13
"""Pairs up to which scipy's p is exact, ties and equal values or not."""


def _exact_p(ranks: np.ndarray, higher: np.ndarray) -> float:
    """Two-sided p of the ranks' sum where `higher`, among all ways to divide the ranks between two sides."""
    doubled = np.rint(2 * ranks).astype(int)  # ranks of ties are halves
    ways = np.zeros(doubled.sum() + 1)  # by sum
    ways[0] = 1
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[:-rank]
    rank_sum = doubled[higher].sum()
    return min(1.0, 2 * float(min(ways[: rank_sum + 1].sum(), ways[rank_sum:].sum())) / 2 ** len(ranks))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in the order given."""
    order = sorted(range(len(p)), key=p.__getitem__)
    corrected, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected


class Interval(NamedTuple):
    """A value with its bootstrap interval; the bounds are None for fewer than `fewest_patients`, and where all
    are alike."""

    value: float | None
    low: float | None
    high: float | None


class Scale(NamedTuple):
    """The least and the most that a measure can be."""

    least: float
    most: float


UNIT = Scale(0.0, 1.0)


class Contrast(NamedTuple):
    """Two measures of the same samples to be compared: `one` minus `other` where `where` is true (bool [n])."""

    one: Column
    other: Column
    where: np.ndarray


class Clusters:
    """Samples grouped by patient; `names` gives each sample's patient."""

    def __init__(self, names: Sequence[Hashable]) -> None:
        index = {name: k for k, name in enumerate(dict.fromkeys(names))}
        self.of = np.array([index[name] for name in names], np.int64)
        self.count = len(index)

    def sums(self, column: Column, where: np.ndarray | None = None) -> np.ndarray:
        """A column's parts and wholes summed by patient, float64 [patients, 2]."""
        return np.stack([
            np.bincount(self.of, side if where is None else np.where(where, side, 0), minlength=self.count)
            for side in column
        ], axis=1)  # fmt: skip

    def draw(self, resamples: int, seed: int) -> np.ndarray:
        """How often each patient is drawn with replacement, uint16 [resamples, patients]."""
        rng = np.random.default_rng(seed)
        counts: np.ndarray = np.zeros((resamples, self.count), np.uint16)
        for row in counts:
            row[:] = np.bincount(rng.integers(self.count, size=self.count), minlength=self.count)
        return counts


class ClusterPermutation:
    """Two-sided permutation tests of displayed differences, exact under exchange of two models patient by patient.

    A permutation exchanges all of one patient's answers between the two models and recomputes the difference of the
    measure (a ratio of sums, as displayed). p = (1 + permutations at least as extreme) / (1 + permutations), so the
    smallest p is 1 / (1 + `permutations`). All contrasts see the same permutations.
    """

    _CHUNK = 4096  # permutations at a time: bounds memory at chunk x (patients + 16 x contrasts) bytes

    def __init__(self, names: Sequence[Hashable], permutations: int, seed: int) -> None:
        self._clusters, self._permutations, self._seed = Clusters(names), permutations, seed

    def p(self, contrasts: Sequence[Contrast]) -> list[float]:
        """The p-value of each contrast, in order; 1 where the two are the same."""
        if not contrasts:
            return []
        pairs = [
            [self._clusters.sums(column, contrast.where) for column in (contrast.one, contrast.other)]
            for contrast in contrasts
        ]
        ours, theirs = (np.concatenate([pair[side] for pair in pairs], axis=1) for side in (0, 1))
        # What a patient adds to `one`'s sums, and takes from `other`'s, if exchanged; [patients, 2 x tests].
        exchange, total_one, total_other = theirs - ours, ours.sum(0), theirs.sum(0)
        observed = np.abs(_ratio(total_one) - _ratio(total_other))
        extreme: np.ndarray = np.zeros(len(contrasts), np.int64)
        rng = np.random.default_rng([self._seed, 0xF11])
        for start in range(0, self._permutations, self._CHUNK):
            count = min(self._CHUNK, self._permutations - start)
            exchanged = _product(rng.integers(0, 2, (count, self._clusters.count), np.int8), exchange)
            gap = np.abs(_ratio(total_one + exchanged) - _ratio(total_other - exchanged))
            extreme += (gap >= observed - 1e-9).sum(0)
        return [(1 + int(count)) / (1 + self._permutations) for count in extreme]


_BLOCK = 1 << 20
"""Numbers that are held as float64 at a time; a whole demo's are fewer."""


def _product(counts: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`counts` (integers [n, k]) @ `columns` (float64 [k, m]), without all of `counts` as float64 at once."""
    rows = max(1, _BLOCK // max(1, counts.shape[1]))
    if len(counts) <= rows:
        return counts.astype(np.float64) @ columns
    return np.concatenate([counts[k : k + rows].astype(np.float64) @ columns for k in range(0, len(counts), rows)])


def _ratio(sums: np.ndarray) -> np.ndarray:
    """part / whole of sums laid out as part, whole, part, whole … along the last axis; 0 where the whole is 0."""
    part, whole = sums[..., 0::2], sums[..., 1::2]
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def exact_bound(patients: int, confidence: float) -> float:
    """How far a proportion may be from 0 or 1 if none of `patients` showed otherwise (Clopper-Pearson).

    Patients, not questions, are the sample: questions of one patient may all agree for one reason.
    """
    return 1 - ((1 - confidence) / 2) ** (1 / patients)


@lru_cache(maxsize=1024)
def tail_of(patients: int, confidence: float) -> float:
    """The share of resamples beyond either bound of an interval over so many patients.

    A percentile interval of n patients is too narrow by sqrt((n - 1) / n), and by a normal quantile in place of
    Student's (Hesterberg, The American Statistician 69, 2015): 20 patients have 1.6 % in place of 2.5 %.
    """
    from scipy.stats import norm, t

    return float(norm.cdf(math.sqrt(patients / (patients - 1)) * t.ppf((1 - confidence) / 2, patients - 1)))


@lru_cache(maxsize=1024)
def fewest_patients(confidence: float) -> int:
    """How many patients an interval takes: with fewer, one of them drawn every time is likelier than the tail.

    The bounds would be the least and the most patient, whatever the confidence. Of patients from a normal distribution
    they hold the true mean in 50 % (2 patients), 77 % (3) or 87 % (4), and not in 95 %.
    """
    return next(patients for patients in itertools.count(2) if tail_of(patients, confidence) >= patients**-patients)


class ClusterBootstrap:
    """Resamples of patients, drawn once, so that every measure and model sees the same ones.

    `names` gives each sample's patient. Memory: resamples x patients x 2 bytes.
    """

    def __init__(self, names: Sequence[Hashable], resamples: int, seed: int, confidence: float = 0.95) -> None:
        self._clusters = Clusters(names)
        self._weights = self._clusters.draw(resamples, seed)
        self._confidence = confidence
        self._resample_cache: dict[bytes, np.ndarray] = {}

    def interval(self, column: Column, where: np.ndarray | None = None, scale: Scale = UNIT) -> Interval:
        """The measure over the samples where `where` (bool [n]) is true, and its interval.

        A measure at an end of its `scale` has nothing to resample, so its interval is the exact one (`exact_bound`).
        """
        sums = self._clusters.sums(column, where)
        value = column.mean(slice(None) if where is None else where)
        return self._exact(value, sums, scale) or self._bounds(value, self._resampled(sums), sums)

    def difference(self, one: Column, other: Column, where: np.ndarray | None = None, scale: Scale = UNIT) -> Interval:
        """`one` minus `other` on the same samples, paired in every resample.

        Where both are at an end of their `scale`, the bounds are those of their exact intervals.
        """
        here = slice(None) if where is None else where
        ours, theirs = one.mean(here), other.mean(here)
        value = None if ours is None or theirs is None else ours - theirs
        sums = [self._clusters.sums(column, where) for column in (one, other)]
        first, second = (self._exact(v, s, scale) for v, s in zip((ours, theirs), sums, strict=True))
        if first and second:
            return Interval(value, first.low - second.high, first.high - second.low)  # type: ignore[operator]
        return self._bounds(value, self._resampled(sums[0]) - self._resampled(sums[1]), *sums)

    def _exact(self, value: float | None, sums: np.ndarray, scale: Scale) -> Interval | None:
        """The exact interval of a measure that is at one end of its scale in every patient; None for any other."""
        part, whole = sums[sums[:, 1] > 0].T
        if value is None or len(whole) < 2:
            return None
        bound = (scale.most - scale.least) * exact_bound(len(whole), self._confidence)
        if np.array_equal(part, scale.least * whole):
            return Interval(value, scale.least, scale.least + bound)
        return Interval(value, scale.most - bound, scale.most) if np.array_equal(part, scale.most * whole) else None

    def _resampled(self, sums: np.ndarray) -> np.ndarray:
        """The measure in every resample, NaN where it does not apply; kept, since cells and differences share it."""
        key = hashlib.sha256(sums.tobytes()).digest()
        if key not in self._resample_cache:
            used = np.flatnonzero(sums[:, 1])
            weights = self._weights if len(used) == self._clusters.count else self._weights[:, used]
            part, whole = _product(weights, sums[used]).T
            self._resample_cache[key] = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
        return self._resample_cache[key]

    def _bounds(self, value: float | None, resampled: np.ndarray, *sums: np.ndarray) -> Interval:
        """The interval of resampled values, for as many patients as the measures of these sums apply to.

        Where all patients are alike nothing says how much others would differ: an interval without width claims that.
        """
        resampled, patients = resampled[np.isfinite(resampled)], min(np.count_nonzero(it[:, 1]) for it in sums)
        is_enough = patients >= fewest_patients(self._confidence)
        if value is None or not is_enough or not resampled.size or np.ptp(resampled) < 1e-12:
            return Interval(value, None, None)
        tail = tail_of(patients, self._confidence)
        low, high = (float(np.quantile(resampled, at)) for at in (tail, 1 - tail))
        return Interval(value, low, high)
