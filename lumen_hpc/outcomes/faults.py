"""Faults of the tables: each kind counted, and the first of each named by ids, never by the text of a record."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from lumen_hpc.files import atomic

NAMED_PER_KIND = 20
"""How many of a kind are named; all are counted. A third of MIMIC-IV's laboratory rows lack `hadm_id`."""

KINDS = {
    "row unreadable": "another number of fields than the header, or bytes that are not UTF-8; the row is left out",
    "bad id": "an id that is not digits alone (or those with .0); the row is left out",
    "duplicate patient": "a subject_id twice in patients; the row that sorts first counts",
    "unknown age": "anchor_age or anchor_year that is no whole number, or impossible; the age is read as missing",
    "unknown sex": "a gender that is neither F nor M; read as missing",
    "patient not in MIMIC-IV": "a patient of the run without a row in patients; outcomes are unknown",
    "patient without any admission": "no follow-up is known; outcomes that need a stay are unknown",
    "admission without times": "admittime or dischtime missing or no time; the admission is left out but for its death",
    "discharge before admission": "the admission is left out but for its death",
    "race of no known kind": "read as missing",
    "overlapping admissions": "two admissions of a patient at one time; the later one holds where both do",
    "flag of death unknown": "hospital_expire_flag missing or neither 0 nor 1; deathtime alone counts",
    "death without deathtime": "hospital_expire_flag without deathtime; the time of death is dischtime",
    "deathtime without the flag": "deathtime in an admission whose hospital_expire_flag is 0; a death there",
    "deathtime after dischtime": "the death counts in hospital if the flag says so, else as dod, where there is none",
    "dod not a date": "deaths are unknown, but for one in hospital",
    "dod and deathtime differ": "more than a day apart; deathtime holds",
    "death before an admission": "a stay begins more than a day after the date of death; deaths are unknown",
    "death before a study": "outcomes of that study are unknown",
    "study without a clock time": "its state is that of the day's beginning; outcomes in hours are unknown",
    "study outside any stay": "no discharge date, so no time until which it is followed",
    "ICU stay without times": "outtime missing: it lasts to the end of its admission; else left out, and whether "
    "intensive care begins is unknown",
    "ventilation without times": "endtime missing: it lasts to the end of its ICU stay; else left out, and whether "
    "ventilation begins is unknown",
    "ED stay without times": "left out",
    "laboratory item of another name": "d_labitems gives the id another label; the analyte is left out",
    "duplicate laboratory row": "a labevent_id twice; equal rows count once",
    "laboratory row without hadm_id": "used: rows join by patient and time",
    "laboratory row without charttime": "left out",
    "laboratory row without storetime": "left out: when it was known is unknown",
    "text in value without valuenum": "left out",
    "laboratory row without value": "left out",
    "several units": "an analyte with more than one unit; rows of another unit than the panel's are left out",
    "laboratory row of another unit": "left out",
    "laboratory value impossible": "outside the panel's bounds; left out",
}
"""Every kind of fault, and what is done about it."""


class Faults:
    """Counts faults by kind and writes the first of each kind to `faults.jsonl`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._rows: list[dict[str, Any]] = []
        self._named: Counter[str] = Counter()

    def __call__(self, kind: str, table: str, count: int = 1, **ids: Any) -> None:
        """Counts `count` faults of a kind; names them by `ids` while there are few of the kind."""
        assert kind in KINDS, kind
        self.counts[kind] += count
        if ids and self._named[kind] < NAMED_PER_KIND:
            self._named[kind] += 1
            self._rows.append({"kind": kind, "table": table, **ids})

    def write(self, path: Path) -> None:
        """Writes the named faults, by kind in the order of KINDS."""
        order = {kind: place for place, kind in enumerate(KINDS)}
        with atomic(path) as out:
            for row in sorted(self._rows, key=lambda row: order[row["kind"]]):
                out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
