"""How well probabilities rank and how large their error is: AUROC, AUPRC and Brier score with intervals over patients.

All take weights, so that one bootstrap serves them: a resample of patients is a weight for every sample. Values are
those of scikit-learn (`roc_auc_score`, `average_precision_score`, `brier_score_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from lumen_hpc.metrics.significance import Clusters, Interval, fewest_patients, tail_of

Array = np.ndarray
BLOCK = 64
"""Resamples computed at a time."""


Measure = Callable[[Array, Array, Array], Array]
"""(outcome bool [n], probability [n], weights [resamples, n]) → values [resamples], NaN where undefined."""


def auroc(outcome: Array, probability: Array, weights: Array) -> Array:
    """Area under the ROC curve; a tie counts half."""
    positive, negative = by_value(outcome, probability, weights)
    below = np.cumsum(negative, axis=1) - negative / 2
    return _ratio((positive * below).sum(1), positive.sum(1) * negative.sum(1))


def auprc(outcome: Array, probability: Array, weights: Array) -> Array:
    """Average precision: the step-wise area under the precision-recall curve."""
    positive, negative = (side[:, ::-1] for side in by_value(outcome, probability, weights))
    true_positives, flagged = np.cumsum(positive, axis=1), np.cumsum(positive + negative, axis=1)
    return _ratio((positive * _ratio(true_positives, flagged, 0.0)).sum(1), positive.sum(1))


def brier(outcome: Array, probability: Array, weights: Array) -> Array:
    """Mean squared error of the probabilities."""
    return _ratio(weights @ (probability - outcome) ** 2, weights.sum(1))


def brier_skill(outcome: Array, probability: Array, weights: Array) -> Array:
    """1 minus the Brier score over that of the samples' own prevalence; 0 is no skill."""
    prevalence = _ratio(weights @ outcome.astype(float), weights.sum(1))
    return 1 - _ratio(brier(outcome, probability, weights), prevalence * (1 - prevalence))


MEASURES: dict[str, Measure] = {"auroc": auroc, "auprc": auprc, "brier": brier, "brier skill": brier_skill}


def by_value(outcome: Array, probability: Array, weights: Array) -> tuple[Array, Array]:
    """Weight of the positive and of the negative samples at each distinct probability, rising; [resamples, values]."""
    order = np.argsort(probability, kind="stable")
    values = probability[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    sorted_weights = weights[:, order]
    positive = np.add.reduceat(sorted_weights * outcome[order], starts, axis=1)
    return positive, np.add.reduceat(sorted_weights, starts, axis=1) - positive


def _ratio(part: Array, whole: Array, empty: float = np.nan) -> Array:
    return np.divide(part, whole, out=np.full(np.shape(whole), empty, float), where=whole > 0)


class Resamples:
    """Resamples of patients as weights of samples, drawn once, so that every row of a table sees the same ones."""

    def __init__(self, patients: Sequence[Hashable], count: int, seed: int, confidence: float = 0.95) -> None:
        clusters = Clusters(patients)
        self._patient, self._counts = clusters.of, clusters.draw(count, seed)
        self._confidence = confidence

    def values(self, measure: Measure, outcome: Array, probability: Array, where: Array | None = None) -> Array:
        """The measure in every resample, of the samples where `where` is true; float64 [resamples]."""
        mask = np.ones(len(outcome), bool) if where is None else where
        y, p, patient = outcome[mask], probability[mask], self._patient[mask]
        blocks = (self._counts[start : start + BLOCK] for start in range(0, len(self._counts), BLOCK))
        return np.concatenate([measure(y, p, block[:, patient].astype(float)) for block in blocks])

    def interval(self, measure: Measure, outcome: Array, probability: Array, where: Array | None = None) -> Interval:
        """The measure and its interval."""
        resampled = self.values(measure, outcome, probability, where)
        scarcest = self.scarcest(outcome, where)
        return self.interval_around(value(measure, outcome, probability, where), resampled, scarcest)

    def difference(self, measure: Measure, outcome: Array, one: Array, other: Array) -> tuple[Interval, float]:
        """`one` minus `other`, paired in every resample, and the two-sided p of no difference."""
        resampled = self.values(measure, outcome, one) - self.values(measure, outcome, other)
        difference = value(measure, outcome, one) - value(measure, outcome, other)
        resampled = resampled[np.isfinite(resampled)]
        tail = (1 + min((resampled <= 0).sum(), (resampled >= 0).sum())) / (1 + len(resampled))
        interval = self.interval_around(difference, resampled, self.scarcest(outcome))
        return interval, float(min(1.0, 2 * tail))

    def scarcest(self, outcome: Array, where: Array | None = None) -> int:
        """How many patients have the rarer outcome, among the samples where `where` is true."""
        mask = np.ones(len(outcome), bool) if where is None else where
        return min(len(np.unique(self._patient[mask & side])) for side in (outcome, ~outcome))

    def interval_around(self, point: float, resampled: Array, scarcest: int) -> Interval:
        """The interval of resampled values around a point estimate, with the tails of Student's t.

        How well cases are told from others is known as well as the rarer of the two allow: `scarcest` patients. It has
        no bounds where these are too few, or no resample differs, as with an AUROC of 1: their width would be 0.
        """
        finite = resampled[np.isfinite(resampled)]
        if not np.isfinite(point) or not len(finite):
            return Interval(None, None, None)
        if np.ptp(finite) < 1e-12 or scarcest < fewest_patients(self._confidence):
            return Interval(float(point), None, None)
        tail = tail_of(scarcest, self._confidence)
        low, high = (float(np.quantile(finite, q)) for q in (tail, 1 - tail))
        return Interval(float(point), low, high)


def value(measure: Measure, outcome: Array, probability: Array, where: Array | None = None) -> float:
    """The measure of the samples as they are; NaN where undefined."""
    mask = np.ones(len(outcome), bool) if where is None else where
    return float(measure(outcome[mask], probability[mask], np.ones((1, int(mask.sum()))))[0])
