"""A record without its oldest image is the record that a smaller `instruct.max_images` makes."""

from __future__ import annotations

from typing import Any

import pytest

from lumen_hpc.config.schema import Instruct
from lumen_hpc.data import instructions, timelines
from lumen_hpc.data.fewer_images import without_images, without_oldest
from lumen_hpc.data.findings_line import strip
from lumen_hpc.data.image_texts import ImageTexts
from lumen_hpc.data.instructions import Sources
from lumen_hpc.outcomes import questions

DAYS = (1, 5, 11, 20, 28)
LEVELS = {1: "large", 11: "small", 20: "mild to moderate"}
"""Of the effusion on each image, by its day."""
LONGEST = 5


def study(day: int) -> dict[str, Any]:
    return {"subject_id": 1, "study_id": day, "split": "train", "image": f"{day}.jpg", "size": [day, 9],
            "taken_at": f"2150-01-{day:02}T08:00:00"}  # fmt: skip


FINDINGS = {str(day): {"effusion": {"level": LEVELS[day]}} if day in LEVELS else {} for day in DAYS}


def sources(**more: Any) -> Sources:
    rewrites = [
        {"question_id": "q", "long_answer": "The effusion is gone."},
        {"question_id": "p", "source_question_id": "q", "type": "prediction", "question": "what will change?",
         "long_answer": "The effusion will go."},
    ]  # fmt: skip
    experts = {str(day): f"Experts on {day}.\nPatient: {day} years old." for day in DAYS}
    return Sources.join(map(study, DAYS), rewrites, texts=ImageTexts(experts), **more)


def made(kind: str, images: int) -> dict[str, Any]:
    """The record about the last study, or about the last pair."""
    settings = Instruct(max_images=images, clinical=["patient"], outcomes=["icu_48h"])
    if kind.startswith("outcome"):
        joined = sources(findings=FINDINGS, line=("effusion",)) if "findings" in kind else sources()
        row = {**study(28), "outcomes": {"icu_48h": {"value": True}}}
        seed = next(s for s in range(99) if questions._variant(questions._hash_fraction(s, 28)) == "all")
        [(_, record)] = questions.records([row], joined, settings, seed)
        return record
    if kind in ("since when", "worst", "getting worse"):
        made = timelines.records([study(day) for day in DAYS[:4]], FINDINGS, sources(), settings, 0)
        return next(r for _, r in made if r["meta"]["study_id"] == 20 and r["meta"]["kind"] == kind)
    question = {
        "question_id": "q", "subject_id": 1, "study_id": 28, "ref_study_id": 20, "type": "difference",
        "question": "what has changed?", "short_answer": "", "closed": False, "split": "train", "interval_days": 8,
    }  # fmt: skip
    records = {r["meta"]["type"]: r for _, r in instructions.records([question], sources(), settings)}
    return records[kind]


@pytest.mark.parametrize(
    ("kind", "fewest"), [("difference", 2), ("outcome", 1), ("outcome, findings first", 1), ("getting worse", 3)]
)
def test_one_image_fewer_is_the_record_of_a_smaller_setting(kind: str, fewest: int) -> None:
    record = made(kind, LONGEST)
    shown = len(record["images"])
    for left in range(1, shown - fewest + 1):
        record = without_oldest(record)
        assert record == made(kind, shown - left)
        assert record == without_images(made(kind, shown), left)
    assert len(record["images"]) == fewest and without_oldest(record) is None


def test_a_prediction_keeps_its_reference_which_then_has_no_name() -> None:
    record = made("prediction", 3)
    assert record["conversations"][0]["value"].startswith("earlier image, 9 days before: <image>\nExperts on 11.")
    record = without_oldest(record)
    assert record == made("prediction", 2) and record["images"] == ["20.jpg"]
    assert record["conversations"][0]["value"].startswith("<image>\nExperts on 20.")
    assert without_oldest(record) is None


def test_a_timeline_keeps_the_images_that_its_answer_rests_on() -> None:
    since, worst = (made(kind, LONGEST) for kind in ("since when", "worst"))
    assert since["meta"]["short_answer"] == "9 days before" and since["meta"]["needed_images"] == 3
    assert len(without_oldest(since)["images"]) == 3 and without_oldest(without_oldest(since)) is None
    assert worst["meta"]["short_answer"] == "19 days before" and without_oldest(worst) is None


@pytest.mark.parametrize(
    "value", ["<image>\n<image>\nwhat?", "earlier image, 1 day before: <image><image>\nwhat?", "what?"]
)
def test_a_record_of_another_form_stays_whole(value: str) -> None:
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "that."}]
    record = {"id": "x", "images": ["a.jpg", "b.jpg"], "conversations": turns, "meta": {"type": "difference"}}
    assert without_oldest(record) is None


def test_an_outcome_s_line_has_the_states_of_the_images_that_are_shown() -> None:
    record = made("outcome, findings first", LONGEST)
    assert record["meta"]["line"] == ["effusion"]
    answer = record["conversations"][1]["value"]
    assert answer.startswith("effusion large no small mild-to-moderate no resolved same resolved resolved ; Yes, ")
    assert strip(answer, record["meta"]["line"]) == record["meta"]["long_answer"]
    assert strip(record["meta"]["long_answer"], record["meta"]["line"]) == record["meta"]["long_answer"]
