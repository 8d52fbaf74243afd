"""MIMIC-IV tables for phantom patients, in the very same layout, with every fault that the stage knows planted.

The tables follow from the studies (`truth.jsonl` and their times) and a hidden severity (`phantom_severity.py`).
Studies at most four days apart lie in one stay. Intensive care within 48 hours is drawn at the last study of a stay,
death at the patient's last study. Laboratory rows after a study reveal its outcome: a model that could read them would
beat the oracle. Patient k is the same whatever else is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lumen_hpc.data import phantom_states as ps
from lumen_hpc.data.phantom_ceilings import study_states
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.outcomes.mimic_iv import Writer
from lumen_hpc.outcomes.panel import PANEL
from lumen_hpc.outcomes.phantom_severity import MARKERS, burden, logit, scaled, sigmoid

ITEMS = {analyte.name: analyte for analyte in PANEL}
RACES = ("WHITE", "BLACK/AFRICAN AMERICAN", "ASIAN", "HISPANIC/LATINO", "OTHER")
ONE_STAY = timedelta(days=4)
"""Studies at most so far apart lie in one stay."""
FAULT_EVERY = 24
"""Of so many patients, each kind of fault strikes one."""
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Study:
    """A phantom study as its tables need it."""

    at: datetime
    states: ps.States


def write_tables(
    folder: Path, truth: Path, times: dict[int, datetime], seed: int, *, effect: float = 1.0, faults: bool = True,
    release: str = "3.1",
) -> Path:  # fmt: skip
    """Writes MIMIC-IV's tables for the patients of `truth` (a phantom folder's truth.jsonl) under `folder`.

    `times`: study_id → the study's time. `effect` scales what drives the outcomes; with 0 nothing does. `faults=False`
    plants none.
    """
    with Writer(folder, release) as writer:
        for analyte in PANEL:
            writer.add("hosp/d_labitems", {"itemid": analyte.itemid, "label": analyte.label, "fluid": "Blood"})
        for number, (subject, rows) in enumerate(groupby(read_jsonl(truth), key=lambda row: row["subject_id"])):
            studies = [Study(times[row["study_id"]], study_states(row)) for row in rows if row["study_id"] in times]
            if studies:
                patient = _Patient(int(subject), studies, np.random.default_rng([seed, int(subject), 1]), effect)
                patient.draw()
                if faults:
                    patient.plant_fault(number)
                for table, table_rows in patient.rows.items():
                    writer.add(table, *table_rows)
        if faults:
            writer.line("hosp/labevents", "1,2,3")
    return folder


class _Patient:
    """One patient's rows of every table."""

    def __init__(self, subject: int, studies: list[Study], rng: Rng, effect: float) -> None:
        self.subject, self.studies, self._rng, self._effect = subject, studies, rng, effect
        self.age = int(np.clip(rng.normal(60, 15), 18, 91))
        self.sex, self.race = str(rng.choice(["F", "M"])), str(rng.choice(RACES, p=[0.6, 0.16, 0.08, 0.08, 0.08]))
        self.dod: Any = ""
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, **columns: Any) -> dict[str, Any]:
        row = {"subject_id": self.subject, **columns}
        self.rows.setdefault(table, []).append(row)
        return row

    def draw(self) -> None:
        """Every stay of the patient, and what happens in it."""
        stays = list(_stays(self.studies))
        for number, (first, last) in enumerate(stays):
            self._stay(number, first, last, final=number == len(stays) - 1)
        self.add(
            "hosp/patients", gender=self.sex, anchor_age=self.age, anchor_year=self.studies[0].at.year,
            anchor_year_group="2014 - 2016", dod=self.dod,
        )  # fmt: skip

    def _stay(self, number: int, first: int, last: int, final: bool) -> None:
        u, rng = self._rng.uniform, self._rng
        hadm, at = 20_000_000 + self.subject % 10_000_000 * 10 + number % 10, self.studies[last].at
        s = scaled(burden(self.studies[last].states)) + rng.normal()
        enters_icu = rng.random() < sigmoid(self._logit(last, s))
        dies = final and rng.random() < sigmoid(self._logit(last, s) - 1.2)
        in_hospital = dies and rng.random() < 0.5
        unrecorded = rng.random() < 0.05
        begin = self.studies[first].at - timedelta(hours=u(1.5, 25))
        if rng.random() < 0.1:  # still in the emergency department at the first study
            begin = self.studies[first].at + timedelta(hours=u(1, 3))
        end = at + timedelta(hours=u(52, 240))
        if not final:  # home a day before the next stay may begin
            end = min(end, self.studies[last + 1].at - timedelta(hours=26))
        if dies:
            self.dod = (end if in_hospital else end + timedelta(days=u(1, 300))).strftime("%Y-%m-%d")
        if not unrecorded:
            self._admission(hadm, begin, end, in_hospital, enters_icu, at)
        else:
            hadm = 0
        for k in range(first, last + 1):
            hidden = s if k == last else scaled(burden(self.studies[k].states)) + rng.normal()
            self._labs(hadm, self.studies[k].at, hidden, enters_icu)

    def _logit(self, place: int, s: float) -> float:
        """As the oracles know it; `trend` is the change since the study before the last."""
        trend = 0
        if place >= 2:
            trend = burden(self.studies[place].states) - burden(self.studies[place - 2].states)
        age = self.age + self.studies[place].at.year - self.studies[0].at.year
        return float(logit(age, s, trend, self._effect))

    def _admission(self, hadm: int, begin: datetime, end: datetime, dies: bool, enters_icu: bool, at: datetime) -> None:
        u, rng = self._rng.uniform, self._rng
        registered_at = (
            begin - timedelta(hours=u(3, 8)) if rng.random() < 0.6 or begin > at - timedelta(hours=1) else None
        )
        if registered_at:
            self.add("ed/edstays", hadm_id=hadm, stay_id=hadm + 10_000_000, intime=_timestamp(registered_at),
                     outtime=_timestamp(begin + timedelta(hours=0.5)), gender=self.sex, race=self.race)  # fmt: skip
        self.add(
            "hosp/admissions", hadm_id=hadm, admittime=_timestamp(begin), dischtime=_timestamp(end),
            deathtime=_timestamp(end) if dies else "", hospital_expire_flag=int(dies), race=self.race,
            edregtime=_timestamp(registered_at), edouttime=_timestamp(begin) if registered_at else "",
            admission_type="URGENT", insurance="Other", language="English",
        )  # fmt: skip
        stay = {"hadm_id": hadm, "stay_id": 30_000_000 + hadm % 10_000_000}
        if enters_icu:
            icu_begin = at + timedelta(hours=u(1, 47))
            self.add("icu/icustays", **stay, intime=_timestamp(icu_begin), outtime=_timestamp(end - timedelta(hours=1)))
            if rng.random() < 0.4:
                ventilation_begin = icu_begin + timedelta(hours=u(0, 3))
                self.add(
                    "icu/procedureevents",
                    **stay,
                    itemid=224385,
                    starttime=_timestamp(ventilation_begin),
                    endtime=_timestamp(ventilation_begin),
                )
                self.add("icu/procedureevents", **stay, itemid=225792, starttime=_timestamp(ventilation_begin),
                         endtime=_timestamp(end - timedelta(hours=2)))  # fmt: skip
        elif rng.random() < 0.04:
            # Already in intensive care: no question for this study.
            self.add("icu/icustays", **stay, intime=_timestamp(at - timedelta(hours=1)), outtime=_timestamp(end))

    def _labs(self, hadm: int, at: datetime, s: float, enters_icu: bool) -> None:
        rng = self._rng
        for name, marker in MARKERS.items():
            if rng.random() < 0.08:
                continue
            noise = rng.normal(size=3)
            current = marker.mean + marker.spread * (marker.slope * s + noise[0])
            earlier = marker.mean + marker.spread * noise[1]
            later = marker.mean + marker.spread * (marker.slope * 4 * (1 if enters_icu else -1) + noise[2])
            hours_before = float(rng.uniform(2, 20))
            self._lab(hadm, name, earlier, at - timedelta(hours=hours_before + 30))
            self._lab(hadm, name, current, at - timedelta(hours=hours_before))
            # Drawn before the study and known after it, or later altogether: these must not be read.
            self._lab(hadm, name, later, at + timedelta(hours=float(rng.uniform(-0.5, 40))), not_before=at)

    def _lab(
        self, hadm: int, name: str, value: float, charted_at: datetime, not_before: datetime | None = None
    ) -> None:
        item, marker = ITEMS[name], MARKERS[name]
        value = round(min(max(value, item.lowest), item.highest), marker.digits)
        low, high = marker.reference
        stored_at = max(charted_at, not_before) if not_before else charted_at
        number = 100_000_000 + self.subject % 10_000_000 * 1000 + len(self.rows.get("hosp/labevents", []))
        self.add(
            "hosp/labevents", labevent_id=number, hadm_id=hadm or "", specimen_id=number, itemid=item.itemid,
            charttime=_timestamp(charted_at), storetime=_timestamp(stored_at + timedelta(minutes=40)),
            value=value, valuenum=value,
            valueuom=item.unit, ref_range_lower=low, ref_range_upper=high, priority="ROUTINE",
        )  # fmt: skip

    def plant_fault(self, number: int) -> None:
        """Plants a fault in this patient's rows: kind `number % FAULT_EVERY`, most patients of a kind alike."""
        stays, labs = self.rows.get("hosp/admissions", []), self.rows.get("hosp/labevents", [])
        patient, last = self.rows["hosp/patients"][0], (stays or [{}])[-1]
        lab = labs[0] if labs else {}
        faults = {
            0: lambda: self.rows.pop("hosp/admissions", None),
            1: lambda: last.update(deathtime="", hospital_expire_flag=1),
            2: lambda: last.update(deathtime=_shift(last.get("dischtime"), 3), hospital_expire_flag=1),
            3: lambda: patient.update(dod=(self.studies[0].at - timedelta(days=9)).strftime("%Y-%m-%d")),
            4: lambda: stays and self.add("hosp/admissions", **{
                **last, "hadm_id": last["hadm_id"] + 1_000_000, "admittime": _shift(last["admittime"], 0.5)}),
            5: lambda: [row.update(hadm_id="") for row in labs[::2]],
            6: lambda: lab.update(value="___", valuenum=""),
            7: lambda: lab.update(valueuom="g/L"),
            8: lambda: lab.update(storetime=""),
            9: lambda: lab.update(charttime=""),
            10: lambda: lab.update(value=1_276_103, valuenum=1_276_103),
            11: lambda: lab.update(value="", valuenum=""),
            12: lambda: last.update(dischtime=""),
            13: lambda: last.update(dischtime=_shift(last.get("admittime"), -20)),
            14: lambda: self.add("hosp/patients", **patient),
            15: lambda: self.rows.pop("hosp/patients"),
            16: lambda: patient.update(dod="unknown"),
            17: lambda: last.update(deathtime=last.get("dischtime", ""), hospital_expire_flag=0),
            18: lambda: self.add("icu/icustays", stay_id=39_999_999, intime="", outtime=""),
            19: lambda: self.add("icu/procedureevents", stay_id=39_999_999, itemid=225792, starttime="", endtime=""),
            20: lambda: self.add("ed/edstays", stay_id=49_999_999, intime="", outtime=""),
            21: lambda: last.update(hadm_id=""),
            22: lambda: last.update(deathtime=_shift(last.get("dischtime"), -1), hospital_expire_flag=1)
            or patient.update(dod=_shift(last.get("dischtime"), 24 * 40)[:10]),
            23: lambda: labs and self.add("hosp/labevents", **lab),
        }  # fmt: skip
        if number % 2 == 0:
            faults[number // 2 % FAULT_EVERY]()


def _stays(studies: list[Study]) -> Iterator[tuple[int, int]]:
    """(first, last) position of the studies of each stay."""
    first = 0
    for place, (before, after) in enumerate(pairwise(studies), 1):
        if after.at - before.at > ONE_STAY:
            yield first, place - 1
            first = place
    yield first, len(studies) - 1


def _timestamp(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S") if at else ""


def _shift(text: str | None, hours: float) -> str:
    return _timestamp(datetime.fromisoformat(text) + timedelta(hours=hours)) if text else ""


def study_times(studies: Iterable[dict[str, Any]]) -> dict[int, datetime]:
    """study_id → time, from rows of studies.jsonl."""
    return {int(row["study_id"]): datetime.fromisoformat(row["taken_at"]) for row in studies}


def known_studies(truth: Path, states: Path) -> dict[int, Any]:
    """study_id → what the oracles may know of the study (`phantom_severity.Knowledge`), from the stage's own states."""
    from lumen_hpc.outcomes.phantom_severity import Knowledge

    labs = {int(row["study_id"]): row["state"] for row in read_jsonl(states)}
    knowledge = {}
    for _, rows in groupby(read_jsonl(truth), key=lambda row: row["subject_id"]):
        burdens: tuple[int, ...] = ()
        for row in rows:
            burdens += (burden(study_states(row)),)
            state = labs.get(int(row["study_id"]))
            if state and state["age"] is not None:
                values = {name: value["value"] for name, value in state["labs"].items()}
                knowledge[int(row["study_id"])] = Knowledge(state["age"], burdens, values)
    return knowledge
