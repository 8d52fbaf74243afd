"""What happened after a study: each outcome with its value, or the reason why it is unknown.

Times are those of MIMIC-IV and MIMIC-CXR, which shift a patient's dates by one amount. An outcome is a fact of the
tables after the study, never an input. docs/outcomes.md writes down every rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from lumen_hpc.config import schema
from lumen_hpc.outcomes.histories import Admission, History

Value = dict[str, Any]
"""{"value": …} or {"unknown": reason}."""

OUTCOMES = schema.OUTCOMES | {"remaining_days": "days from the study to the discharge from its stay"}
"""Name → meaning. All but the last are yes or no."""

NO_CLOCK = "the study has no clock time"
NO_STAY = "the study lies outside any stay"
NO_PATIENT = "the patient is not in MIMIC-IV"
AFTER_DEATH = "the study is later than the death"
DEATH_CONTRADICTED = "an admission is later than the date of death"
NO_FOLLOW_UP = "no admission, so no follow-up"
TOO_SHORT = "the follow-up ends before the horizon"
IN_ICU = "in intensive care at the time of the study"
VENTILATED = "ventilated at the time of the study"
UNTIMED = "recorded without a time that can be read"


@dataclass(frozen=True, slots=True)
class Study:
    """A study in time."""

    study_id: int
    subject_id: int
    split: str
    at: datetime
    """The study's time; the beginning of its day where the clock time is unknown."""
    has_clock: bool


def stay_of(history: History, at: datetime) -> Admission | None:
    """The stay in which a time lies, from registration in the emergency department to discharge.

    Where admissions overlap, the one admitted last.
    """
    stays = [stay for stay in history.admissions if stay.begin <= at < stay.discharged_at]
    return stays[-1] if stays else None


def outcomes_of(history: History, study: Study) -> dict[str, Value]:
    """Every outcome of a study, in the order of OUTCOMES, and `survival`: days to death or to the end of follow-up."""
    deaths = {f"death_{days}d": _death(history, study, days) for days in (30, 365)}
    values = _hourly(history, study) | deaths
    if ruleless := [name for name in OUTCOMES if name not in values]:
        raise NotImplementedError(f"{', '.join(ruleless)}: no rule in lumen_hpc/outcomes/outcomes.py")
    return {**{name: values[name] for name in OUTCOMES}, "survival": _survival(history, study)}


def _reason_for_all(history: History, study: Study) -> str:
    """Why a patient's outcomes after this study are unknown; empty where they are not."""
    if not history.known:
        return NO_PATIENT
    if history.death is None or history.contradicted:
        return ""
    after_death = history.death < study.at.date() or (
        study.has_clock and history.died_at and history.died_at <= study.at
    )
    return AFTER_DEATH if after_death else ""


def _reason_for_deaths(history: History, study: Study) -> str:
    """Why nothing is known of a death after this study; empty where it is."""
    if reason := _reason_for_all(history, study):
        return reason
    if history.contradicted:
        return DEATH_CONTRADICTED
    if history.death is None and "death" in history.untimed_events:
        return UNTIMED
    return NO_FOLLOW_UP if history.follow_up_end is None else ""


def _death(history: History, study: Study, days: int) -> Value:
    """Death within `days` days; known only where survival would be, or deaths alone would be counted."""
    reason, follow_up_end = _reason_for_deaths(history, study), history.follow_up_end
    if reason or follow_up_end is None:
        return {"unknown": reason}
    horizon = study.at.date() + timedelta(days=days)
    if follow_up_end < horizon:
        return {"unknown": TOO_SHORT}
    return {"value": bool(history.death and history.death <= horizon)}


def _survival(history: History, study: Study) -> Value:
    """{"value": {"days", "died"}}: days to death, or to the end of follow-up of a patient not known to have died."""
    reason, follow_up_end = _reason_for_deaths(history, study), history.follow_up_end
    if reason or follow_up_end is None:
        return {"unknown": reason}
    died = history.death is not None and history.death <= follow_up_end
    end = history.death if died and history.death else follow_up_end
    days = (end - study.at.date()).days
    return {"value": {"days": days, "died": died}} if days >= 0 else {"unknown": TOO_SHORT}


def _hourly(history: History, study: Study) -> dict[str, Value]:
    """The outcomes that need the study's clock time and its stay."""
    at, stay = study.at, stay_of(history, study.at)
    reason = _reason_for_all(history, study) or (NO_CLOCK if not study.has_clock else NO_STAY if stay is None else "")
    if reason or stay is None:
        names = [name for name in OUTCOMES if not name.startswith("death_")]
        return {name: {"unknown": reason} for name in names}
    untimed_reasons = {kind: UNTIMED if kind in history.untimed_events else "" for kind in ("icu", "ventilation")}
    icu_begins = [span.begin for span in history.icu]
    ventilation_begins = [span.begin for span in history.ventilation] + history.intubations
    icu_reason = IN_ICU if any(span.contains(at) for span in history.icu) else untimed_reasons["icu"]
    ventilation_reason = (
        VENTILATED if any(span.contains(at) for span in history.ventilation) else untimed_reasons["ventilation"]
    )
    time_to_discharge, died = stay.discharged_at - at, history.died_in(stay)
    death_reason = DEATH_CONTRADICTED if died and history.contradicted else ""
    values: dict[str, Value] = {
        "in_hospital_death": _value_or_reason(death_reason, died),
        "remaining_days": {"value": round(time_to_discharge / timedelta(days=1), 3)},
        "discharge_72h": _value_or_reason(death_reason, not died and time_to_discharge <= timedelta(hours=72)),
    }
    for hours in (24, 48):
        values[f"icu_{hours}h"] = _value_or_reason(icu_reason, _within(icu_begins, at, hours))
        values[f"ventilation_{hours}h"] = _value_or_reason(ventilation_reason, _within(ventilation_begins, at, hours))
    return values


def _value_or_reason(reason: str, value: bool) -> Value:
    """The value, if there is no reason why it is unknown."""
    return {"unknown": reason} if reason else {"value": value}


def _within(events: Iterable[datetime], at: datetime, hours: int) -> bool:
    """Whether any event lies in (at, at + hours]."""
    return any(at < event <= at + timedelta(hours=hours) for event in events)
