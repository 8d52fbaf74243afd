"""Timeline questions: right answers from the findings, one reading for each answer, and no question without one."""

from __future__ import annotations

from itertools import product

import pytest

from lumen_hpc.config.schema import Instruct
from lumen_hpc.data import timelines
from lumen_hpc.data.instructions import Sources

SMALL, MODERATE, LARGE = ({"effusion": {"level": level}} for level in ("small", "moderate", "large"))
NONE: dict = {}


def answers(*findings: dict, days: tuple[int, ...] = (30, 9, 0)) -> dict[str, str]:
    return {asked.kind: asked.short_answer for asked in timelines.timelines(findings, days)}


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ((NONE, SMALL, LARGE), {"since when": "9 days before", "getting worse": "yes", "worst": "taken now"}),
        ((LARGE, SMALL, MODERATE), {"since when": "30 days before", "getting worse": "no", "worst": "30 days before"}),
        ((SMALL, SMALL, MODERATE), {"since when": "30 days before", "getting worse": "yes", "worst": "taken now"}),
        ((MODERATE, SMALL, LARGE), {"since when": "30 days before", "getting worse": "no", "worst": "taken now"}),
        ((SMALL, NONE, SMALL), {"since when": "taken now", "getting worse": "no"}),
        ((NONE, LARGE, NONE), {"getting worse": "no", "worst": "9 days before"}),
        ((SMALL, SMALL, SMALL), {"since when": "30 days before", "getting worse": "no"}),
        ((NONE, NONE, NONE), {}),
    ],
)
def test_each_question_has_the_answer_of_its_findings(findings: tuple, expected: dict[str, str]) -> None:
    assert answers(*findings) == expected


def test_only_the_last_three_images_tell_whether_it_got_worse() -> None:
    found = answers(LARGE, NONE, SMALL, MODERATE, days=(90, 30, 9, 0))
    assert found == {"since when": "9 days before", "getting worse": "yes", "worst": "90 days before"}


def test_a_finding_that_none_of_the_last_three_images_shows_is_not_said_to_be_no_worse() -> None:
    assert answers(LARGE, NONE, NONE, NONE, days=(90, 30, 9, 0)) == {"worst": "90 days before"}


def test_what_cannot_be_answered_is_not_asked() -> None:
    assert answers(SMALL, LARGE, days=(9, 0)) == {}, "two visits"
    assert answers(NONE, SMALL, LARGE, days=(9, 0, 0)) == {}, "two images of one day have one name"
    unclear = {"effusion": {"level": "loculated"}}
    assert answers(NONE, unclear, LARGE) == {"since when": "9 days before"}, "a level without severity has no order"
    four = answers(unclear, NONE, SMALL, LARGE, days=(90, 30, 9, 0))
    assert four == {"since when": "9 days before"}, "the oldest may be the worst"


def test_a_finding_that_has_a_level_on_some_images_alone_is_not_said_to_be_worse_or_better() -> None:
    without_level = {"effusion": {}}
    for levelled in (SMALL, LARGE):
        assert answers(NONE, without_level, levelled) == {"since when": "9 days before"}
        assert answers(levelled, without_level, NONE) == {}
    assert answers(NONE, NONE, without_level) == {
        "since when": "taken now",
        "getting worse": "yes",
        "worst": "taken now",
    }
    assert answers(NONE, without_level, without_level) == {"since when": "9 days before", "getting worse": "yes"}


def test_the_current_image_alone_is_a_test_of_test_studies() -> None:
    for split in ("train", "val", "test"):
        studies = [
            {"subject_id": 1, "split": split, "study_id": day, "image": f"{day}.jpg", "taken_at": f"2150-01-{day:02}"}
            for day in (10, 20, 30)
        ]
        findings = {"10": NONE, "20": SMALL, "30": LARGE}
        rows = list(timelines.records(studies, findings, Sources.join(studies, []), Instruct(max_images=3), 0))
        variants = {(place, record["meta"]["variant"]) for place, record in rows}
        assert variants == {(split, "all")} | ({("test", "one image")} if split == "test" else set())


def every() -> list[timelines.Timeline]:
    return [
        asked for findings in product((NONE, SMALL, MODERATE, LARGE), repeat=3)
        for asked in timelines.timelines(findings, (30, 1, 0))
    ]  # fmt: skip


def test_a_sentence_and_its_short_answer_have_one_reading() -> None:
    for asked in every():
        text = timelines.sentence(asked)
        assert timelines.read(text) == timelines.read(asked.short_answer) is not None
        assert timelines.check(asked, text) == []


def test_the_sentence_of_another_answer_fails_the_check() -> None:
    for asked, other in product(every()[:60], repeat=2):
        if asked.kind == other.kind and asked.short_answer != other.short_answer:
            assert timelines.check(asked, timelines.sentence(other))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Effusion has not been seen since the image 9 days before.", "denies"),
        ("It has been seen since the image 9 days before.", "does not name"),
        ("Effusion has been seen since the image 9 days before or 30 days before.", "nothing clear"),
        ("", "nothing clear"),
    ],
)
def test_an_unfaithful_sentence_is_told_why(text: str, reason: str) -> None:
    asked = timelines.Timeline("since when", "effusion", "Since when is effusion seen?", "9 days before")
    assert any(reason in found for found in timelines.check(asked, text))


def test_records_show_the_nearest_priors_oldest_first_and_a_test_question_alone_too() -> None:
    ids = {"subject_id": 1, "split": "test"}
    studies = [
        {**ids, "study_id": day, "image": f"{day}.jpg", "taken_at": f"2150-01-{day:02}T08:00:00"}
        for day in (1, 5, 11, 20)
    ]
    findings = {"1": LARGE, "5": NONE, "11": SMALL, "20": LARGE}
    settings = Instruct(max_images=3)
    made = [r for _, r in timelines.records(studies, findings, Sources.join(studies, []), settings, 0)]
    last = {(r["meta"]["kind"], r["meta"]["variant"]): r for r in made if r["meta"]["study_id"] == 20}
    record = last["since when", "all"]
    assert record["images"] == ["5.jpg", "11.jpg", "20.jpg"] and record["meta"]["short_answer"] == "9 days before"
    assert record["conversations"][0]["value"].startswith(
        "earlier image, 15 days before: <image>\nearlier image, 9 days before: <image>\ncurrent image: <image>\n"
    )
    assert last["worst", "one image"]["images"] == ["20.jpg"]
    assert len({r["id"] for r in made}) == len(made)


def test_nothing_is_asked_about_images_of_which_one_has_no_findings_noted() -> None:
    ids = {"subject_id": 1, "split": "train"}
    studies = [
        {**ids, "study_id": day, "image": f"{day}.jpg", "taken_at": f"2150-01-{day:02}T08:00:00"} for day in (1, 5, 11)
    ]
    sources, settings = Sources.join(studies, []), Instruct(max_images=3)
    assert list(timelines.records(studies, {"1": LARGE, "5": LARGE, "11": LARGE}, sources, settings, 0))
    assert not list(timelines.records(studies, {"1": LARGE, "11": LARGE}, sources, settings, 0))
