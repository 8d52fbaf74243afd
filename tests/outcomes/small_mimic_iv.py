"""A small MIMIC-IV by hand: one patient for each rule and each fault, among patients that the run does not ask about.

All rows are invented. Times are given in hours from a patient's study, so that a case reads as it is meant.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lumen_hpc.outcomes.mimic_iv import Writer
from lumen_hpc.outcomes.panel import PANEL

TAKEN = datetime(2150, 3, 10, 12, 30, 15)
ITEMS = {analyte.name: analyte for analyte in PANEL}
SUBJECTS = {
    name: 10_000_001 + number
    for number, name in enumerate((
        "ordinary", "died without deathtime", "deathtime after dischtime", "dod before the study", "overlapping",
        "no admission", "admitted later", "bad laboratory rows", "in icu", "unknown patient", "no clock",
        "death without flag", "bad admissions", "late study", "very old", "death after discharge",
        "dod before a later stay", "died in the other stay",
    ))
}  # fmt: skip
"""Name of the case → subject_id; its one study has study_id subject_id + 40,000,000."""


def at(hours: float | None) -> str:
    """A time `hours` after the study, as MIMIC-IV writes it; empty for None."""
    return "" if hours is None else (TAKEN + timedelta(hours=hours)).strftime("%Y-%m-%d %H:%M:%S")


def day(days: float) -> str:
    return (TAKEN + timedelta(days=days)).strftime("%Y-%m-%d")


class Tables:
    """Rows of every table, added case by case."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, **row: Any) -> None:
        self.rows.setdefault(table, []).append(row)

    def patient(self, case: str, dod: str = "", age: int | str = 60, sex: str = "F") -> int:
        subject = SUBJECTS[case]
        self.add("hosp/patients", subject_id=subject, gender=sex, anchor_age=age, anchor_year=2148,
                 anchor_year_group="2014 - 2016", dod=dod)  # fmt: skip
        return subject

    def stay(self, case: str, begin: float | None, end: float | None, died: float | None = None, flag: int | str = 0,
             registered: float | None = None, number: int = 0) -> int:  # fmt: skip
        hadm = SUBJECTS[case] + 10_000_000 + number * 1000
        self.add(
            "hosp/admissions", subject_id=SUBJECTS[case], hadm_id=hadm, admittime=at(begin), dischtime=at(end),
            deathtime=at(died), hospital_expire_flag=flag, edregtime=at(registered), race="WHITE",
            admission_type="URGENT", admission_location="EMERGENCY ROOM", insurance="Other", language="English",
        )  # fmt: skip
        return hadm

    def lab(self, case: str, analyte: str, value: Any, charted: float | None, stored: float | None = None, **more: Any):
        """A laboratory row, stored half an hour after it was charted unless said otherwise (`stored=None` as key)."""
        item = ITEMS[analyte]
        if stored is None and "storetime" not in more and charted is not None:
            stored = charted + 0.5
        self.add("hosp/labevents", **{
            "labevent_id": len(self.rows.get("hosp/labevents", [])) + 1, "subject_id": SUBJECTS[case],
            "hadm_id": SUBJECTS[case] + 10_000_000, "specimen_id": 1, "itemid": item.itemid, "charttime": at(charted),
            "storetime": at(stored), "value": value, "valuenum": value, "valueuom": item.unit, **more,
        })  # fmt: skip


def tables() -> Tables:
    """Every case."""
    made = Tables()
    _ordinary(made)
    _deaths(made)
    _stays(made)
    _laboratory(made)
    _others(made)
    return made


def _ordinary(made: Tables) -> None:
    case = "ordinary"
    made.patient(case, dod=day(200))
    hadm = made.stay(case, -2, 120, registered=-4)
    made.add("ed/edstays", subject_id=SUBJECTS[case], stay_id=1, intime=at(-4), outtime=at(-1.9), hadm_id=hadm)
    made.add("icu/icustays", subject_id=SUBJECTS[case], hadm_id=hadm, stay_id=30_000_001, intime=at(20), outtime=at(60))
    for item, begin, end in ((224385, 30, 30), (225792, 30.1, 50), (225752, -1, 40)):
        made.add("icu/procedureevents", subject_id=SUBJECTS[case], hadm_id=hadm, stay_id=30_000_001, itemid=item,
                 starttime=at(begin), endtime=at(end), storetime=at(end))  # fmt: skip
    made.lab(case, "creatinine", 1.0, -100, ref_range_lower=0.4, ref_range_upper=1.1)
    made.lab(case, "creatinine", 1.6, -1.5, ref_range_lower=0.4, ref_range_upper=1.1)
    made.lab(case, "creatinine", 9.9, -0.25)  # charted before the study, known after it
    made.lab(case, "creatinine", 8.8, 1)
    made.lab(case, "hemoglobin", 7.2, -71, ref_range_lower=12, ref_range_upper=16, comments='"a, quoted\nremark"')
    made.lab(case, "platelets", 210, -73)  # too old
    made.lab(case, "INR", 1.1, -3)
    made.lab(case, "lactate", 2.0, 0, 0)  # at the time of the study itself


def _deaths(made: Tables) -> None:
    made.patient("died without deathtime", dod=day(2), sex="M")
    made.stay("died without deathtime", -10, 40, flag=1)
    made.patient("deathtime after dischtime", dod=day(3))
    made.stay("deathtime after dischtime", -10, 60, died=61, flag=1)
    made.patient("dod before the study", dod=day(-3))
    made.stay("dod before the study", -500, -300)
    made.patient("dod before a later stay", dod=day(20))
    made.stay("dod before a later stay", -5, 30)
    made.stay("dod before a later stay", 24 * 900, 24 * 910, number=1)
    made.patient("died in the other stay", dod=day(2))
    made.stay("died in the other stay", -190, 54)
    made.stay("died in the other stay", 24, 50, died=50, flag=1, number=1)
    made.patient("death without flag", dod=day(9))
    made.stay("death without flag", -5, 30, died=29)
    made.patient("death after discharge", dod="not recorded")
    made.stay("death after discharge", -5, 30, died=31)


def _stays(made: Tables) -> None:
    made.patient("overlapping")
    made.stay("overlapping", -100, 30)
    made.stay("overlapping", -10, 200, number=1)
    made.patient("no admission")
    made.patient("admitted later")
    made.stay("admitted later", 3, 90, registered=-1)
    made.add("ed/edstays", subject_id=SUBJECTS["admitted later"], stay_id=2, intime=at(-1), outtime=at(3))
    made.add("ed/edstays", subject_id=SUBJECTS["admitted later"], stay_id=3, intime=at(-400), outtime="")
    made.patient("in icu")
    hadm = made.stay("in icu", -50, 400)
    made.rows["hosp/admissions"][-1]["race"] = "NOT A RACE OF THE RELEASE"
    stay = {"subject_id": SUBJECTS["in icu"], "hadm_id": hadm, "stay_id": 30_000_002}
    made.add("icu/icustays", **stay, intime=at(-20), outtime="")
    made.add("icu/procedureevents", **stay, itemid=225792, starttime=at(-3), endtime="")
    made.patient("bad admissions")
    made.stay("bad admissions", -20, None)
    made.stay("bad admissions", -20, -60, number=1)
    made.patient("late study", age="52.5", sex="Female")
    made.stay("late study", -24 * 340, -24 * 320)
    made.patient("no clock")
    made.stay("no clock", -30, 60, flag="no")
    made.patient("very old", age=91)
    made.patient("very old", age=91)
    made.stay("very old", -30, 60)


def _laboratory(made: Tables) -> None:
    case = "bad laboratory rows"
    made.patient(case)
    made.stay(case, -30, 60)
    made.lab(case, "sodium", 140, -20)
    made.add("hosp/labevents", **made.rows["hosp/labevents"][-1])
    made.lab(case, "sodium", "___", -3, valuenum="")
    made.lab(case, "sodium", "", -3, valuenum="")
    made.lab(case, "sodium", 3.4, -3, valueuom="mg/dL")
    made.lab(case, "sodium", 1_276_103, -3)
    made.lab(case, "sodium", 133, None)
    made.lab(case, "sodium", 134, -3, storetime="")
    made.lab(case, "sodium", 138, -30, hadm_id="")
    made.lab(case, "potassium", 4.4, -2, subject_id="unknown")
    made.lab("no admission", "potassium", 3.1, -2, hadm_id="", ref_range_lower=3.3, ref_range_upper=5.1)


def _others(made: Tables) -> None:
    """Two hundred patients outside the run; their rows must change nothing."""
    for number in range(200):
        subject, hadm, stay = 19_000_000 + number, 29_000_000 + number, 39_000_000 + number
        made.add("hosp/patients", subject_id=subject, gender="M", anchor_age=50, anchor_year=2150, dod=day(1))
        made.add("hosp/admissions", subject_id=subject, hadm_id=hadm, admittime=at(-9), dischtime=at(-20), race="OTHER")
        made.add("icu/icustays", subject_id=subject, hadm_id=hadm, stay_id=stay, intime="", outtime="")
        made.add("icu/procedureevents", subject_id=subject, stay_id=stay, itemid=225792, starttime="", endtime="")
        made.add("ed/edstays", subject_id=subject, stay_id=stay, intime="", outtime="")
        made.add("hosp/labevents", labevent_id=900_000 + number, subject_id=subject, itemid=50912, charttime="x")
    for analyte in PANEL:
        label = "Something else" if analyte.name == "albumin" else analyte.label
        made.add("hosp/d_labitems", itemid=analyte.itemid, label=label, fluid="Blood", category="Chemistry")
    for number in range(200):
        made.add("hosp/d_labitems", itemid=53_000 + number, label=f"Test {number}", fluid="Urine", category="Chemistry")


def write(folder: Path, made: Tables, release: str = "3.1", compressed: bool = True, without: str = "") -> Path:
    """Writes the tables, and a line of the wrong width into admissions; `without` leaves a table out."""
    with Writer(folder, release, compressed, [table for table in made.rows if table != without]) as writer:
        for table, rows in made.rows.items():
            if table != without:
                writer.add(table, *rows)
    return folder


def studies(path: Path) -> Path:
    """prepare's studies.jsonl: one study a case, all at TAKEN."""
    rows = [
        {"subject_id": subject, "study_id": subject + 40_000_000, "split": "test", "view": "PA",
         "taken_at": TAKEN.date().isoformat() if case == "no clock" else TAKEN.isoformat()}
        for case, subject in SUBJECTS.items()
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
