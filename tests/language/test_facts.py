"""The fact check on hand-made sentences, and on the grammar's own sentences for every real and phantom answer."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import permutations

import pytest

from lumen_hpc.data.diff_vqa import TEMPLATES, Change, LevelChange, render_difference
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.language.facts import check, score
from lumen_hpc.language.sentences import sentence
from sandbox.fact_cases import CASES
from tests.realcxr import TABLE, needed

DIFFERENCE = "what has changed compared to the reference image?"


def _template_answers():
    changes = (
        Change(),
        Change(new=("pleural effusion",)),
        Change(resolved=("edema", "nodule")),
        Change(levels=(LevelChange("edema", "mild to moderate", "severe"),)),
        Change(levels=(LevelChange("edema", "small", "small decreasing"),)),
        Change(("consolidation", "cardiomegaly"), ("nodule",), (LevelChange("edema", "severe", "mild"),)),
    )
    answers = {
        "abnormality": ("no abnormality", "edema", "edema, pleural effusion, tortuosity of the descending aorta"),
        "presence": ("yes", "no"),
        "view": ("PA view", "AP view"),
        "location": (
            "left side",
            "bilateral",
            "in the right lower lobe",
            "the lung bases",
            "bilateral upper lung",
            "the lower and probably also middle lobe",
            "left mid to lower area",
            "upper to middle area",
        ),
        "level": ("small", "moderate to severe", "acute", "decreasing", "small increasing"),
        "type": ("linear", "ground-glass", "reticulated"),
        "difference": tuple(map(render_difference, changes)),
    }
    for kind, templates in TEMPLATES.items():
        for template in templates:
            question = template.format(finding="lung opacity", location="left lower lobe")
            closed = question.startswith("is ") and "or right" not in question
            for answer in ("yes", "no") if closed else answers[kind]:
                yield kind, question, answer
    for answer in answers["difference"]:
        yield "prediction", "What will have changed in this radiograph after 3 days?", answer


@pytest.mark.parametrize(("kind", "question", "answer"), list(_template_answers()))
def test_the_grammars_own_sentence_is_faithful(kind, question, answer):
    own = sentence(kind, question, answer)
    assert own.endswith(".")
    assert check(kind, question, answer, own) == []


@needed
def test_the_grammars_sentences_for_real_answers_are_faithful():
    rejected = []
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            own = sentence(row["question_type"], row["question"], row["answer"])
            rejected += check(row["question_type"], row["question"], row["answer"], own)
    assert rejected == []


def test_a_reason_names_its_category_first():
    reasons = check("difference", DIFFERENCE, "nothing has changed.", "The edema has resolved because of diuretics.")
    assert reasons == ["unknown words: diuretics"]
    reasons = check("difference", DIFFERENCE, "nothing has changed.", "The edema has resolved.")
    assert {reason.split(":")[0] for reason in reasons} == {"left out", "added"}


def test_a_finding_beyond_the_vocabulary_is_read_from_the_question():
    question = "is there evidence of pneumopericardium in this image?"
    assert check("presence", question, "no", "No pneumopericardium is seen in this image.") == []
    assert check("presence", question, "no", "Pneumopericardium is seen in this image.")


def test_an_unreadable_short_answer_lets_nothing_pass():
    assert check("difference", DIFFERENCE, "it is all different now", "The edema has resolved.") == [
        "unreadable short answer: GrammarError"
    ]


def test_the_score_puts_the_opposite_lowest_and_part_of_the_facts_between():
    reference = "the main image has additional findings of edema, and nodule than the reference image."
    answers = (
        "The edema and the nodule have resolved.",
        "A new edema has appeared.",
        "Compared with the reference image, edema and a nodule are new.",
    )
    opposite, half, equal = (score("difference", DIFFERENCE, reference, answer) for answer in answers)
    assert opposite == 1 and equal == 10
    assert opposite < half < equal


def test_a_change_scores_lowest_where_nothing_changed():
    edema = "The edema is unchanged, and the pneumonia has resolved."
    assert score("difference", DIFFERENCE, edema, "The edema has changed, and the pneumonia has resolved.") < score(
        "difference", DIFFERENCE, edema, "The pneumonia has resolved."
    )


def test_another_side_scores_as_the_contrary():
    question = "where in the image is the consolidation located?"
    right, left = (f"The consolidation is located in the {side} lower lobe." for side in ("right", "left"))
    assert score("location", question, right, left) == 1
    assert score("location", question, right, right) == 10


def test_levels_in_disorder_are_refused_not_raised():
    answer = "the level of edema has changed from mild to severe. "
    jumbled = "The edema is severe on the main image from mild on the reference image to severe on the main image."
    assert check("difference", DIFFERENCE, answer, jumbled)


SWAPS = """
left/right upper/lower mild/severe small/large moderate/minimal PA/AP posteroanterior/anteroposterior base/apex
bilateral/unilateral patchy/linear appear/resolve develop/resolve developed/resolved appeared/resolved
disappear/appear disappeared/appeared gone/new increased/decreased worsened/improved worsen/improve
increase/decrease present/absent seen/absent 30/60 7/70 shows/lacks likely/unlikely
"""
DENIALS = ("is", "are", "was", "has", "have", "will", "can", "expected", "seen", "shows")


NAMES = ("pleural effusion", "pneumonia", "edema", "consolidation", "atelectasis", "pneumothorax", "nodule")
MUTATIONS = [
    *((re.compile(rf"\b{old}\b"), new, 0) for pair in SWAPS.split() for old, new in permutations(pair.split("/"))),
    *((re.compile(rf"\b{word}\b(?! not)"), f"{word} not", 1) for word in DENIALS),
    *((re.compile(rf"\b{name}\b", re.IGNORECASE), "hernia", 0) for name in NAMES),
]


def _mutated(text: str) -> Iterator[str]:
    """A sentence with one word turned into its contrary, or one word denied."""
    for pattern, new, count in MUTATIONS:
        yield pattern.sub(new, text, count=count)


def test_no_faithful_sentence_passes_with_one_fact_turned_round():
    tried, passed = set(), []
    for case in read_jsonl(CASES):
        for text in set(_mutated(case["long_answer"])) - {case["long_answer"]} if case["faithful"] else ():
            tried.add(text)
            if not check(case["type"], case["question"], case["short_answer"], text):
                passed.append((case["short_answer"], text))
    assert len(tried) > 1000
    assert passed == []
