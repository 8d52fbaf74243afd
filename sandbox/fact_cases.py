"""The hand-written cases of the fact check, and what the check makes of them: shared by its tests and its benchmark."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.language.facts import check
from lumen_hpc.language.words import vocabulary

CASES = Path(__file__).parents[1] / "tests" / "language" / "fact_cases.jsonl"


def check_cases(path: Path) -> list[tuple[dict, list[str]]]:
    """Every case with the check's reasons against it."""
    return [
        (case, check(case["type"], case["question"], case["short_answer"], case["long_answer"]))
        for case in read_jsonl(path)
    ]


def count_outcomes(cases: list[tuple[dict, list[str]]]) -> tuple[Counter, list[tuple[dict, list[str]]]]:
    """Counts by (type, faithful, passed), and the cases that were judged wrongly with the check's reasons."""
    counts = Counter((case["type"], case["faithful"], not reasons) for case, reasons in cases)
    return counts, [(case, reasons) for case, reasons in cases if case["faithful"] != (not reasons)]


def changed_names(case: dict) -> set[str]:
    """Findings, levels and sides that a long answer and its short answer do not share, by plain search.

    It is another reading than the fact check's, blind to grammar: it judges what that accepts. What the question names
    may be repeated. A denied short answer must have a word of denial.
    """
    answer_names, question_names, long_names = (
        _names_in(case[key]) for key in ("short_answer", "question", "long_answer")
    )
    difference = (long_names - answer_names - question_names) | (answer_names - long_names)
    denies = re.search(r"\b(no|not|cannot|without|absen\w+|free|negative|normal|n't)\b", case["long_answer"].lower())
    return difference | ({"no"} if case["short_answer"] == "no" and not denies else set())


def _names_in(text: str) -> set[str]:
    vocabulary_words = vocabulary()["words"]
    names = [name for group in ("finding", "lvl") for name in vocabulary_words[group]] + ["left", "right"]
    return {name for name in names if re.search(rf"\b{name}(?:e?s|ly)?\b", text.lower().replace("-", " "))}
