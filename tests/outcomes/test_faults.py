"""Every fault of the tables is counted and named; none is dropped in silence."""

from __future__ import annotations

import pytest

from lumen_hpc.outcomes.faults import KINDS
from tests.outcomes import small_mimic_iv as small
from tests.outcomes.conftest import Small

COUNTS = {
    "bad id": 1,
    "unknown age": 1,
    "unknown sex": 1,
    "flag of death unknown": 1,
    "duplicate patient": 1,
    "patient not in MIMIC-IV": 1,
    "patient without any admission": 3,
    "admission without times": 1,
    "race of no known kind": 1,
    "discharge before admission": 1,
    "overlapping admissions": 2,
    "death without deathtime": 1,
    "deathtime without the flag": 1,
    "deathtime after dischtime": 2,
    "dod not a date": 1,
    "dod and deathtime differ": 1,
    "death before an admission": 1,
    "death before a study": 1,
    "study without a clock time": 1,
    "study outside any stay": 3,
    "ICU stay without times": 1,
    "ventilation without times": 1,
    "ED stay without times": 1,
    "laboratory item of another name": 1,
    "duplicate laboratory row": 1,
    "laboratory row without hadm_id": 2,
    "laboratory row without charttime": 1,
    "laboratory row without storetime": 1,
    "text in value without valuenum": 1,
    "laboratory row without value": 1,
    "several units": 1,
    "laboratory row of another unit": 1,
    "laboratory value impossible": 1,
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "row unreadable"])
def test_each_planted_fault_is_counted_and_named(read_small: Small, kind: str) -> None:
    assert read_small.counts["faults"][kind] == COUNTS[kind]
    named = [row for row in read_small.named if row["kind"] == kind]
    assert len(named) == COUNTS[kind]


def test_patients_outside_the_run_are_no_faults_of_the_run(read_small: Small) -> None:
    assert not [row for row in read_small.named if 19_000_000 <= row.get("subject_id", 0) < 20_000_000]


def test_names_carry_ids_and_units_but_no_text_of_a_record(read_small: Small) -> None:
    assert {key for row in read_small.named for key in row} == {
        "kind", "table", "row", "column", "subject_id", "hadm_id", "stay_id", "study_id", "labevent_id", "itemid",
        "analyte", "units",
    }  # fmt: skip


def test_the_units_of_an_item_with_several_are_counted(read_small: Small) -> None:
    (row,) = [row for row in read_small.named if row["kind"] == "several units"]
    assert row["analyte"] == "sodium" and row["units"] == {"mg/dl": 1, "meq/l": 8}


def test_outcomes_are_counted_by_value_and_reason(read_small: Small) -> None:
    counted = read_small.counts["outcomes"]["in_hospital_death"]
    assert sum(counted.values()) == len(small.SUBJECTS) and counted["yes"] == 4
