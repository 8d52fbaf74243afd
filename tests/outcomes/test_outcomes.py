"""Each outcome of each hand-written case: its value, or the reason why it is unknown."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from lumen_hpc.outcomes import outcomes as rules
from lumen_hpc.outcomes.histories import Admission, History, Period
from tests.outcomes.conftest import Small


@pytest.mark.parametrize(
    ("case", "outcome", "value"),
    [
        ("ordinary", "in_hospital_death", False),
        ("ordinary", "death_30d", False),
        ("ordinary", "death_365d", True),
        ("ordinary", "icu_24h", True),
        ("ordinary", "ventilation_24h", False),
        ("ordinary", "ventilation_48h", True),
        ("ordinary", "discharge_72h", False),
        ("ordinary", "remaining_days", 5.0),
        ("died without deathtime", "in_hospital_death", True),
        ("died without deathtime", "discharge_72h", False),
        ("died without deathtime", "death_30d", True),
        ("died without deathtime", "icu_48h", False),
        ("deathtime after dischtime", "in_hospital_death", True),
        ("death without flag", "in_hospital_death", True),
        ("death without flag", "death_30d", True),
        ("death after discharge", "in_hospital_death", False),
        ("death after discharge", "discharge_72h", True),
        ("died in the other stay", "in_hospital_death", True),
        ("died in the other stay", "discharge_72h", False),
        ("dod before a later stay", "in_hospital_death", False),
        ("dod before a later stay", "icu_24h", False),
        ("overlapping", "remaining_days", 8.333),
        ("admitted later", "remaining_days", 3.75),
        ("late study", "death_30d", False),
        ("no clock", "death_30d", False),
        ("death after discharge", "death_30d", True),
        ("very old", "discharge_72h", True),
    ],
)
def test_a_known_outcome_has_its_value(read_small: Small, case: str, outcome: str, value: object) -> None:
    assert read_small.outcomes[case][outcome] == {"value": value}


@pytest.mark.parametrize(
    ("case", "outcome", "reason"),
    [
        ("dod before the study", "death_30d", rules.AFTER_DEATH),
        ("dod before the study", "icu_24h", rules.AFTER_DEATH),
        ("dod before a later stay", "death_30d", rules.DEATH_CONTRADICTED),
        ("dod before a later stay", "survival", rules.DEATH_CONTRADICTED),
        ("no admission", "in_hospital_death", rules.NO_STAY),
        ("no admission", "death_365d", rules.NO_FOLLOW_UP),
        ("in icu", "icu_48h", rules.IN_ICU),
        ("in icu", "ventilation_24h", rules.VENTILATED),
        ("unknown patient", "death_30d", rules.NO_PATIENT),
        ("no clock", "remaining_days", rules.NO_CLOCK),
        ("bad admissions", "in_hospital_death", rules.NO_STAY),
        ("late study", "death_365d", rules.TOO_SHORT),
        ("late study", "discharge_72h", rules.NO_STAY),
    ],
)
def test_an_unknown_outcome_has_its_reason(read_small: Small, case: str, outcome: str, reason: str) -> None:
    assert read_small.outcomes[case][outcome] == {"unknown": reason}


def test_a_death_counts_only_where_survival_would_be_known(read_small: Small) -> None:
    """Else, of the studies after the last discharge, the dead alone would have a label."""
    assert "unknown" in read_small.outcomes["late study"]["death_365d"]
    assert read_small.outcomes["late study"]["survival"] == {"value": {"days": 45, "died": False}}


def test_survival_is_days_to_death_or_to_the_end_of_follow_up(read_small: Small) -> None:
    assert read_small.outcomes["ordinary"]["survival"] == {"value": {"days": 200, "died": True}}
    assert read_small.outcomes["very old"]["survival"]["value"]["died"] is False


def test_every_outcome_of_every_study_has_a_value_or_a_reason(read_small: Small) -> None:
    for outcomes in read_small.outcomes.values():
        assert list(outcomes) == [*rules.OUTCOMES, "survival"]
        assert all(set(value) in ({"value"}, {"unknown"}) for value in outcomes.values())


AT = datetime(2150, 3, 1, 8)


def test_an_outcome_without_a_rule_names_the_file_that_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.OUTCOMES, "readmission_30d", "another stay within 30 days")
    with pytest.raises(NotImplementedError, match=r"readmission_30d: no rule in lumen_hpc/outcomes/outcomes\.py"):
        found()


def found(dod: timedelta | None = None, **periods: timedelta) -> dict:
    """Outcomes of a study at AT, in a stay of 72 h more; death and periods begin so long after the study."""
    stay = Admission(1, AT - timedelta(hours=5), AT + timedelta(hours=72), None, None, "")
    begun = {name: [Period(AT + after, AT + after + timedelta(hours=9))] for name, after in periods.items()}
    history = History(7, known=True, dod=(AT + dod).date() if dod is not None else None, admissions=[stay], **begun)
    return rules.outcomes_of(history, rules.Study(70, 7, "test", AT, True))


def test_the_last_moment_of_a_horizon_belongs_to_it() -> None:
    day, hour, least = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)
    assert found()["discharge_72h"] == {"value": True}
    assert [found(dod=days * day)["death_30d"]["value"] for days in (0, 30, 31)] == [True, True, False]
    assert found(dod=0 * day)["survival"] == {"value": {"days": 0, "died": True}}
    for name in ("icu", "ventilation"):
        for after, value in ((24 * hour, True), (24 * hour + least, False), (least, True)):
            assert found(**{name: after})[f"{name}_24h"] == {"value": value}, after
    assert found(icu=0 * hour)["icu_24h"] == {"unknown": rules.IN_ICU}
