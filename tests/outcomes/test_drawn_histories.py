"""Drawn histories, most of whose times coincide or lie at a limit, against docs/outcomes.md written a second time."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from lumen_hpc.outcomes import outcomes as rules
from lumen_hpc.outcomes.faults import Faults
from lumen_hpc.outcomes.histories import Admission, History, Period, _keep_death, _sort_and_check
from lumen_hpc.outcomes.outcomes import Study, outcomes_of
from lumen_hpc.outcomes.state import state_of

T = datetime(2150, 3, 10, 12)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DAYS = (-366, -365, -364, -30, -2, -1, 0, 1, 2, 29, 30, 31, 364, 365, 366)


def drawn(rng: random.Random) -> tuple[History, Study]:
    history = History(7, "F", 60, 2148, known=rng.random() < 0.95)
    for number in range(rng.choice((0, 1, 1, 2, 2, 3))):
        begin = T + rng.choice((-48, -24, -12, 0, 12, 24, *(24 * day for day in DAYS))) * HOUR
        end = begin + rng.choice((0, 12, 24, 48, 72, 84, 96, 720)) * HOUR
        died = end + rng.choice((0, 0, -12, 12, -48)) * HOUR if rng.random() < 0.3 else None
        registered = begin + rng.choice((-24, -12, 12)) * HOUR if rng.random() < 0.5 else None
        history.admissions.append(Admission(number, begin, end, died, registered, ""))
    for spans in (history.icu, history.ed, history.ventilation):
        for _ in range(rng.choice((0, 0, 1, 2))):
            begin = T + rng.choice((-24, -12, 0, 12, 24, 36, 48, 60)) * HOUR
            spans.append(Period(begin, begin + rng.choice((0, 12, 24)) * HOUR))
    if rng.random() < 0.2:
        history.intubations.append(T + rng.choice((-12, 0, 24, 48, 60)) * HOUR)
    if rng.random() < 0.5:
        history.dod = (T + rng.choice(DAYS) * DAY).date()
    history.untimed_events = {kind for kind in ("death", "icu", "ventilation") if rng.random() < 0.1}
    _sort_and_check(history, Faults())
    return history, Study(70, 7, "test", T if rng.random() < 0.9 else datetime(2150, 3, 10), rng.random() < 0.9)


def expected(h: History, study: Study) -> dict[str, Any]:
    """Outcome → its value, or the reason why it is unknown."""
    t, today = study.at, study.at.date()
    deaths = sorted(stay.died_at for stay in h.admissions if stay.died_at)
    death = deaths[0].date() if deaths else h.dod
    back = death is not None and any(stay.admitted_at.date() - death > DAY for stay in h.admissions)
    over = death is not None and not back and (death < today or bool(study.has_clock and deaths and deaths[0] <= t))
    late = rules.NO_PATIENT if not h.known else rules.AFTER_DEATH if over else ""
    found: dict[str, Any] = {}
    unknown = late or (
        rules.DEATH_CONTRADICTED if back else rules.UNTIMED if "death" in h.untimed_events and death is None else ""
    )
    unknown = unknown or ("" if h.admissions else rules.NO_FOLLOW_UP)
    last = max((stay.discharged_at for stay in h.admissions), default=T).date() + 365 * DAY
    for days in (30, 365):
        short = rules.TOO_SHORT if last < today + days * DAY else ""
        found[f"death_{days}d"] = unknown or short or (death is not None and (death - today).days <= days)
    died = death is not None and death <= last
    left = ((death if died and death else last) - today).days
    found["survival"] = unknown or (rules.TOO_SHORT if left < 0 else {"days": left, "died": died})
    stays = [
        stay
        for stay in h.admissions
        if min(stay.registered_at or stay.admitted_at, stay.admitted_at) <= t < stay.discharged_at
    ]
    unknown = late or ("" if study.has_clock else rules.NO_CLOCK) or ("" if stays else rules.NO_STAY)
    stay = max(stays, key=lambda stay: (stay.admitted_at, stay.discharged_at, stay.hadm_id), default=None)
    if unknown or stay is None:
        return {**found, **{name: unknown for name in rules.OUTCOMES if name not in found}}
    begin = min(stay.registered_at or stay.admitted_at, stay.admitted_at)
    died = stay.died_at is not None or any(begin <= moment <= stay.discharged_at for moment in deaths)
    denied = rules.DEATH_CONTRADICTED if died and back else ""
    found["in_hospital_death"] = denied or died
    found["discharge_72h"] = denied or (not died and stay.discharged_at - t <= 72 * HOUR)
    found["remaining_days"] = round((stay.discharged_at - t) / DAY, 3)
    tubes = [span.begin for span in h.ventilation] + h.intubations
    for name, spans, begins, there in (
        ("icu", h.icu, [span.begin for span in h.icu], rules.IN_ICU),
        ("ventilation", h.ventilation, tubes, rules.VENTILATED),
    ):
        unknown = rules.UNTIMED if name in h.untimed_events else ""
        unknown = there if any(span.begin <= t < span.end for span in spans) else unknown
        for hours in (24, 48):
            found[f"{name}_{hours}h"] = unknown or any(0 * HOUR < one - t <= hours * HOUR for one in begins)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_outcome_is_what_the_document_says(seed: int) -> None:
    rng = random.Random(seed)
    seen = set()
    for _ in range(1000):
        history, study = drawn(rng)
        found = outcomes_of(history, study)
        values = {name: outcome.get("value", outcome.get("unknown")) for name, outcome in found.items()}
        assert values == expected(history, study), (history, study)
        seen |= {(name, value) for name, value in values.items() if name not in ("remaining_days", "survival")}
    assert len(seen) > 50, "too few cases are met"


def test_the_death_of_a_stay_that_is_left_out_is_kept_where_dod_knows_of_none() -> None:
    unknown, known = History(7), History(8, dod=T.date() - DAY)
    for history in (unknown, known):
        _keep_death(history, T, expired=True)
    assert (unknown.death, known.death) == (T.date(), T.date() - DAY)
    assert not unknown.untimed_events | known.untimed_events


@pytest.mark.parametrize("seed", range(5))
def test_a_place_is_one_where_the_patient_is_and_the_hours_are_since_the_last_entry(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        history, study = drawn(rng)
        state = state_of(history, study.at, {})
        stays = [Period(stay.admitted_at, stay.discharged_at) for stay in history.admissions]
        hours = {
            place: (study.at - max(begins)) / HOUR
            for place, spans in (("icu", history.icu), ("hospital", stays), ("ed", history.ed))
            if (begins := [span.begin for span in spans if span.begin <= study.at < span.end])
        }
        assert state["hours"] == hours and state["place"] == next(iter(hours), "outside")
        assert state["age"] == 62
