"""A run's outcome answers against what happened: one table an outcome, rivals and models by what they were given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.data.timelines import read
from lumen_hpc.metrics.join import answer_text
from lumen_hpc.metrics.significance import ClusterBootstrap, Column
from lumen_hpc.outcomes import rivals
from lumen_hpc.outcomes.discrimination import Resamples
from lumen_hpc.outcomes.features import Cohort, cohort
from lumen_hpc.outcomes.questions import SHUFFLED, VARIANTS
from lumen_hpc.outcomes.scoring import answered_by_all, score
from lumen_hpc.outcomes.survival import concordance, kaplan_meier

Array = np.ndarray
Row = dict[str, Any]


def evaluate(
    folder: Path, studies: Path, experts: Iterable[Row], answers: Mapping[str, Iterable[Row]], outcomes: Sequence[str],
    *, resamples: int, seed: int, confidence: float = 0.95, oracles: Mapping[str, Mapping[int, float]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """outcome → the table of `scoring.score`, with `survival` of the strongest model for deaths.

    `folder`: what stage outcomes wrote; `answers`: model → rows of stage prognose; `oracles` (phantoms): name →
    probability of intensive care within 48 hours by study_id, shown beside the rows of that outcome.
    """
    experts = list(experts)
    probabilities = {model: _probabilities(rows) for model, rows in answers.items()}
    tables = {}
    for outcome in outcomes:
        samples = cohort(folder, studies, outcome, experts)
        predictions = {row: rivals.predict(samples, row, seed) for row in rivals.available(samples)}
        rival_probabilities = {row: p for row, p in predictions.items() if p is not None}
        models = {
            label: p
            for model, yes_by_question in probabilities.items()
            for label, p in _by_variant(model, yes_by_question, outcome, samples).items()
        }
        pairs = [(model, other) for model in answers for other in _reference_rows(model)]
        table = score(
            samples, rival_probabilities, models, resamples=resamples, seed=seed, confidence=confidence, pairs=pairs
        )
        if outcome.startswith("death") and "rows" in table:
            best = max(models or rival_probabilities, key=lambda name: table["rows"][name]["auroc"].value or 0)
            risk = {**rival_probabilities, **models}[best]
            table["survival"] = {"row": best, **_survival(folder, samples, risk, resamples, seed, confidence)}
        if oracles and outcome == "icu_48h" and "rows" in table:
            table["oracles"] = _oracles(samples, oracles, answered_by_all({**rival_probabilities, **models}))
        tables[outcome] = table
    return tables


def _reference_rows(model: str) -> list[str]:
    """Rows that say what a model gains, and from what: laboratory values alone, and itself with less."""
    variants = [f"{model}, {variant}" for variant in (*VARIANTS, SHUFFLED) if variant != "all"]
    return ["laboratory values, regression", "laboratory values, boosting", *variants]


def _probabilities(rows: Iterable[Row]) -> dict[str, float]:
    """question_id → probability of yes, of the answers that have one."""
    return {row["question_id"]: row["yes"] for row in rows if row.get("yes") is not None}


def _by_variant(model: str, yes_by_question: Mapping[str, float], outcome: str, samples: Cohort) -> dict[str, Array]:
    """Row label → probabilities, for each variant that was asked; NaN outside the test split."""
    rows = {}
    for variant in (*VARIANTS, SHUFFLED):
        suffix = "" if variant == "all" else f"/{variant}"
        p = np.array([yes_by_question.get(f"outcome/{outcome}/{study}{suffix}", np.nan) for study in samples.study_id])
        if np.isfinite(p).any():
            rows[model if variant == "all" else f"{model}, {variant}"] = p
    return rows


def _survival(folder: Path, samples: Cohort, p: Array, resamples: int, seed: int, confidence: float) -> dict[str, Any]:
    """Harrell's concordance on the test patients with its bounds, and Kaplan-Meier curves of the thirds of risk."""
    survival_by_study = {
        int(row["study_id"]): row["outcomes"]["survival"].get("value") for row in read_jsonl(folder / "outcomes.jsonl")
    }
    places = [
        place for place, study in enumerate(samples.study_id)
        if samples.split[place] == "test" and survival_by_study[study] and np.isfinite(p[place])
    ]  # fmt: skip
    values = [survival_by_study[samples.study_id[place]] for place in places]
    days, died = np.array([v["days"] for v in values], float), np.array([v["died"] for v in values], bool)
    risk = p[places]
    curves = []
    for part in np.array_split(np.argsort(risk, kind="stable"), 3):
        times, alive = kaplan_meier(days[part], died[part])
        curves.append({"patients": len(part), "days": times.tolist(), "alive": alive.tolist()})
    bootstrap = Resamples([samples.patient[place] for place in places], resamples, seed, confidence)
    found = bootstrap.interval(lambda died_, risk_, weights: concordance(days, died_, risk_, weights), died, risk)
    return {
        "concordance": found.value, "concordance, bounds": found[1:], "patients": len(places), "curves": curves,
    }  # fmt: skip


def _oracles(samples: Cohort, oracles: Mapping[str, Mapping[int, float]], answered: Array) -> dict[str, float]:
    """AUROC of each oracle on the test studies that the rows are judged on."""
    from lumen_hpc.outcomes.discrimination import auroc, value

    aurocs = {}
    for name, by_study in oracles.items():
        p = np.array([by_study.get(study, np.nan) for study in samples.study_id])
        mask = np.isfinite(p) & answered & (samples.split == "test")
        aurocs[name] = value(auroc, samples.outcome, p, mask)
    return aurocs


def timeline_scores(
    records: Iterable[Row], answers: Mapping[str, Iterable[Row]], *, resamples: int, seed: int, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Share of timeline questions answered right, a row for each model, kind and variant, with its interval.

    The interval resamples patients, who are asked several questions. An answer is right if it reads as the short answer
    does. `constant` is the share that the most frequent answer of the kind would have: what can be had without looking.
    `records`: those of outcomes-test.jsonl.
    """
    questions = [record["meta"] for record in records if record["meta"]["type"] == "timeline"]
    groups: dict[tuple[str, str], list[Row]] = {}
    for meta in questions:
        groups.setdefault((meta["kind"], meta["variant"]), []).append(meta)
    scores = []
    for model, rows in answers.items():
        texts = {row["question_id"]: answer_text(row) for row in rows}
        for (kind, variant), metas in sorted(groups.items()):
            answered_metas = [meta for meta in metas if meta["question_id"] in texts]
            true_readings = [read(meta["short_answer"]) for meta in answered_metas]
            hits = [read(texts[meta["question_id"]]) == true for meta, true in zip(answered_metas, true_readings)]
            if answered_metas:
                patients = ClusterBootstrap(
                    [meta["subject_id"] for meta in answered_metas], resamples, seed, confidence
                )
                scores.append({
                    "model": model, "kind": kind, "variant": variant, "n": len(answered_metas),
                    "right": patients.interval(Column(np.array(hits, float), np.ones(len(hits)))),
                    "constant": Counter(true_readings).most_common(1)[0][1] / len(answered_metas),
                })  # fmt: skip
    return scores


def oracles(truth: Path, folder: Path, effect: float) -> dict[str, dict[int, float]]:
    """Name → probability of intensive care within 48 hours by study_id, of every oracle of the phantoms."""
    from lumen_hpc.outcomes.phantom_severity import ORACLES, oracle
    from lumen_hpc.outcomes.phantom_tables import known_studies

    studies = known_studies(truth, folder / "states.jsonl")
    return {name: dict(zip(studies, oracle(name, list(studies.values()), effect).tolist())) for name in ORACLES}
