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
SMALLEST_SUBGROUP = 20
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
    answered_mask = answered_by_all(rows)
    test, val = answered_mask & (cohort.split == "test"), cohort.split == "val"
    outcome = cohort.outcome[test]
    events = int(outcome.sum())
    table: dict[str, Any] = {
        "patients": int(test.sum()),
        "events": events,
        "unanswered": int((~answered_mask & (cohort.split == "test")).sum()),
        "train": int((cohort.split == "train").sum()),
        "val": int(val.sum()),
    }
    if not rivals:
        reason = "no patient of the train split has a known value of the outcome, so that no rival could learn"
        return {**table, "unjudged": reason}
    if min(events, len(outcome) - events) < FEWEST_EVENTS:
        return {**table, "unjudged": f"fewer than {FEWEST_EVENTS} patients with or without the outcome"}
    bootstrap = Resamples(
        [patient for patient, in_test in zip(cohort.patient, test) if in_test], resamples, seed, confidence
    )
    table["rows"] = {
        name: {
            "model": name in models,
            **_row(outcome, p[test], bootstrap, (cohort.outcome[val_answered], p[val_answered])),
        }
        for name, p in rows.items()
        for val_answered in [val & np.isfinite(p)]
    }
    strongest = max(rivals, key=lambda name: table["rows"][name]["auroc"].value or 0)
    table["strongest"] = strongest
    table["differences"] = {
        name: _differences(outcome, p[test], rivals[strongest][test], bootstrap) for name, p in models.items()
    }
    holm_p = holm([pair["p"] for pair in table["differences"].values()])
    for pair, p in zip(table["differences"].values(), holm_p):
        pair["p (Holm)"] = p
    table["pairs"] = [
        {"row": one, "against": other, **_differences(outcome, rows[one][test], rows[other][test], bootstrap)}
        for one, other in pairs
        if one in rows and other in rows
    ]
    table["subgroups"] = {
        name: {kind: _subgroups(outcome, rows[name][test], _select(labels, test), bootstrap)
               for kind, labels in cohort.subgroups.items()}
        for name in (*models, strongest)
    }  # fmt: skip
    return table


def _row(outcome: Array, p: Array, bootstrap: Resamples, val: tuple[Array, Array]) -> dict[str, Any]:
    """Everything about one row's probabilities on the test patients."""
    row: dict[str, Any] = {name: bootstrap.interval(measure, outcome, p) for name, measure in MEASURES.items()}
    line = calibration.fit(outcome, p)
    row["slope"] = _resampled_slope(outcome, p, bootstrap)
    row["intercept"] = _finite_or_none(line.intercept)
    in_the_large = bootstrap.interval(calibration.in_the_large, outcome, p)
    row["in the large"], row["in the large, bounds"] = in_the_large.value, in_the_large[1:]
    row["calibration"] = calibration.curve(outcome, p)
    row["decision"] = calibration.decision_curve(outcome, p)
    row["operating"] = [_operating_point(outcome, p, sensitivity, bootstrap) for sensitivity in SENSITIVITIES]
    val_line = calibration.fit(*val) if len(val[0]) else calibration.Line(np.nan, np.nan)
    if np.isfinite(val_line.slope):
        recalibrated = val_line.apply(p)
        row["recalibrated"] = {
            "slope": _finite_or_none(calibration.fit(outcome, recalibrated).slope),
            "in the large": _finite_or_none(discrimination.value(calibration.in_the_large, outcome, recalibrated)),
            "brier": bootstrap.interval(discrimination.brier, outcome, recalibrated),
            "decision": calibration.decision_curve(outcome, recalibrated),
        }
    return row


def _operating_point(outcome: Array, p: Array, sensitivity: float, bootstrap: Resamples) -> dict[str, Any]:
    """An operating point with the bounds of its specificity and of the patients flagged for one case."""
    bounds = {
        f"{name}, bounds": bootstrap.interval(calibration.at_sensitivity(sensitivity, name), outcome, p)[1:]
        for name in ("specificity", "number_needed")
    }
    return calibration.operating_point(outcome, p, sensitivity) | bounds


def _resampled_slope(outcome: Array, p: Array, bootstrap: Resamples) -> Interval:
    """The calibration slope with its interval."""

    def slope(y: Array, q: Array, weights: Array) -> Array:
        return np.array([calibration.fit(y, q, weight).slope for weight in weights])

    return bootstrap.interval(slope, outcome, p)


def _differences(outcome: Array, p: Array, rival: Array, bootstrap: Resamples) -> dict[str, Any]:
    auroc, p_value = bootstrap.difference(discrimination.auroc, outcome, p, rival)
    brier, _ = bootstrap.difference(discrimination.brier, outcome, p, rival)
    return {"auroc": auroc, "p": p_value, "brier": brier}


def _subgroups(outcome: Array, p: Array, labels: list[str], bootstrap: Resamples) -> dict[str, Any]:
    """AUROC and observed over expected of each subgroup, and the largest gap of AUROC with its interval."""
    masks = {
        label: where
        for label, where in grouped(labels, SMALLEST_SUBGROUP)
        if min(outcome[where].sum(), (~outcome[where]).sum()) >= FEWEST_EVENTS
    }
    table: dict[str, Any] = {
        "parts": {
            label: {
                "patients": int(where.sum()),
                "events": int(outcome[where].sum()),
                "auroc": bootstrap.interval(discrimination.auroc, outcome, p, where),
                "observed over expected": ratio.value,
                "observed over expected, bounds": ratio[1:],
            }
            for label, where in masks.items()
            for ratio in [bootstrap.interval(calibration.observed_over_expected, outcome, p, where)]
        }
    }
    if len(masks) > 1:
        values = {label: table["parts"][label]["auroc"].value for label in masks}
        best, worst = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
        resampled = [bootstrap.values(discrimination.auroc, outcome, p, masks[label]) for label in (best, worst)]
        scarcest = min(bootstrap.scarcest(outcome, masks[label]) for label in (best, worst))
        gap = bootstrap.interval_around(values[best] - values[worst], resampled[0] - resampled[1], scarcest)
        table["gap"] = {"best": best, "worst": worst, "auroc": gap}
    return table


def _select(labels: Any, where: Array) -> list[str]:
    return [label for label, selected in zip(labels, where) if selected]


def _finite_or_none(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
