"""Whether probabilities mean what they say, and what they are good for at a threshold.

Calibration slope and intercept by logistic regression on the logit (Cox, 1958; slope 1 and intercept 0 are perfect),
recalibration on the validation split, decision curves (Vickers and Elkin, 2006), and operating points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lumen_hpc.outcomes.discrimination import Measure, by_value
from lumen_hpc.proportions import wilson

Array = np.ndarray
LOGIT_MARGIN = 1e-6
"""Probabilities are clipped this far from 0 and 1 before their logit is taken."""


class Line(NamedTuple):
    """logit of the outcome = intercept + slope * logit of the prediction."""

    slope: float
    intercept: float

    def apply(self, probability: Array) -> Array:
        """Recalibrated probabilities."""
        return 1 / (1 + np.exp(-(self.intercept + self.slope * logit(probability))))


def logit(probability: Array) -> Array:
    p = np.clip(probability, LOGIT_MARGIN, 1 - LOGIT_MARGIN)
    return np.log(p / (1 - p))


def fit(outcome: Array, probability: Array, weights: Array | None = None) -> Line:
    """Slope and intercept of the recalibration line, by maximum likelihood.

    NaN where there is no maximum, as with a single class or a single prediction.
    """
    x: Array = logit(probability)
    y: Array = outcome.astype(float)
    weight: Array = np.ones(len(outcome)) if weights is None else weights
    if len(np.unique(y[weight > 0])) < 2 or np.ptp(x[weight > 0]) < 1e-9:
        return Line(np.nan, np.nan)
    design, coefficients = np.stack([np.ones_like(x), x], axis=1), np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ coefficients, -35, 35)))
        information = design.T @ (design * (weight * p * (1 - p))[:, None])
        try:
            step = np.linalg.solve(information, design.T @ (weight * (y - p)))
        except np.linalg.LinAlgError:  # the predictions separate the outcomes
            return Line(np.nan, np.nan)
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-10:
            return Line(float(coefficients[1]), float(coefficients[0]))
    return Line(np.nan, np.nan)


def in_the_large(outcome: Array, probability: Array, weights: Array | None = None) -> Array:
    """The intercept with the slope held at 1: above 0, the stated risks are too low. NaN with one class alone.

    One for every row of `weights` [resamples, n]; by default one, of the samples as they are.
    """
    y: Array = outcome.astype(float)
    x = logit(probability)
    weight: Array = np.ones((1, len(y))) if weights is None else weights
    events, total = weight @ y, weight.sum(1)
    both = (events > 0) & (events < total)
    shift: Array = np.zeros(len(weight))
    for _ in range(100):
        p = 1 / (1 + np.exp(-(x + shift[:, None])))
        information = np.where(both, (weight * p * (1 - p)).sum(1), 1.0)
        step = np.where(both, (events - (weight * p).sum(1)) / information, 0.0)
        shift = shift + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-12:
            break
    return np.where(both, shift, np.nan)


def observed_over_expected(outcome: Array, probability: Array, weights: Array) -> Array:
    """Cases for each case that the probabilities promise; above 1, the stated risks are too low."""
    expected = weights @ probability
    return np.divide(weights @ outcome.astype(float), expected, out=np.full(len(weights), np.nan), where=expected > 0)


def at_sensitivity(sensitivity: float, name: str) -> Measure:
    """`specificity` or `number_needed` at the highest threshold that reaches a sensitivity, as `operating_point` has
    them; the threshold is chosen anew in every resample."""

    def measure(outcome: Array, probability: Array, weights: Array) -> Array:
        positive, negative = (side[:, ::-1] for side in by_value(outcome, probability, weights))
        cases, others = positive.sum(1), negative.sum(1)
        true_positives, false_positives = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
        reached = true_positives >= (sensitivity * cases)[:, None] - 1e-9
        at = np.arange(len(weights)), reached.argmax(1)
        true, false = true_positives[at], false_positives[at]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(cases > 0, 1 - false / others if name == "specificity" else (true + false) / true, np.nan)

    return measure


def curve(outcome: Array, probability: Array, parts: int = 10) -> list[dict[str, float]]:
    """Observed against predicted risk in equal parts of the samples: predicted, observed, low, high (Wilson), n."""
    points = []
    for part in np.array_split(np.argsort(probability, kind="stable"), min(parts, len(outcome))):
        events = int(outcome[part].sum())
        low, high = wilson(events, len(part))
        points.append({
            "predicted": float(probability[part].mean()), "observed": events / len(part), "low": low, "high": high,
            "n": len(part),
        })  # fmt: skip
    return points


THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def decision_curve(
    outcome: Array, probability: Array, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float]]:
    """Net benefit of acting above each threshold, beside acting on everyone (`all`); on nobody it is 0."""
    n, prevalence, points = len(outcome), float(outcome.mean()), []
    for threshold in thresholds:
        odds, flagged = threshold / (1 - threshold), probability >= threshold
        benefit = (outcome & flagged).sum() / n - (~outcome & flagged).sum() / n * odds
        points.append({"threshold": threshold, "model": float(benefit), "all": prevalence - (1 - prevalence) * odds})
    return points


def operating_point(outcome: Array, probability: Array, sensitivity: float) -> dict[str, Any]:
    """At the highest threshold that reaches a sensitivity: threshold, sensitivity, specificity, ppv, npv, and how many
    patients are flagged for one true case (`number_needed`)."""
    cases = np.sort(probability[outcome])[::-1]
    threshold = float(cases[int(np.ceil(sensitivity * len(cases) - 1e-9)) - 1])
    flagged = probability >= threshold
    true_positives, false_positives = int((flagged & outcome).sum()), int((flagged & ~outcome).sum())
    negatives, false_negatives = int((~outcome).sum()), int((~flagged & outcome).sum())
    true_negatives = negatives - false_positives
    unflagged = true_negatives + false_negatives
    return {
        "threshold": threshold,
        "sensitivity": true_positives / len(cases),
        "specificity": true_negatives / negatives if negatives else None,
        "ppv": true_positives / (true_positives + false_positives),
        "npv": true_negatives / unflagged if unflagged else None,
        "number_needed": (true_positives + false_positives) / true_positives,
    }
