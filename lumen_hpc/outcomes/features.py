"""States, experts and outcomes as columns: what the competing rows of the prognosis table learn from.

A missing value is NaN; the models that cannot take it impute the training median and keep a column that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.data.study_times import is_earlier
from lumen_hpc.outcomes.histories import race_group
from lumen_hpc.outcomes.panel import PANEL

Array = np.ndarray
PLACES = ("hospital", "icu", "ed")
AGE_BANDS = ("under 50", "50 to 69", "70 and over")
INTERVAL_BANDS = ("up to 3 days", "3 to 30 days", "over 30 days")
_FROM_LOW_TO_HIGH = AGE_BANDS + INTERVAL_BANDS


@dataclass(frozen=True)
class Cohort:
    """The studies with a known value of one outcome, in one order."""

    study_id: list[int]
    patient: list[int]
    split: Array
    """str [n]: train, val or test."""
    outcome: Array
    """bool [n]"""
    columns: Mapping[str, Array]
    """Group of columns → float64 [n, k]: age and sex; laboratory values; experts; experts before."""
    subgroups: Mapping[str, Sequence[str]]
    """sex, age band, race, and how long before the study the one before it was taken: the subgroup of each sample."""


def last_studies(rows: Iterable[dict[str, Any]], taken_at: Mapping[int, str]) -> set[int]:
    """study_id of each patient's last study with a known outcome among `rows` (of outcomes.jsonl)."""
    last: dict[int, tuple[str, int]] = {}
    for row in rows:
        study = int(row["study_id"])
        last[row["subject_id"]] = max(last.get(row["subject_id"], ("", 0)), (taken_at[study], study))
    return {study for _, study in last.values()}


def cohort(folder: Path, studies: Path, name: str, experts: Iterable[dict[str, Any]] = ()) -> Cohort:
    """The studies of a run with a known value of outcome `name`, one per patient: the last.

    `folder`: what stage outcomes wrote; `studies`: prepare's studies.jsonl; `experts`: rows of stage experts.
    """
    taken_at = {int(row["study_id"]): row["taken_at"] for row in read_jsonl(studies)}
    states = {int(row["study_id"]): row["state"] for row in read_jsonl(folder / "states.jsonl")}
    known_rows = [row for row in read_jsonl(folder / "outcomes.jsonl") if "value" in row["outcomes"][name]]
    last_ids = last_studies(known_rows, taken_at)
    rows = [row for row in known_rows if int(row["study_id"]) in last_ids]
    ids = [int(row["study_id"]) for row in rows]
    columns = {
        "age and sex": np.array([_age_and_sex(states[study]) for study in ids]),
        "laboratory values": np.array([_laboratory(states[study]) for study in ids]),
    }
    priors = _prior_studies(studies, taken_at)
    if vectors := {int(row["study_id"]): _probabilities(row) for row in experts}:
        columns["experts"] = np.array([vectors[study] for study in ids])
        unknown = np.full(len(next(iter(vectors.values()))), np.nan)
        columns["experts before"] = np.array([
            np.concatenate([vectors.get(prior, unknown) for prior in priors[study]]) for study in ids
        ])  # fmt: skip
    subgroups = {
        "sex": [states[study]["sex"] or "unknown" for study in ids],
        "age": [_age_band(states[study]["age"]) for study in ids],
        "race": [race_group(row["race"]) or "unknown" for row in rows],
        "previous study": [_interval_band(taken_at[study], taken_at.get(priors[study][0])) for study in ids],
    }
    return Cohort(
        ids, [row["subject_id"] for row in rows], np.array([row["split"] for row in rows]),
        np.array([row["outcomes"][name]["value"] for row in rows], bool), columns, subgroups,
    )  # fmt: skip


def _age_and_sex(state: dict[str, Any]) -> list[float]:
    age = np.nan if state["age"] is None else float(state["age"])
    sex = {"F": 1.0, "M": 0.0}.get(state["sex"], np.nan)
    return [age, sex]


def _laboratory(state: dict[str, Any]) -> list[float]:
    """Value, change and age of each analyte, and the place with the hours there."""
    values = [float(state["place"] == place) for place in PLACES]
    values += [state["hours"].get(place, np.nan) for place in PLACES]
    for analyte in PANEL:
        measurement = state["labs"].get(analyte.name, {})
        values += [
            np.nan if measurement.get(key) is None else float(measurement[key]) for key in ("value", "change", "hours")
        ]
    return values


def _probabilities(row: dict[str, Any]) -> Array:
    """The experts' probabilities of findings; NaN where a head was not trained for one."""
    return np.array([np.nan if p is None else p for p in row["pathologies"].values()], float)


def _prior_studies(studies: Path, taken_at: Mapping[int, str]) -> dict[int, list[int]]:
    """study_id → the patient's last two studies known to be earlier, the nearest first; 0 where there is none."""
    by_patient: dict[int, list[int]] = {}
    for row in read_jsonl(studies):
        by_patient.setdefault(row["subject_id"], []).append(int(row["study_id"]))
    priors = {}
    for of_patient in by_patient.values():
        of_patient.sort(key=lambda study: (taken_at[study], study))
        for place, study in enumerate(of_patient):
            earlier = [other for other in of_patient[:place] if is_earlier(taken_at[other], taken_at[study])]
            priors[study] = ([0, 0, *earlier][-2:])[::-1]
    return priors


def _age_band(age: int | None) -> str:
    if age is None:
        return "unknown"
    return AGE_BANDS[(age >= 50) + (age >= 70)]


def _interval_band(taken_at: str, prior_taken_at: str | None) -> str:
    """How long before a study the one before it was taken."""
    if prior_taken_at is None:
        return "none"
    days = (datetime.fromisoformat(taken_at) - datetime.fromisoformat(prior_taken_at)) / timedelta(days=1)
    return INTERVAL_BANDS[(days > 3) + (days > 30)]


def grouped(labels: Sequence[str], smallest: int) -> Iterator[tuple[str, Array]]:
    """(subgroup, where it is, bool [n]) of every subgroup with at least `smallest` samples, bands from low to high."""
    array = np.array(labels)
    bands = [band for band in _FROM_LOW_TO_HIGH if band in labels]
    for label in [*bands, *sorted(set(labels) - set(bands))]:
        where = array == label
        if where.sum() >= smallest:
            yield label, where
