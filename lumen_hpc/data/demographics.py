"""Sex and age of patients, from MIMIC-IV's table of patients: MIMIC-CXR itself has neither."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from lumen_hpc.data.mimic_iv_files import require
from lumen_hpc.errors import UserError

TABLE = "hosp/patients"
COLUMNS = ("subject_id", "gender", "anchor_age", "anchor_year")


class Person(NamedTuple):
    """One patient of hosp/patients; a field is None where the table has none."""

    sex: str | None = None
    """F or M."""
    anchor_age: int | None = None
    anchor_year: int | None = None

    def age(self, year: int) -> int | None:
        """Years in a calendar year; MIMIC-IV gives every patient above 89 the anchor age 91."""
        if self.anchor_age is None or self.anchor_year is None:
            return None
        return self.anchor_age + year - self.anchor_year


UNKNOWN = Person()


def people(mimic_iv: str | Path, subjects: Container[int]) -> dict[int, Person]:
    """subject_id → its `Person`, for those of `subjects` that the table has.

    Raises UserError if MIMIC-IV's folder has no such table, or the table lacks a column.
    """
    path = require(mimic_iv, TABLE)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise UserError(f"{path} lacks the column {missing[0]}")
        found = {}
        for row in rows:
            subject = _whole(row["subject_id"])
            if subject is not None and subject in subjects:
                sex = row["gender"] if row["gender"] in ("F", "M") else None
                found[subject] = Person(sex, _whole(row["anchor_age"]), _whole(row["anchor_year"]))
    return found


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
