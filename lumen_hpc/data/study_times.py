"""When a study was taken, and the days between two of them.

MIMIC-CXR shifts dates by one amount a patient, so intervals within a patient are true (paper, section 2.4).
StudyTime is a number HHMMSS.fff without leading zeros. Some values are no clock time (86357 would be 08:63:57):
then the date is still valid, and the number still orders the studies of one day.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from functools import lru_cache
from typing import Any

import numpy as np

from lumen_hpc.data.tables import whole_numbers

_EPOCH = "1970-01-01"
_FIRST_ORDINAL = date.fromisoformat(_EPOCH).toordinal()
_CLOCK = re.compile(r"(\d?\d):(\d\d):(\d\d(?:\.\d+)?)")
_NUMBER_CHARACTERS = frozenset("0123456789. -")
"""Signs of a number; Python's own reading takes 1_000 and 1e5 too."""
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ T]\d\d:\d\d:\d\d(?:\.\d+)?)?")


@lru_cache(maxsize=1 << 16)
def parse_date(study_date: str) -> date | None:
    """The day of a study from StudyDate: YYYYMMDD, also as pandas writes it (`21390407.0`), or ISO; else None.

    Medical-Diff-VQA's own script reads YYYYMMDD as nanoseconds since 1970, which gives `1970-01-01
    00:00:00.021390407`; that is read back.
    """
    text = study_date.strip()
    digits = text.removesuffix(".0")
    if text.startswith(_EPOCH):  # without all nine digits of its fraction, the date is lost
        digits = text.removeprefix(_EPOCH)[1:].removeprefix("00:00:00.0")
    elif iso := _ISO.fullmatch(text):
        digits = iso[1].replace("-", "")
    with suppress(ValueError):
        if len(digits) == 8 and digits.isdecimal():
            return date.fromisoformat(digits)
    return None


def days(dates: Sequence[str]) -> np.ndarray:
    """int32 [n]: the ordinals of a column of dates; 0 for a missing or impossible one."""
    numbers: Any = whole_numbers(dates)
    years, months, day = numbers // 10_000, numbers // 100 % 100, numbers % 100
    # Every month has 28 days; later days, and dates in another form, are read one by one.
    regular = (years >= 1000) & (years <= 9999) & (months >= 1) & (months <= 12) & (day >= 1) & (day <= 28)
    starts = np.where(regular, (years - 1970) * 12 + months - 1, 0).astype("M8[M]").astype("M8[D]").astype(np.int64)
    ordinals: np.ndarray = (starts + _FIRST_ORDINAL + day - 1).astype(np.int32)
    for row in np.flatnonzero(~regular).tolist():
        parsed = parse_date(dates[row])
        ordinals[row] = parsed.toordinal() if parsed else 0
    return ordinals


def study_time(text: str) -> float:
    """StudyTime as a number, which orders the studies of one day; NaN if it is missing or not a number.

    HH:MM:SS, as a database writes it, is read too.
    """
    clock = _CLOCK.fullmatch(text.strip())
    number = "".join(clock.groups()) if clock else text
    try:
        return float(number) if _NUMBER_CHARACTERS.issuperset(number) else math.nan
    except ValueError:
        return math.nan


def study_times(texts: Sequence[str]) -> np.ndarray:
    """float64 [n]: `study_time` of a column."""
    if _NUMBER_CHARACTERS.issuperset("".join(texts)):
        with suppress(ValueError):  # a text that is no number, as an empty one is
            return np.fromiter(map(float, texts), np.float64, len(texts))
    return np.fromiter(map(study_time, texts), np.float64, len(texts))


def is_earlier(moment: str, other: str) -> bool:
    """Whether one `taken_at` is known to be before another: on one day, only where both have a clock time."""
    return moment < other if "T" in moment and "T" in other else moment[:10] < other[:10]


def moments(days: np.ndarray, numbers: np.ndarray) -> list[date]:
    """When studies were taken, from the ordinals of their days and their StudyTimes as numbers.

    A datetime to the microsecond: 81913.0 is 08:19:13. The day alone where the number is missing or no clock time.
    """
    in_range = (numbers >= 0) & (numbers < 240000)  # not so for NaN
    numbers = np.where(in_range, numbers, 0)
    whole: np.ndarray = numbers.astype(np.int64)
    hours: np.ndarray = whole // 10000
    minutes: np.ndarray = whole // 100 % 100
    seconds: np.ndarray = whole % 100
    # StudyTime has milliseconds at most; as a binary number, .234 is a little less.
    microseconds = np.minimum(np.rint((numbers - whole) * 1e6), 999_999).astype(np.int64)
    since_1970 = (days.astype(np.int64) - _FIRST_ORDINAL) * 86_400 + hours * 3600 + minutes * 60 + seconds
    taken_at: list[date] = (since_1970 * 1_000_000 + microseconds).astype("datetime64[us]").tolist()
    for row in np.flatnonzero(~in_range | (minutes > 59) | (seconds > 59)).tolist():
        taken_at[row] = date.fromordinal(int(days[row]))
    return taken_at
