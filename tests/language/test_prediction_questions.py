"""The hundred prediction questions and their intervals."""

from __future__ import annotations

import re

import pytest

from lumen_hpc.errors import UserError
from lumen_hpc.language.prediction_questions import draw_predictions, fill_in, templates


def difference(days, question_id="q1"):
    return {"question_id": question_id, "type": "difference", "interval_days": days}


def test_there_are_a_hundred_distinct_questions_each_with_one_slot():
    questions = templates()
    assert len(questions) == len({question.lower() for question in questions}) == 100
    assert all(question.count("{days} days") == question.count("{") == 1 for question in questions)


def test_no_question_speaks_of_another_image():
    words = ("main image", "follow-up", "second image", "later image", "next image", "reference")
    assert [question for question in templates() if any(word in question.lower() for word in words)] == []


# A question about some of the changes only, or about findings that are there already.
PARTIAL = (
    r"findings? (in|of|on|seen)|(present|current|existing|these|the) (findings|abnormalities|disease)|"
    r"\bnew findings|expected to change in severity over|which (findings|abnormalities)"
)
# The words by which a question allows that nothing changes: it says so, asks whether, or asks how things will stand.
OPEN = (
    r"if (any|anything|so)\b|if there are any|whether and how|stay the same|compared? with|"
    r"\b(course|outlook|prognosis|evolution|evolved?|forecast|prediction|trajectory|develop|developed|development|behave|"
    r"project|future of|lies ahead|bring|hold|suggest|become of|anticipated for|expect(ed)? (of|at))\b"
)


def test_every_question_fits_every_answer_it_can_get():
    """Answers name new, resolved and changed findings together, or say that no change is expected."""
    assert [q for q in templates() if re.search(PARTIAL, q, re.IGNORECASE)] == []
    assert [q for q in templates() if not re.search(OPEN, q, re.IGNORECASE)] == []
    parts = {"new": r"\b(appear|new|come)\b|develop,", "resolved": r"\b(resolved?|clear|go)\b"}
    for question in templates():
        named = [part for part, words in parts.items() if re.search(words, question, re.IGNORECASE)]
        assert len(named) != 1, f"asks for {named} only: {question}"


@pytest.mark.parametrize("question", [
    "What new findings could arise in this patient in the next {days} days?",
    "Which of the findings seen here are expected to resolve, worsen or appear within {days} days?",
    "Which findings are expected to change in severity over {days} days?",
    "How will the findings in this image evolve in {days} days?",
    "What will have changed in this radiograph after {days} days?",
])  # fmt: skip
def test_a_question_for_a_part_or_for_a_change_taken_for_granted_is_recognised(question):
    assert re.search(PARTIAL, question, re.IGNORECASE) or not re.search(OPEN, question, re.IGNORECASE)


def test_the_interval_is_the_pairs_own():
    (row,) = draw_predictions(difference(41), 1, seed=0)
    assert "41 days" in row["question"]
    assert fill_in("What now, in {days} days?", 1) == "What now, in 1 day?"


@pytest.mark.parametrize("days", [0, -3, None])
def test_a_pair_without_a_future_gives_no_question(days):
    assert list(draw_predictions(difference(days), 3, seed=0)) == []


def test_the_seed_and_the_pair_decide_the_draw():
    draws = [
        [row["question"] for row in draw_predictions(difference(9, q), 2, seed=s)]
        for q, s in (("a", 0), ("a", 1), ("b", 0))
    ]
    assert draws[0] == [row["question"] for row in draw_predictions(difference(9, "a"), 2, seed=0)]
    assert draws[0] != draws[1] and draws[0] != draws[2]


def test_a_pairs_questions_are_distinct_and_have_their_own_ids():
    rows = list(draw_predictions(difference(9), 100, seed=3))
    assert len({row["question"] for row in rows}) == len({row["question_id"] for row in rows}) == 100
    assert {row["source_question_id"] for row in rows} == {"q1"}


def test_more_questions_than_there_are_is_refused():
    with pytest.raises(UserError, match="predictions_per_pair=101"):
        list(draw_predictions(difference(9), 101, seed=0))
