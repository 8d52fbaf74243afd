"""Phantom ceilings: the best answers possible with given knowledge, on this run's test questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lumen_hpc.data import phantom_ceilings, phantom_readings
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.metrics.change import facts, tally
from lumen_hpc.metrics.significance import Column
from lumen_hpc.report.results import Results

WITHOUT_CUE = "reference and days, without the cue"
FULL = phantom_ceilings.FULL
TWO_READINGS = "two separate readings and a rule, on difference questions"
Answers = dict[str, set[tuple[str, ...]]]
"""question_id → the changes that an oracle names."""


def oracles(results: Results, truth: Path) -> dict[str, Answers]:
    """What each oracle answers to the run's prediction questions, from the phantoms' truth.jsonl, and what the best
    two separate readings and a rule answer to its difference questions.

    Its threshold is the best one on these very questions, which favours the oracle.
    """
    states = {str(row["study_id"]): row for row in read_jsonl(truth)}
    ids, pairs = _question_pairs(results, states, "prediction")
    answers_by_oracle = {
        name: dict(zip(ids, phantom_ceilings.answers(pairs, name), strict=True))
        for name in (phantom_ceilings.ORACLES if pairs else ())
    }
    ids, pairs = _question_pairs(results, states, "difference")
    if pairs:
        answers_by_oracle[TWO_READINGS] = dict(zip(ids, phantom_readings.two_readings(pairs), strict=True))
    return answers_by_oracle


def _question_pairs(
    results: Results, states: Mapping[str, dict], kind: str
) -> tuple[list[str], list[phantom_ceilings.Pair]]:
    """The questions of one kind, and the pair that each is about."""
    kind_questions = [results.questions[i] for i in np.flatnonzero(results.where(kind))]
    kind_questions = [q for q in kind_questions if str(q["study_id"]) in states and str(q["ref_study_id"]) in states]
    pairs = [phantom_ceilings.pair(states[str(q["ref_study_id"])], states[str(q["study_id"])]) for q in kind_questions]
    return [question["question_id"] for question in kind_questions], pairs


@dataclass(frozen=True)
class Undecided:
    """The questions about one image that the image cannot answer, since a constant of the patient looks the same."""

    where: np.ndarray
    """bool [questions]."""
    best_guess: Column
    """Whether the best guess from the image is right, on the closed ones."""


def undecided(results: Results, truth: Path) -> Undecided:
    """By the states in the phantoms' truth.jsonl."""
    states = {str(row["study_id"]): row for row in read_jsonl(truth)}
    undecided_mask, right, closed_mask = (np.zeros(len(results.questions)) for _ in range(3))
    for i in np.flatnonzero(results.where("diagnostic")):
        question = results.questions[i]
        row = states.get(str(question["study_id"]))
        if row is None or phantom_readings.is_decidable(
            question["type"], question["question"], study := phantom_ceilings.study_states(row)
        ):
            continue
        undecided_mask[i] = 1
        if question["closed"]:
            guess = phantom_readings.likeliest_answer(question["question"], study, row["order"] - 1)
            closed_mask[i], right[i] = 1, guess == (question["short_answer"].strip() == "yes")
    return Undecided(undecided_mask > 0, Column(right, closed_mask))


def scores(results: Results, answers_by_oracle: Mapping[str, Answers]) -> dict[str, float | None]:
    """Change F1 of each oracle."""
    return {name: column(results, answers).mean() for name, answers in answers_by_oracle.items()}


def column(results: Results, answers: Answers) -> Column:
    """Change F1 of an oracle's answers over the run's questions; applies where it answered."""
    part, whole = np.zeros(len(results.questions)), np.zeros(len(results.questions))
    for i, question in enumerate(results.questions):
        change = results.truth(i) if question["question_id"] in answers else None
        if change is not None:
            counts = tally(answers[question["question_id"]], facts(change))
            part[i], whole[i] = 2 * counts.hits, 2 * counts.hits + counts.extra + counts.missed
    return Column(part, whole)
