"""The state at the time of the study: right, and blind to everything that came later."""

from __future__ import annotations

import copy
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lumen_hpc.outcomes.write import write
from tests.outcomes import small_mimic_iv as small
from tests.outcomes.conftest import Small


def test_the_last_known_value_within_72_hours_counts(read_small: Small) -> None:
    labs = read_small.states["ordinary"]["labs"]
    assert labs["creatinine"] == {
        "value": 1.6, "unit": "mg/dL", "low": 0.4, "high": 1.1, "level": "high", "hours": 1.5, "change": 0.6,
    }  # fmt: skip
    assert labs["hemoglobin"]["level"] == "low" and labs["hemoglobin"]["change"] is None
    assert labs["INR"]["level"] is None and labs["INR"]["unit"] == ""
    assert labs["lactate"]["hours"] == 0
    assert "platelets" not in labs


def test_bad_laboratory_rows_give_no_value(read_small: Small) -> None:
    labs = read_small.states["bad laboratory rows"]["labs"]
    assert labs["sodium"]["value"] == 140 and labs["sodium"]["change"] == 2
    assert "potassium" not in labs


def test_rows_without_hadm_id_join_by_patient_and_time(read_small: Small) -> None:
    assert read_small.states["no admission"]["labs"]["potassium"]["level"] == "low"


@pytest.mark.parametrize(
    ("case", "place", "hours"),
    [
        ("ordinary", "hospital", {"hospital": 2.0}),
        ("in icu", "icu", {"icu": 20.0, "hospital": 50.0}),
        ("admitted later", "ed", {"ed": 1.0}),
        ("overlapping", "hospital", {"hospital": 10.0}),
        ("late study", "outside", {}),
        ("no admission", "outside", {}),
    ],
)
def test_the_place_and_how_long_the_patient_was_there(read_small: Small, case: str, place: str, hours: dict) -> None:
    state = read_small.states[case]
    assert (state["place"], state["hours"]) == (place, hours)


def test_age_is_that_of_the_study_and_unknown_patients_have_none(read_small: Small) -> None:
    assert read_small.states["ordinary"]["age"] == 62
    assert read_small.states["very old"]["age"] == 93
    assert read_small.states["unknown patient"] == {
        "age": None, "sex": None, "place": "outside", "hours": {}, "labs": {},
    }  # fmt: skip


def states(folder: Path, made: small.Tables, without: str = "") -> bytes:
    small.write(folder / "mimiciv", made, without=without)
    write(folder / "out", small.studies(folder / "studies.jsonl"), folder / "mimiciv", memory_gb=0.5)
    return (folder / "out" / "states.jsonl").read_bytes()


TIMES = ("charttime", "storetime", "intime", "outtime", "starttime", "endtime", "admittime", "dischtime", "deathtime",
         "edregtime")  # fmt: skip
BEGINS = {"hosp/admissions": "admittime", "icu/icustays": "intime", "ed/edstays": "intime",
          "icu/procedureevents": "starttime"}  # fmt: skip
CASES = {subject for case, subject in small.SUBJECTS.items() if case != "no clock"}


def changed(made: small.Tables, rng: random.Random) -> small.Tables:
    """The tables with every event after the studies changed: moved, altered, removed, repeated, or made up."""
    made = copy.deepcopy(made)
    for table, rows in made.rows.items():
        made.rows[table] = [new for row in rows for new in _row_changed(table, row, rng)]
    for subject in CASES:
        hours = rng.uniform(0.01, 200)
        made.add("hosp/admissions", subject_id=subject, hadm_id=rng.randrange(10**8), admittime=small.at(hours),
                 dischtime=small.at(hours + 9), deathtime=small.at(hours + 8), hospital_expire_flag=1,
                 edregtime=small.at(-1))  # fmt: skip
        made.add("icu/icustays", subject_id=subject, stay_id=1, intime=small.at(hours), outtime=small.at(hours + 5))
        for analyte in rng.sample(sorted(small.ITEMS), 4):
            item = small.ITEMS[analyte]
            charted, stored = rng.choice([(-rng.uniform(0, 9), hours), (hours, hours), (hours, -1)])
            made.add("hosp/labevents", labevent_id=rng.randrange(10**8), subject_id=subject, itemid=item.itemid,
                     charttime=small.at(charted), storetime=small.at(stored), value=5, valuenum=5,
                     valueuom=item.unit)  # fmt: skip
    return made


def _row_changed(table: str, row: dict[str, Any], rng: random.Random) -> list[dict[str, Any]]:
    if row.get("subject_id") not in CASES:
        return [row]
    row = dict(row)
    if table == "hosp/patients":
        row["dod"] = rng.choice(["", small.day(1), small.day(700), "no date"])
        return [row]
    later = [name for name in TIMES if row.get(name) and _time(row[name]) > small.TAKEN]
    begin = BEGINS.get(table)
    whole = set(later) & {"charttime", "storetime", begin}
    if whole and rng.random() < 0.3:
        return []  # an event that came later did not come
    for name in later:
        row[name] = small.at(rng.uniform(0.01, 900))
    if whole and table == "hosp/labevents":
        row["value"] = row["valuenum"] = rng.uniform(0, 100)
    if table == "hosp/admissions":
        # Whether the patient died, and the visit to the emergency department that ended here, became known later.
        row["hospital_expire_flag"] = rng.choice([0, 1])
        row["deathtime"] = rng.choice(["", small.at(rng.uniform(0.01, 90))])
        row["race"] = "OTHER"
        if begin in later:
            row["edregtime"] = rng.choice(["", small.at(rng.uniform(-9, 90))])
    return [row, row] if whole and table == "hosp/labevents" and rng.random() < 0.2 else [row]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize("seed", range(8))
def test_no_change_of_anything_after_the_study_reaches_an_input(tmp_path: Path, seed: int) -> None:
    made = small.tables()
    assert states(tmp_path / "a", made) == states(tmp_path / "b", changed(made, random.Random(seed)))


def test_a_change_before_the_study_does_reach_the_input(tmp_path: Path) -> None:
    """The mutation test can fail."""
    made = small.tables()
    before = states(tmp_path / "a", made)
    for row in made.rows["hosp/labevents"]:
        if row["charttime"] == small.at(-1.5):
            row["storetime"] = (small.TAKEN + timedelta(seconds=1)).isoformat(" ")
    assert states(tmp_path / "b", made) != before


def test_without_ed_stays_a_visit_that_ends_in_admission_later_is_not_seen(tmp_path: Path) -> None:
    """admissions.edregtime exists only because the patient was admitted: it must not tell the place."""
    rows = states(tmp_path, small.tables(), without="ed/edstays").splitlines()
    place = next(row for row in rows if str(small.SUBJECTS["admitted later"]).encode() in row)
    assert b'"place":"outside"' in place
