"""When a study was taken, and the days between two of them.

MIMIC-CXR shifts dates by one amount a patient, so intervals within a patient are true (paper, section 2.4).
StudyTime is a number HHMMSS.fff without leading zeros. Some values are no clock time (86357 would be 08:63:57):
then the date is still valid, and the number still orders the studies of one day.
"""

from __future__ import annotations

import math
import re
from datetime import date, datetime, time

from lumen_hpc.errors import UserError

_EPOCH = "1970-01-01"
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ T]\d\d:\d\d:\d\d(?:\.\d+)?)?")


def taken_on(study_date: str) -> date:
    """The day of a study from StudyDate: YYYYMMDD, also as pandas writes it (`21390407.0`), or ISO.

    Medical-Diff-VQA's own script reads YYYYMMDD as nanoseconds since 1970, which gives `1970-01-01
    00:00:00.021390407`; that is read back. Raises UserError if the date is missing or not a date.
    """
    text = study_date.strip()
    if not text or text.lower() in ("nan", "nat"):
        raise UserError("no StudyDate")
    digits = text.removesuffix(".0")
    if text.startswith(_EPOCH):  # without all nine digits of its fraction, the date is lost
        digits = text.removeprefix(_EPOCH)[1:].removeprefix("00:00:00.0")
    elif iso := _ISO.fullmatch(text):
        digits = iso[1].replace("-", "")
    try:
        if len(digits) == 8 and digits.isdecimal():
            return date.fromisoformat(digits)
    except ValueError:
        pass
    raise UserError(f"StudyDate, {len(study_date)} characters, is not a date; expected YYYYMMDD or YYYY-MM-DD")


def study_time(text: str) -> float:
    """StudyTime as a number, which orders the studies of one day; NaN if it is missing or not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def clock(number: float) -> time | None:
    """The clock time of a StudyTime such as 81913.0 (08:19:13), to the microsecond; None if it is not a clock time."""
    if not 0 <= number < 240000:
        return None
    whole = int(number)
    hours, minutes, seconds = whole // 10000, whole // 100 % 100, whole % 100
    if minutes > 59 or seconds > 59:
        return None
    # StudyTime has milliseconds at most; as a binary number, .234 is a little less.
    return time(hours, minutes, seconds, min(round((number - whole) * 1e6), 999_999))


def taken_at(date: str, time: str) -> date:
    """When a study was taken, from StudyDate and StudyTime as the csv files give them.

    A datetime, or the bare date where StudyTime is missing or no clock time. Raises UserError if StudyDate is
    missing or not a date.
    """
    return moment(taken_on(date), study_time(time))


def moment(day: date, number: float) -> date:
    """A day with StudyTime's clock time as a datetime; the day alone if it has none."""
    at = clock(number)
    return day if at is None else datetime.combine(day, at)


def interval_days(main: date, reference: date) -> int:
    """Whole calendar days from the reference study to the main study; 0 on one day, negative if reversed."""
    return main.toordinal() - reference.toordinal()
