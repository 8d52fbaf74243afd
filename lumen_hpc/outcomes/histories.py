"""A patient's stays, deaths and ventilation, from MIMIC-IV's small tables, with their faults named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

from lumen_hpc.data.demographics import VALID_AGES, VALID_YEARS
from lumen_hpc.outcomes.faults import Faults
from lumen_hpc.outcomes.tables import Tables, id_in

DAY = timedelta(days=1)
FOLLOW_UP = timedelta(days=365)
"""MIMIC-IV keeps a date of death only up to one year after the patient's last discharge."""
VENTILATION, INTUBATION = 225792, 224385
"""Item ids of invasive ventilation (it lasts) and of intubation (a moment) in icu/procedureevents."""


RACES = frozenset({
    "white", "black", "asian", "hispanic", "portuguese", "south", "american", "native", "multiple", "other",
    "unknown", "unable", "patient",
})  # fmt: skip
"""First words of the races in MIMIC-IV; any other text of that column may be free text, and is not copied."""


def race_group(text: str | None) -> str:
    """The first word of MIMIC-IV's race, which groups its many kinds; empty for a text that is none of them."""
    first = (text or "").replace("/", " ").strip().split(" ")[0].split("-")[0].lower()
    return first if first in RACES else ""


@dataclass(slots=True)
class Admission:
    hadm_id: int
    admitted_at: datetime
    discharged_at: datetime
    died_at: datetime | None
    """When the patient died in this admission, else None."""
    registered_at: datetime | None
    """Registration in the emergency department. Only visits that ended in admission have it, so that it must never
    reach an input."""
    race: str
    """Its group; empty for none."""

    @property
    def begin(self) -> datetime:
        """Registration in the emergency department or admission, whichever was first."""
        return min(self.registered_at or self.admitted_at, self.admitted_at)


@dataclass(slots=True)
class Period:
    """A time with a beginning and an end."""

    begin: datetime
    end: datetime

    def contains(self, at: datetime) -> bool:
        return self.begin <= at < self.end


@dataclass(slots=True)
class History:
    """What the tables record about one patient, except laboratory values."""

    subject_id: int
    sex: str = ""
    """F, M, or empty where it is unknown."""
    anchor_age: int | None = None
    anchor_year: int | None = None
    dod: date | None = None
    known: bool = False
    """Whether the patient has a row in patients."""
    admissions: list[Admission] = field(default_factory=list)
    """In the order of admission."""
    icu: list[Period] = field(default_factory=list)
    ed: list[Period] = field(default_factory=list)
    ventilation: list[Period] = field(default_factory=list)
    intubations: list[datetime] = field(default_factory=list)
    untimed_events: set[str] = field(default_factory=set)
    """Kinds of events (death, icu, ventilation) of which one has a time that cannot be read."""

    @property
    def died_at(self) -> datetime | None:
        """When the patient died in hospital; None for another death."""
        return min((stay.died_at for stay in self.admissions if stay.died_at), default=None)

    @property
    def death(self) -> date | None:
        """The day of death: the hospital's own time where there is one, else dod."""
        return self.died_at.date() if self.died_at else self.dod

    @property
    def contradicted(self) -> bool:
        """Whether a stay begins more than a day after the recorded death, so that one of the two is wrong."""
        death = self.death
        return death is not None and any(stay.admitted_at.date() > death + DAY for stay in self.admissions)

    def died_in(self, stay: Admission) -> bool:
        """Whether a stay ended in death: by its own record, or by that of a stay which overlaps it."""
        deaths = [other.died_at for other in self.admissions if other.died_at]
        return stay.died_at is not None or any(stay.begin <= death_time <= stay.discharged_at for death_time in deaths)

    @property
    def follow_up_end(self) -> date | None:
        """The last day on which the release would know of a death; None for a patient without admissions."""
        if not self.admissions:
            return None
        return (max(stay.discharged_at for stay in self.admissions) + FOLLOW_UP).date()


def read_histories(tables: Tables, subjects: Iterable[int], faults: Faults) -> dict[int, History]:
    """The history of every patient of the run (table `patients_of_run`), by subject_id.

    Raises UserError for a table of whose times none can be read.
    """
    histories = {subject: History(subject) for subject in subjects}

    def require_times(table: str, kind: str, name: str) -> None:
        any_readable = any(getattr(history, name) for history in histories.values())
        tables.require_times(table, faults.counts[kind], any_readable)

    _read_patients(tables, histories, faults)
    require_times("hosp/patients", "dod not a date", "dod")  # before a deathtime can stand in for it
    _read_admissions(tables, histories, faults)
    require_times("hosp/admissions", "admission without times", "admissions")
    _read_periods(tables, histories, faults)
    require_times("icu/icustays", "ICU stay without times", "icu")
    require_times("icu/procedureevents", "ventilation without times", "ventilation")
    require_times("ed/edstays", "ED stay without times", "ed")
    for history in histories.values():
        _sort_and_check(history, faults)
    return histories


def _read_patients(tables: Tables, histories: dict[int, History], faults: Faults) -> None:
    ages = f"anchor_age, {_years('anchor_age', VALID_AGES)}, anchor_year, {_years('anchor_year', VALID_YEARS)}"
    select = f"gender, {ages}, {_times('dod')}::DATE, dod IS NOT NULL"
    rows = sorted(tables.rows("hosp/patients", select), key=str)
    for subject, gender, age_text, age, year_text, year, dod, has_dod in rows:
        history = histories[subject]
        if history.known:
            faults("duplicate patient", "patients", subject_id=subject)
            continue
        if has_dod and dod is None:
            faults("dod not a date", "patients", subject_id=subject)
            history.untimed_events.add("death")
        if gender and gender not in ("F", "M"):
            faults("unknown sex", "patients", subject_id=subject)
        if (age_text and age is None) or (year_text and year is None):
            faults("unknown age", "patients", subject_id=subject)
        history.known, history.sex = True, gender if gender in ("F", "M") else ""
        history.anchor_age, history.anchor_year, history.dod = age, year, dod


def _read_admissions(tables: Tables, histories: dict[int, History], faults: Faults) -> None:
    select = f"{id_in('hadm_id')}, race, TRY_CAST(hospital_expire_flag AS DOUBLE), " + _times(
        "admittime", "dischtime", "deathtime", "edregtime"
    )
    for subject, hadm, race, flag, admitted, discharged, died, registered in tables.rows("hosp/admissions", select):
        ids: dict[str, Any] = {"subject_id": subject, "hadm_id": hadm}
        if hadm is None:
            faults("bad id", "admissions", subject_id=subject)
            continue
        expired = flag == 1
        if admitted is None or discharged is None:
            faults("admission without times", "admissions", **ids)
            _keep_death(histories[subject], died, expired)
            continue
        if discharged < admitted:
            faults("discharge before admission", "admissions", **ids)
            _keep_death(histories[subject], died, expired)
            continue
        if flag not in (0, 1):
            faults("flag of death unknown", "admissions", **ids)
        if expired and died is None:
            faults("death without deathtime", "admissions", **ids)
            died = discharged
        elif died and died > discharged:
            faults("deathtime after dischtime", "admissions", **ids)
            if not expired:
                _keep_death(histories[subject], died, expired)
                died = None
        elif died and not expired:
            faults("deathtime without the flag", "admissions", **ids)
        group = race_group(race)
        if race and not group:
            faults("race of no known kind", "admissions", **ids)
        stay = Admission(hadm, admitted, discharged, died, registered, group)
        histories[subject].admissions.append(stay)


def _keep_death(history: History, died: datetime | None, expired: bool) -> None:
    """Keeps the death of a stay that is left out: on the day of `dod`, else on that of the stay's record."""
    if died:
        history.dod = history.dod or died.date()
    elif expired:
        history.untimed_events.add("death")


def _read_periods(tables: Tables, histories: dict[int, History], faults: Faults) -> None:
    ids = id_in("stay_id")
    discharges = {stay.hadm_id: stay.discharged_at for history in histories.values() for stay in history.admissions}
    icu_ends: dict[tuple[int, int | None], datetime] = {}
    select = f"{ids}, {_times('intime', 'outtime')}, {id_in('hadm_id')}"
    for subject, stay_id, begin, end, hadm in tables.rows("icu/icustays", select):
        if begin is None or end is None:
            faults("ICU stay without times", "icustays", subject_id=subject, stay_id=stay_id)
        if begin and (end := end or discharges.get(hadm)):
            icu_ends[subject, stay_id] = end
            histories[subject].icu.append(Period(begin, end))
        else:
            histories[subject].untimed_events.add("icu")
    if tables.has("ed/edstays"):
        for subject, stay_id, begin, end in tables.rows("ed/edstays", f"{ids}, {_times('intime', 'outtime')}"):
            if begin is None or end is None:
                faults("ED stay without times", "edstays", subject_id=subject, stay_id=stay_id)
            else:
                histories[subject].ed.append(Period(begin, end))
    select = f"{ids}, {_times('starttime', 'endtime')}, {id_in('itemid')}"
    for subject, stay_id, begin, end, item in tables.rows("icu/procedureevents", select):
        if item not in (VENTILATION, INTUBATION):
            continue
        lasts = item == VENTILATION
        if begin is None or (lasts and end is None):
            faults("ventilation without times", "procedureevents", subject_id=subject, stay_id=stay_id)
        if begin and not lasts:
            histories[subject].intubations.append(begin)
        elif begin and (end := end or icu_ends.get((subject, stay_id))):
            histories[subject].ventilation.append(Period(begin, end))
        else:
            histories[subject].untimed_events.add("ventilation")


def _sort_and_check(history: History, faults: Faults) -> None:
    """Sorts a history and names the faults between its rows."""
    history.admissions.sort(key=lambda stay: (stay.admitted_at, stay.discharged_at, stay.hadm_id))
    for periods in (history.icu, history.ed, history.ventilation):
        periods.sort(key=lambda period: period.begin)
    history.intubations.sort()
    subject = history.subject_id
    if not history.known:
        faults("patient not in MIMIC-IV", "patients", subject_id=subject)
    if not history.admissions:
        faults("patient without any admission", "admissions", subject_id=subject)
    for before, after in pairwise(history.admissions):
        if after.admitted_at < before.discharged_at:
            faults("overlapping admissions", "admissions", subject_id=subject, hadm_id=after.hadm_id)
    if history.contradicted:
        faults("death before an admission", "admissions", subject_id=subject)
    fatal_stay = next((stay for stay in history.admissions if stay.died_at), None)
    if fatal_stay and fatal_stay.died_at and history.dod and abs((fatal_stay.died_at.date() - history.dod).days) > 1:
        faults("dod and deathtime differ", "admissions", subject_id=subject, hadm_id=fatal_stay.hadm_id)


def _years(column: str, limits: range) -> str:
    """SQL of a number of years; null for a text that is none: a cast alone rounds 52.5."""
    number = f"CASE WHEN regexp_full_match({column}, '[0-9]{{1,4}}([.]0)?') THEN TRY_CAST({column} AS INTEGER) END"
    return f"CASE WHEN {number} BETWEEN {limits[0]} AND {limits[-1]} THEN {number} END"


def _times(*columns: str) -> str:
    """SQL that reads times; null for one that Python cannot hold with a year of follow-up, such as `infinity`."""
    timestamps = (f"TRY_CAST({column} AS TIMESTAMP)" for column in columns)
    return ", ".join(f"CASE WHEN {time} BETWEEN '0002-01-01' AND '9000-01-01' THEN {time} END" for time in timestamps)
