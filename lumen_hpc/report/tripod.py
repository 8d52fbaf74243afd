"""The items that a run can fill of TRIPOD+AI, the guideline for reporting prediction models (Collins et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from lumen_hpc.config.schema import Settings
from lumen_hpc.outcomes.outcomes import OUTCOMES
from lumen_hpc.outcomes.panel import PANEL

Tables = Mapping[str, Mapping[str, Any]]
"""Outcome → its table (`outcomes.evaluation.evaluate`)."""
Item = tuple[str, str, str]
"""(number of the item, topic, what this run says of it)."""


def number(value: float | None) -> str:
    """A number as the page shows it; a dash where there is none."""
    if value is None or not isfinite(value):
        return "–"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"


def tripod(outcomes: Tables, counts: Mapping[str, Any], settings: Settings) -> list[Item]:
    """The items in the guideline's order. `counts`: counts.json of stage outcomes."""
    return [*_data(outcomes, counts, settings), *_methods(settings), *_results(outcomes, settings)]


def _data(outcomes: Tables, counts: Mapping[str, Any], settings: Settings) -> Iterator[Item]:
    source = "phantoms" if settings.data.source == "phantom" else "MIMIC-CXR with MIMIC-IV"
    yield "5a", "Data: source", f"{source}, {counts['patients']} patients, {counts['studies']} studies"
    yield "5b", "Data: dates", "shifted by one amount per patient; intervals are true"
    yield "6b", "Participants: eligibility", "each patient's last study with a known value of the outcome"
    faults = _comma_separated({kind: count for kind, count in counts["faults"].items() if count})
    yield "7", "Data preparation", f"named and counted, never dropped in silence: {faults or 'no faults'}"
    yield "8a", "Outcome", "; ".join(OUTCOMES[name] for name in outcomes)
    max_images, clinical_lines = settings.instruct.max_images, ", ".join(settings.instruct.clinical) or "nothing"
    inputs = f"up to {max_images} images; lines of {clinical_lines}; the panel has {len(PANEL)} laboratory values"
    yield "9a", "Predictors", f"{inputs}; nothing recorded or known after the study"
    sizes = [
        f"{name}: {t['train']} to learn, {t['val']} to recalibrate, {t['patients']} to test, {t['events']} events there"
        for name, t in outcomes.items()
    ]
    yield "10", "Sample size", "; ".join(sizes)
    unknown_counts = [f"{name} unknown: {_unknown_counts(counts['outcomes'][name])}" for name in outcomes]
    imputation = (
        "A missing laboratory value is not in the prompt; rivals impute the training median and say so, or split"
    )
    yield "11", "Missing data", f"{'; '.join(unknown_counts)}. {imputation}"


def _methods(settings: Settings) -> Iterator[Item]:
    train, evaluate = settings.train, settings.evaluate
    model_building = f"{train.steps or 'all'} steps, learning rate {train.learning_rate}, seed {settings.seed}"
    yield "12c", "Analysis: model building", f"{model_building}; rivals take their one free setting from val"
    yield (
        "12d",
        "Analysis: heterogeneity",
        "subgroups of sex, age, race and time since the previous study, the largest gap with its interval",
    )
    measures = "AUROC, AUPRC, Brier score, calibration slope and intercept, decision curves"
    intervals = f"{evaluate.confidence:.0%} intervals from {evaluate.bootstrap} resamples of patients"
    yield "12e", "Analysis: performance measures", f"{measures}; {intervals}"
    yield "12f", "Analysis: model updating", "recalibrated by slope and intercept on val; both are shown"
    yield "13", "Class imbalance", "nothing was resampled or weighted by outcome"


def _results(outcomes: Tables, settings: Settings) -> Iterator[Item]:
    judged_tables = {name: table for name, table in outcomes.items() if "rows" in table}
    gaps = [_gap(name, table) for name, table in judged_tables.items()]
    yield "14", "Fairness", "; ".join(gaps) or "nothing was judged"
    yield "15", "Model output", "the model's own probability of yes over yes and no at its answer's first token"
    overlap_allowed = settings.prepare.patient_overlap == "allow"
    splits = (
        "a patient may be in more than one"
        if overlap_allowed
        else "splits are by patient; train, val and test share none"
    )
    yield "16", "Training against evaluation", splits
    yield "18f", "Code", "the run's folder holds the code, settings and package versions that made it"
    shares = [f"{name}: {t['events'] / max(t['patients'], 1):.1%} of the test patients" for name, t in outcomes.items()]
    yield "20b", "Participants: outcomes", "; ".join(shares)
    yield (
        "23a",
        "Performance",
        "; ".join(_best(name, table) for name, table in judged_tables.items()) or "nothing was judged",
    )


def _comma_separated(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())


def _unknown_counts(counts: Mapping[str, int]) -> str:
    return (
        _comma_separated({reason: count for reason, count in counts.items() if reason not in ("yes", "no")}) or "none"
    )


def _best(name: str, table: Mapping[str, Any]) -> str:
    """The best row of an outcome, model or rival."""
    label = max(table["rows"], key=lambda row: table["rows"][row]["auroc"][0] or 0)
    value, low, high = table["rows"][label]["auroc"]
    return f"{name}: AUROC {number(value)} ({number(low)} to {number(high)}), {label}"


def _gap(name: str, table: Mapping[str, Any]) -> str:
    """The largest gap of an outcome among the first row's subgroups."""
    label = next(iter(table["subgroups"]))
    gaps = {kind: groups["gap"] for kind, groups in table["subgroups"][label].items() if "gap" in groups}
    if not gaps:
        return f"{name}: no two subgroups are large enough"
    kind = max(gaps, key=lambda kind: gaps[kind]["auroc"][0] or 0)
    value, low, high = gaps[kind]["auroc"]
    return f"{name}, {label}: largest gap of AUROC by {kind} {number(value)} ({number(low)} to {number(high)})"
