"""Sex and age of patients, from MIMIC-IV's table of patients: MIMIC-CXR itself has neither."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.table_files import PATIENTS, require
from lumen_hpc.data.tables import Block, CsvTable, whole_numbers

COLUMNS = ("subject_id", "gender", "anchor_age", "anchor_year")
VALID_AGES, VALID_YEARS = range(121), range(1900, 2301)
"""What an age and a year can be; MIMIC-IV's years are shifted, into 2110 to 2210."""
_YEARS = re.compile(r"[0-9]{1,4}")


class Person(NamedTuple):
    """One patient of hosp/patients; a field is None where the table has none."""

    sex: str | None = None
    """F or M."""
    anchor_age: int | None = None
    anchor_year: int | None = None

    def age(self, year: int) -> int | None:
        """Years in a calendar year; MIMIC-IV gives every patient above 89 the anchor age 91.

        None also where no age comes out, since the year is shifted otherwise than the anchor's.
        """
        if self.anchor_age is None or self.anchor_year is None:
            return None
        age = self.anchor_age + year - self.anchor_year
        return age if age in VALID_AGES else None


UNKNOWN = Person()


def people(mimic_iv: str | Path, subjects: Container[int], rejections: Rejections) -> dict[int, Person]:
    """subject_id → its `Person`, for those of `subjects` that the table has.

    Rows that cannot be read, and a second row of a patient, go to `rejections`, and so do a gender that is neither F
    nor M and an impossible age or year, which are then unknown. Raises UserError if MIMIC-IV's folder has no such
    table, or the table lacks a column.
    """
    table = CsvTable(require(mimic_iv, PATIENTS), COLUMNS, rejections)
    persons: dict[int, Person] = {}
    for block in table.blocks():

        def reject(row: int, kind: str, reason: str, block: Block = block) -> None:
            rejections(block.place(table.path.name, row), kind, reason)

        ids, *columns = block.columns
        for row, (subject, sex, *years) in enumerate(zip(whole_numbers(ids).tolist(), *columns, strict=True)):
            if subject < 0:
                reject(row, "bad id", "subject_id is not a whole number")
            elif subject in persons:
                reject(row, "duplicate subject_id", f"subject {subject} repeats an earlier row")
            elif subject in subjects:
                age, year = map(_number, years, (VALID_AGES, VALID_YEARS))
                persons[subject] = Person(sex if sex in ("F", "M") else None, age, year)
                if sex and persons[subject].sex is None:
                    reject(row, "unknown sex", f"gender of subject {subject} is neither F nor M")
                for column, field, number, valid_range in zip(
                    COLUMNS[2:], years, (age, year), (VALID_AGES, VALID_YEARS), strict=True
                ):
                    if field and number is None:
                        expected = f"a whole number from {valid_range[0]} to {valid_range[-1]}"
                        reject(row, "unknown age", f"{column} of subject {subject} is not {expected}")
    return persons


def _number(text: str, valid_range: range) -> int | None:
    """A number of years, also as pandas writes it (`52.0`)."""
    digits = text.removesuffix(".0")
    return int(digits) if _YEARS.fullmatch(digits) and int(digits) in valid_range else None
