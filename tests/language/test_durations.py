"""Spans of time that a prediction may name, as days; what names no one number of days is left as it is."""

from __future__ import annotations

import pytest

from lumen_hpc.language.durations import in_days


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("two weeks from now", "14 days from now"),
        ("over the coming week", "over the coming 7 days"),
        ("after twenty one days", "after 21 days"),
        ("one hundred and twenty days", "120 days"),
        ("by the tenth day", "by the day 10"),
        ("by the 5th day", "by the day 5"),
        ("48 hours", "2 days"),
        ("36 hours", "36 hours"),
        ("two to three weeks", "14 to 21 days"),
        ("the coming weeks", "the coming weeks"),
        ("in two months", "in 2 months"),
        ("a year from now", "1 years from now"),
    ],
)
def test_a_span_of_time_is_a_number_of_days(said, meant):
    assert in_days(said) == meant
