"""Sensitivity, specificity and directions, counted by hand on a few questions."""

from __future__ import annotations

import pytest

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.report import findings
from lumen_hpc.report.results import Results

NOTHING = "nothing has changed."


def _question(name: str, type: str, question: str, short: str) -> dict:
    return {
        "question_id": name, "type": type, "question": question, "short_answer": short, "long_answer": short,
        "closed": short in ("yes", "no"), "subject_id": name, "images": [],
    }  # fmt: skip


ASKED = [
    ("a", "presence", "is there edema?", "yes", "Yes, there is edema."),
    ("b", "presence", "is there edema?", "yes", "No."),
    ("c", "presence", "is there evidence of edema in this image?", "no", "No, there is no edema."),
    ("d", "presence", "is there edema?", "no", "The heart is large."),
    ("e", "presence", "is there edema in the left lung?", "yes", "No."),  # a place: not counted
    ("f", "abnormality", "what abnormalities are seen in this image?", "edema, nodule", "This image shows edema."),
    ("g", "abnormality", "what abnormalities are seen in this image?", "nodule", "This image shows nodule and edema."),
    ("k", "abnormality", "what abnormalities are seen in this image?", "nodule", "I like trains."),
    ("h", "difference", "what has changed compared to the reference image?", NOTHING, "nothing has changed."),
    ("i", "difference", "what has changed compared to the reference image?",
     "the main image has an additional finding of edema than the reference image.",
     "the main image is missing the finding of edema than the reference image."),
    ("j", "difference", "what has changed compared to the reference image?", NOTHING, "I like trains."),
]  # fmt: skip


@pytest.fixture(scope="module")
def results():
    answers = [{"question_id": name, "answer": answer, "model": "lumen"} for name, *_, answer in ASKED]
    questions = [_question(*row[:4]) for row in ASKED]
    return Results(questions, answers, [], Evaluate(bootstrap=50), 0, models=["lumen"])


def _found(results, way: str, finding: str, **options) -> findings.Detection:
    [one] = [d for d in findings.detections(results, **options) if (d.way, d.finding) == (way, finding)]
    return one


def test_a_finding_that_was_asked_for_is_right_where_the_answer_agrees(results):
    edema = _found(results, findings.ASKED_FOR, "edema")
    assert (edema.sensitivity.n, edema.sensitivity.value) == (2, 0.5)
    # The answer about the heart says nothing of edema: it is wrong.
    assert (edema.specificity.n, edema.specificity.value) == (2, 0.5)
    assert edema.small


def test_a_listed_finding_counts_where_it_is_named(results):
    edema, nodule = (_found(results, findings.LISTED, name) for name in ("edema", "nodule"))
    assert edema.sensitivity.value == 1.0
    # The answer about trains says nothing of edema either: it is wrong.
    assert (edema.specificity.n, edema.specificity.value) == (2, 0.0)
    assert (nodule.sensitivity.n, nodule.sensitivity.value, nodule.specificity.n) == (3, pytest.approx(1 / 3), 0)
    assert nodule.specificity.value is None


def test_rare_findings_can_be_left_out(results):
    assert [(d.way, d.finding) for d in findings.detections(results, least=4)] == [(findings.ASKED_FOR, "edema")]
    assert findings.detections(results, least=5) == []


def test_directions_are_counted_with_those_that_cannot_be_read(results):
    [table] = findings.confusions(results)
    assert (table.block, table.model) == ("difference", "lumen")
    assert dict(table.counts) == {"worse": (0, 1, 0, 0, 0), "same": (0, 0, 0, 1, 1)}
