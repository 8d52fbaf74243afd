"""What was known of a patient at a study's time t: the only place where inputs are made.

Nothing with a time after t is read, and nothing that the tables hold because of what came later. So registration in
the emergency department comes from ed/edstays, which holds every visit, and not from admissions, which holds only
visits that ended in admission; diagnoses, `deathtime`, `hospital_expire_flag`, `dod` and the time of discharge are
no inputs. The last two say only whether a stay was over at t.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from lumen_hpc.data.demographics import Person
from lumen_hpc.outcomes.histories import History


def state_of(history: History, at: datetime, labs: dict[str, Any]) -> dict[str, Any]:
    """The state at `at`: {age [years], sex, place, hours {hospital, icu, ed}, labs}.

    `place` is icu, hospital, ed or outside, and `hours` says how long the patient had been in each of them, to 0.1 h.
    `labs`: analyte → what `labs.latest` gives.
    """
    admission_times = [stay.admitted_at for stay in history.admissions if stay.admitted_at <= at < stay.discharged_at]
    begins_by_place = {
        "icu": [span.begin for span in history.icu if span.contains(at)],
        "hospital": admission_times,
        "ed": [span.begin for span in history.ed if span.contains(at)],
    }
    hours = {
        place: round((at - begins[-1]) / timedelta(hours=1), 1) for place, begins in begins_by_place.items() if begins
    }
    return {
        "age": Person(None, history.anchor_age, history.anchor_year).age(at.year),
        "sex": history.sex or None,
        "place": next(iter(hours), "outside"),
        "hours": hours,
        "labs": labs,
    }
