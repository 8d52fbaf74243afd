"""Dates and times of studies, with the odd ones that the data holds."""

from datetime import date, datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumen_hpc.data.study_times import days, is_earlier, moments, parse_date, study_times

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault


def taken_at(study_date: str, time: str) -> date:
    return moments(days([study_date]), study_times([time]))[0]


@calm
@given(st.datetimes(datetime(2100, 1, 1), datetime(2212, 12, 31)))
def test_any_moment_survives_the_way_through_the_csv(moment):
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    # As in the metadata: a number without leading zeros, to the millisecond.
    number = f"{int(moment.strftime('%H%M%S'))}.{moment.microsecond // 1000:03d}"
    read = taken_at(moment.strftime("%Y%m%d"), number)
    assert read == moment


def test_a_study_time_keeps_its_milliseconds():
    assert taken_at("21380516", "193050.234").isoformat() == "2138-05-16T19:30:50.234000"
    assert taken_at("21380516", "235959.9999999").isoformat() == "2138-05-16T23:59:59.999999"


@pytest.mark.parametrize("text", ["193050.234", "19:30:50.234", " 19:30:50.234 "])
def test_a_clock_time_is_read_with_or_without_colons(text):
    assert taken_at("21380516", text).isoformat() == "2138-05-16T19:30:50.234000"
    assert list(study_times(["", text, "5.0"]))[1:] == [193050.234, 5.0]


def test_an_hour_may_have_one_digit():
    assert taken_at("21380516", "9:30:50").isoformat() == "2138-05-16T09:30:50"


@pytest.mark.parametrize("text", [" ", "-", "08.30.00", "08-30-00", "1 2"])
def test_a_text_that_is_no_number_is_a_missing_time_whatever_stands_beside_it(text):
    for column in ([text], ["", text], ["93015.500", text]):
        assert np.isnan(study_times(column)[-1])


@pytest.mark.parametrize(
    "text", ["2138-05-16", "2138-05-16 00:00:00", "2138-05-16T19:30:50.5", "1970-01-01 00:00:00.021380516"]
)
def test_a_date_may_be_iso_or_nanoseconds_since_1970(text):
    assert parse_date(text) == date(2138, 5, 16)


def test_a_column_of_dates_reads_as_each_alone():
    texts = [
        "2138-05-16",
        "21380229",
        "21360229",
        "21380431",
        "21380430",
        "",
        "nan",
        "09991231",
        "10000101",
        "99991231",
    ]
    texts += [f"2138{month:02}{day:02}{end}" for month in range(14) for day in range(33) for end in ("", ".0")]
    for column in (texts, texts[7:]):
        dates = [parse_date(text) for text in column]
        assert days(column).tolist() == [day.toordinal() if day else 0 for day in dates]


@pytest.mark.parametrize(
    "text",
    [
        "86357.000", "96000", "240000", "-1", "", "nan", "noon", "inf", "1_000", "1e5", "12:30", "12:30:15 PM",
        "193050,234", "T193050", "0x10", "193075",
    ],
)  # fmt: skip
def test_what_is_no_clock_time_leaves_the_date_alone(text):
    read = taken_at("21380516", text)
    assert read == date(2138, 5, 16) and not isinstance(read, datetime)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "2138051",
        "21380532",
        "21391301",
        "16.05.2138",
        "abcdefgh",
        "1970-01-01",
        "1970-01-01 00:00:00.021380",
    ],
)
def test_a_text_that_is_no_date_gives_none(text):
    assert parse_date(text) is None


@pytest.mark.parametrize(
    ("taken", "than", "earlier"),
    [
        ("2138-05-15", "2138-05-16", True),
        ("2138-05-16", "2138-05-15T01:00:00", False),
        ("2138-05-16T08:00:00", "2138-05-16T09:00:00", True),
        ("2138-05-16T08:00:00", "2138-05-16T08:00:00", False),
        ("2138-05-16", "2138-05-16T09:00:00", False),
        ("2138-05-16T09:00:00", "2138-05-16", False),
    ],
)
def test_of_one_day_a_study_is_earlier_only_where_both_clocks_are_known(taken: str, than: str, earlier: bool):
    assert is_earlier(taken, than) is earlier
