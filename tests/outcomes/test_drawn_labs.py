"""Drawn laboratory values, most at a limit of time or of range, against their rule written a second time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.outcomes.panel import PANEL
from lumen_hpc.outcomes.write import write
from tests.outcomes import small_mimic_iv as small

CREATININE = next(analyte for analyte in PANEL if analyte.name == "creatinine")
Row = dict[str, Any]


def drawn(rng: random.Random, patient: int, number: int) -> Row:
    """A row whose times are hours from the study; only the unit, a bound or a missing field makes it bad."""
    charted = rng.choice((0, 1, -1, -12, -71, -72, -73, -100, -167, -168, -169))
    stored = charted + rng.choice((0, 0, 1, 12, 80))
    value = rng.choice((0.04, 0.05, 0.5, 1, 1.5, 2, 50, 50.5))
    low, high = rng.choice(("", 1)), rng.choice(("", 1.5))
    unit = rng.choice(("mg/dL", "mg/dL", "MG/DL ", "mg/dL", "umol/L", ""))
    return {
        "labevent_id": number, "subject_id": patient, "itemid": CREATININE.itemid, "charttime": small.at(charted),
        "storetime": small.at(stored), "valuenum": value, "value": value, "valueuom": unit, "ref_range_lower": low,
        "ref_range_upper": high, "charted": charted, "stored": stored, "patient": patient,
    }  # fmt: skip


def expected(rows: list[Row]) -> Row | None:
    """The state's creatinine."""
    usable = [row for row in rows if row["valueuom"].strip().lower() == "mg/dl" and 0.05 <= row["valuenum"] <= 50]
    known = [row for row in usable if row["charted"] <= 0 and row["stored"] <= 0 and row["charted"] >= -168]
    known.sort(key=lambda row: (row["charted"], row["stored"], row["labevent_id"]))
    if not known or known[-1]["charted"] < -72:
        return None
    last, value = known[-1], known[-1]["valuenum"]
    low, high = last["ref_range_lower"], last["ref_range_upper"]
    level = "high" if high != "" and value > high else "low" if low != "" and value < low else "normal"
    return {
        "value": value, "unit": "mg/dL", "low": low if low != "" else None, "high": high if high != "" else None,
        "level": None if low == high == "" else level, "hours": -last["charted"],
        "change": value - known[-2]["valuenum"] if len(known) > 1 else None,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_the_last_known_value_is_what_the_document_says(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    patients = range(10_000_001, 10_000_301)
    rows = [drawn(rng, patient, 0) for patient in patients for _ in range(rng.randrange(9))]
    for number, row in enumerate(rng.sample(rows, len(rows)), 1):
        row["labevent_id"] = number
    made = small.Tables()
    for analyte in PANEL:
        made.add("hosp/d_labitems", itemid=analyte.itemid, label=analyte.label)
    for patient in patients:
        made.add("hosp/patients", subject_id=patient, gender="F", anchor_age=60, anchor_year=2150)
    for row in rng.sample(rows, len(rows)):
        made.add("hosp/labevents", **row)
    for table in ("hosp/admissions", "icu/icustays", "icu/procedureevents"):
        made.rows[table] = []
    studies = [
        {"study_id": patient + 40_000_000, "subject_id": patient, "split": "test", "taken_at": small.TAKEN.isoformat()}
        for patient in patients
    ]
    (tmp_path / "studies.jsonl").write_bytes(b"".join(orjson.dumps(study) + b"\n" for study in studies))
    write(tmp_path / "out", tmp_path / "studies.jsonl", small.write(tmp_path / "iv", made), memory_gb=0.5)
    states = {row["subject_id"]: row["state"]["labs"] for row in read_jsonl(tmp_path / "out" / "states.jsonl")}
    true = {patient: expected([row for row in rows if row["patient"] == patient]) for patient in patients}
    assert states == {patient: {"creatinine": found} if found else {} for patient, found in true.items()}
    assert sum(found is not None for found in true.values()) > 50
