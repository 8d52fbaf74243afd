"""Gold answers: what each type of question takes, and what is no answer at all."""

import csv

import pytest

from lumen_hpc.data.short_answers import expected_answer, facts
from tests.realcxr import TABLE, needed

QUESTION = {
    "abnormality": "what abnormalities are seen in this image?",
    "presence": "is there edema?",
    "view": "which view is this image taken?",
    "location": "where is the edema?",
    "level": "what level is the edema?",
    "type": "what type is the edema?",
    "difference": "what has changed compared to the reference image?",
    "prediction": "what will change in 10 days?",
}
NO_ANSWER = (
    "nan", "NaN", "None", "null", "[]", "['edema', 'pneumonia']", '["edema"]', "'edema'", "{}", "N/A", "<NA>", "42",
    "3.5", "-", "?", "True", "edema\0", "ede\x1bma", "edema, nan", "edema,, nodule", "<b>edema</b>",
)  # fmt: skip


@pytest.mark.parametrize("type", QUESTION)
@pytest.mark.parametrize("answer", NO_ANSWER)
def test_what_is_no_answer_is_refused_in_every_type(type, answer):
    assert expected_answer(type, QUESTION[type], answer)


@pytest.mark.parametrize(
    ("type", "answer"),
    [
        ("abnormality", "yes"), ("presence", "edema"), ("view", "yes"), ("location", "no"), ("level", "yes"),
        ("type", "Yes"), ("difference", "yes"), ("prediction", "the heart will grow."),
        ("difference", "the level of edema has changed from nan to mild. "),
        ("difference", "the level of edema has changed from mild to 3. "),
        ("difference", "the main image has an additional finding of nan than the reference image. "),
        ("prediction", "the main image is missing the findings of edema, None than the reference image. "),
    ],
)  # fmt: skip
def test_an_answer_of_another_type_is_refused(type, answer):
    assert expected_answer(type, QUESTION[type], answer)


@pytest.mark.parametrize("question", ["is this PA view?", "Is this  PA view? "])
def test_a_closed_question_is_known_with_other_capitals_and_spaces(question):
    assert expected_answer("view", question, "PA view") == "yes or no"
    assert expected_answer("view", question, "no") == ""


@pytest.mark.parametrize(
    ("type", "answer"),
    [
        ("abnormality", "edema, lung opacity and t12 compression fracture"), ("abnormality", "no abnormality"),
        ("abnormality", "none"), ("presence", "Yes"), ("view", "AP view"), ("location", "in the left lower lobe"),
        ("location", "left side"), ("location", "right upper lobe, left base"), ("level", "mild to moderate"),
        ("level", "small acute"), ("type", "ground-glass"), ("type", "patchy (new)"),
        ("difference", "nothing has changed."),
        ("prediction", "the level of edema has changed from mild to moderate to severe. "),
        ("difference", "the main image has additional findings of a 5'-line, and edema than the reference image. "),
    ],
)  # fmt: skip
def test_an_answer_of_its_type_is_taken(type, answer):
    assert expected_answer(type, QUESTION[type], answer) == ""


@needed
def test_every_real_answer_is_taken():
    with open(TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    refused = [row for row in rows if expected_answer(row["question_type"], row["question"], row["answer"])]
    assert len(rows) == 314 and refused == []


def test_facts_are_equal_in_any_order_of_findings_and_clauses():
    one = (
        "the main image has additional findings of edema, and nodule than the reference image. "
        "the level of pneumonia has changed from mild to severe. "
    )
    two = (
        "the level of pneumonia has changed from mild to severe. "
        "the main image has additional findings of  Nodule and edema than the reference image."
    )
    other = two.replace("mild", "moderate")
    assert facts("difference", one) == facts("difference", two) != facts("difference", other)
    assert facts("difference", "nothing has changed.") < facts("difference", one)
    assert facts("abnormality", "edema, nodule") == facts("abnormality", "nodule and edema")
    assert facts("location", "left base, right apex") == facts("location", "Right apex , left base.")
    assert facts("presence", "yes") == facts("presence", " Yes ") != facts("presence", "no")
