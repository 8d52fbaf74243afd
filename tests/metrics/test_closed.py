"""Yes and no are read by words, never by substrings, and a sentence answers what was asked or nothing."""

from pathlib import Path

import pytest

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.metrics.closed import first_yes_no, polarity, strict_yes_no


@pytest.mark.parametrize(
    "answer, first, equal",
    [
        ("yes", "yes", "yes"),
        ("No.", "no", "no"),
        ("Yes, there is edema.", "yes", None),
        ("There is a nodule.", None, None),  # `no` is in `nodule`
        ("There is no nodule.", "no", None),
        ("no, yes", "no", None),
        ("Yes or no? No.", "no", None),
        ("Is there edema (yes/no): yes", "yes", None),
        ("No or yes", None, None),
        ("Yesterday's image shows nothing abnormal", None, None),
        ("", None, None),
    ],
)
def test_rules_of_words(answer, first, equal):
    assert (first_yes_no(answer), strict_yes_no(answer)) == (first, equal)


@pytest.mark.parametrize(
    "kind, question, answer, expected",
    [
        ("presence", "is there edema?", "Yes.", "yes"),
        ("presence", "is there edema?", "Edema is present.", "yes"),
        ("presence", "is there edema?", "Edema is not seen.", "no"),
        ("presence", "is there edema?", "There isn't any edema.", "no"),
        ("presence", "is there edema?", "The lungs are free of edema.", "no"),
        ("presence", "is there edema?", "There is a nodule.", None),
        ("presence", "is there edema?", "", None),
        ("presence", "is there edema?", "Yes/No: Yes", "yes"),
        ("presence", "is there edema?", "yes or no? (no)", "no"),
        ("presence", "is there strange thing?", "A strange thing is seen.", "yes"),
        ("view", "is this PA view?", "This is a PA view.", "yes"),
        ("view", "is this PA view?", "This image is not a PA view.", "no"),
        ("view", "is this PA view?", "Edema is present.", None),
        ("abnormality", "is there evidence of any abnormalities in this image?", "Edema is present.", "yes"),
        ("abnormality", "is there evidence of any abnormalities in this image?", "No change.", None),
        ("abnormality", "is there evidence of any abnormalities in this image?", "The contours are stable.", None),
        ("abnormality", "is there evidence of any abnormalities in this image?", "There are new findings.", "yes"),
        ("presence", "is there edema?", "There is new edema.", "yes"),
        ("presence", "is there edema?", "There is no edema. The lungs are clear.", "no"),
        ("presence", "is there cardiomegaly?", "The heart is normal in size. The lungs are clear.", "no"),
        ("presence", "is there edema?", "The edema is not severe.", None),
        ("presence", "is there edema?", "The edema has not fully resolved.", None),
        ("presence", "is there edema?", "Edema is not enormous.", None),
        ("presence", "is there edema?", "There is edema. It is not severe.", "yes"),
        ("presence", "is there edema?", "It is not seen.", "no"),
        ("presence", "is there edema?", "It is present.", "yes"),
        ("presence", "is there edema?", "It is a chest X-ray.", None),
        ("presence", "is there edema in the left lung?", "There is no edema in the right lung.", None),
        ("presence", "is there edema in the left lung?", "There is no edema in the left lung.", "no"),
        ("presence", "is there edema in the left lung?", "Edema is only on the right.", "no"),
        ("presence", "is there edema in the left lower lung?", "There is edema in the left upper lobe.", "no"),
        ("presence", "is there edema in the left lower lung?", "There is left basal edema.", "yes"),
        ("presence", "is there edema in the left lower lung?", "There is edema in the left lung.", "yes"),
        ("presence", "is there edema in the left lower lung?", "There is no edema in the left upper lobe.", None),
        ("presence", "is there edema in the left lower lung?", "Edema of the left upper and right lower lobe.", "no"),
        ("presence", "is the edema bilateral?", "The edema is only on the right.", "no"),
        ("presence", "outside the templates", "It is so.", "yes"),
    ],
)
def test_a_sentence_answers_what_was_asked(kind, question, answer, expected):
    assert polarity(kind, question, answer) == expected


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("FINDINGS: No effusion.", "no"),
        ("FINDINGS: Edema.", "yes"),
        ("Findings: none.", "no"),
        ("The lungs are clear.", "no"),
        ("The lungs are clear, but there is edema.", "yes"),
        ("The lungs are not clear.", None),
        ("There is no acute cardiopulmonary process.", "no"),
        ("The image appears to be within normal limits.", "no"),
        ("The image shows a normal chest.", "no"),
    ],
)
def test_reports_and_set_phrases_tell_whether_there_is_any_abnormality(answer, expected):
    assert polarity("abnormality", "is there evidence of any abnormalities in this image?", answer) == expected


def test_faithful_wordings_of_yes_and_no_are_read():
    cases = read_jsonl(Path(__file__).parents[1] / "language" / "fact_cases.jsonl")
    closed = [case for case in cases if case["faithful"] and case["short_answer"] in ("yes", "no")]
    misread = [
        case["long_answer"]
        for case in closed
        if polarity(case["type"], case["question"], case["long_answer"]) != case["short_answer"]
    ]
    assert len(closed) > 80 and len(misread) <= 0.03 * len(closed), misread
