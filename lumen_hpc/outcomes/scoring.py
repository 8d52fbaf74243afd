"""Scores of an outcome's probabilities, as prognostic models are scored, beside every rival, on the test split.

Each row: AUROC, AUPRC and Brier score with intervals over patients; calibration slope and intercept, before and after
recalibration on the val split; the calibration and decision curves; operating points at fixed sensitivity; each
subgroup and the gap between the best and the worst; and the paired difference to the strongest rival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lumen_hpc.metrics.significance import Interval, holm
from lumen_hpc.outcomes import calibration, discrimination
from lumen_hpc.outcomes.discrimination import MEASURES, Resamples
from lumen_hpc.outcomes.features import Cohort, grouped

Array = np.ndarray
SENSITIVITIES = (0.8, 0.9)
SMALLEST = 20
"""A subgroup with fewer test patients has no row."""
FEWEST_EVENTS = 5
"""With fewer events, or non-events, nothing is judged."""


def answered_by_all(rows: Mapping[str, Array]) -> Array:
    """bool [n]: the samples for which every row has a probability, on which all are judged."""
    return np.all([np.isfinite(p) for p in rows.values()], axis=0)


def score(
    cohort: Cohort, rivals: Mapping[str, Array], models: Mapping[str, Array], *, resamples: int, seed: int,
    confidence: float = 0.95, pairs: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """The whole table of one outcome.

    `rivals` and `models`: row → probability of every sample, NaN where a model gave none; a row is judged on the test
    patients for whom all rows have one, so that every row sees the same. `strongest` names the rival with the highest
    AUROC on the test split itself: the hardest choice for a model to beat. `pairs` are further rows to compare, each
    against the other. `unjudged` says why there are no rows.
    """
    rows = {**rivals, **models}
    answered = answered_by_all(rows)
    test, val = answered & (cohort.split == "test"), cohort.split == "val"
    outcome = cohort.outcome[test]
    events = int(outcome.sum())
    found: dict[str, Any] = {
        "patients": int(test.sum()), "events": events, "unanswered": int((~answered & (cohort.split == "test")).sum()),
        "train": int((cohort.split == "train").sum()), "val": int(val.sum()),
    }  # fmt: skip
    if min(events, len(outcome) - events) < FEWEST_EVENTS:
        return {**found, "unjudged": f"fewer than {FEWEST_EVENTS} patients with or without the outcome"}
    drawn = Resamples([patient for patient, here in zip(cohort.patient, test) if here], resamples, seed, confidence)
    found["rows"] = {
        name: {"model": name in models, **_row(outcome, p[test], drawn, (cohort.outcome[seen], p[seen]))}
        for name, p in rows.items()
        for seen in [val & np.isfinite(p)]
    }
    strongest = max(rivals, key=lambda name: found["rows"][name]["auroc"].value or 0)
    found["strongest"] = strongest
    found["differences"] = {
        name: _differences(outcome, p[test], rivals[strongest][test], drawn) for name, p in models.items()
    }
    corrected = holm([pair["p"] for pair in found["differences"].values()])
    for pair, p in zip(found["differences"].values(), corrected):
        pair["p (Holm)"] = p
    found["pairs"] = [
        {"row": one, "against": other, **_differences(outcome, rows[one][test], rows[other][test], drawn)}
        for one, other in pairs
        if one in rows and other in rows
    ]
    found["subgroups"] = {
        name: {kind: _subgroups(outcome, rows[name][test], _part(labels, test), drawn)
               for kind, labels in cohort.subgroups.items()}
        for name in (*models, strongest)
    }  # fmt: skip
    return found


def _row(outcome: Array, p: Array, drawn: Resamples, val: tuple[Array, Array]) -> dict[str, Any]:
    """Everything about one row's probabilities on the test patients."""
    row: dict[str, Any] = {name: drawn.interval(measure, outcome, p) for name, measure in MEASURES.items()}
    line = calibration.fit(outcome, p)
    row["slope"] = _resampled_slope(outcome, p, drawn)
    row["intercept"] = _finite(line.intercept)
    row["in the large"] = _finite(calibration.in_the_large(outcome, p))
    row["calibration"] = calibration.curve(outcome, p)
    row["decision"] = calibration.decision_curve(outcome, p)
    row["operating"] = [calibration.operating_point(outcome, p, sensitivity) for sensitivity in SENSITIVITIES]
    learned = calibration.fit(*val) if len(val[0]) else calibration.Line(np.nan, np.nan)
    if np.isfinite(learned.slope):
        again = learned.apply(p)
        row["recalibrated"] = {
            "slope": _finite(calibration.fit(outcome, again).slope),
            "in the large": _finite(calibration.in_the_large(outcome, again)),
            "brier": drawn.interval(discrimination.brier, outcome, again),
            "decision": calibration.decision_curve(outcome, again),
        }
    return row


def _resampled_slope(outcome: Array, p: Array, drawn: Resamples) -> Interval:
    """The calibration slope with its interval."""

    def slope(y: Array, q: Array, weights: Array) -> Array:
        return np.array([calibration.fit(y, q, weight).slope for weight in weights])

    return drawn.interval(slope, outcome, p)


def _differences(outcome: Array, p: Array, rival: Array, drawn: Resamples) -> dict[str, Any]:
    auroc, chance = drawn.difference(discrimination.auroc, outcome, p, rival)
    brier, _ = drawn.difference(discrimination.brier, outcome, p, rival)
    return {"auroc": auroc, "p": chance, "brier": brier}


def _subgroups(outcome: Array, p: Array, labels: list[str], drawn: Resamples) -> dict[str, Any]:
    """AUROC and observed over expected of each subgroup, and the largest gap of AUROC with its interval."""
    parts = {
        label: where
        for label, where in grouped(labels, SMALLEST)
        if min(outcome[where].sum(), (~outcome[where]).sum()) >= FEWEST_EVENTS
    }
    found: dict[str, Any] = {
        "parts": {
            label: {
                "patients": int(where.sum()),
                "events": int(outcome[where].sum()),
                "auroc": drawn.interval(discrimination.auroc, outcome, p, where),
                "observed over expected": float(outcome[where].sum() / p[where].sum()),
            }
            for label, where in parts.items()
        }
    }
    if len(parts) > 1:
        values = {label: found["parts"][label]["auroc"].value for label in parts}
        best, worst = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
        resampled = [drawn.values(discrimination.auroc, outcome, p, parts[label]) for label in (best, worst)]
        gap = drawn.around(values[best] - values[worst], resampled[0] - resampled[1])
        found["gap"] = {"best": best, "worst": worst, "auroc": gap}
    return found


def _part(labels: Any, where: Array) -> list[str]:
    return [label for label, here in zip(labels, where) if here]


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
