"""Phantom ceilings: the best prediction possible with given knowledge, on this run's test questions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lumen_hpc.data import phantom_ceilings
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.metrics.change import facts, tally
from lumen_hpc.metrics.significance import Column
from lumen_hpc.report.results import Results

WITHOUT_CUE = "reference and days, without the cue"
FULL = "reference, days and cue"
Answers = dict[str, set[tuple[str, ...]]]
"""question_id → the changes that an oracle names."""


def oracles(results: Results, truth: Path) -> dict[str, Answers]:
    """What each oracle answers to the run's prediction questions, from the phantoms' truth.jsonl.

    Its threshold is the best one on these very questions, which favours the oracle.
    """
    states = {str(row["study_id"]): row for row in read_jsonl(truth)}
    asked = [results.questions[i] for i in np.flatnonzero(results.where("prediction"))]
    asked = [q for q in asked if str(q["study_id"]) in states and str(q["ref_study_id"]) in states]
    pairs = [_pair(states[str(q["ref_study_id"])], states[str(q["study_id"])]) for q in asked]
    ids = [question["question_id"] for question in asked]
    return {
        name: dict(zip(ids, phantom_ceilings.answers(pairs, name), strict=True))
        for name in (phantom_ceilings.ORACLES if pairs else ())
    }


def scores(results: Results, named: Mapping[str, Answers]) -> dict[str, float | None]:
    """Change F1 of each oracle."""
    return {name: column(results, answers).mean() for name, answers in named.items()}


def column(results: Results, answers: Answers) -> Column:
    """Change F1 of an oracle's answers over the run's questions; applies where it answered."""
    part, whole = np.zeros(len(results.questions)), np.zeros(len(results.questions))
    for i, question in enumerate(results.questions):
        change = results.truth(i) if question["question_id"] in answers else None
        if change is not None:
            counted = tally(answers[question["question_id"]], facts(change))
            part[i], whole[i] = 2 * counted.hits, 2 * counted.hits + counted.extra + counted.missed
    return Column(part, whole)


def _pair(before: dict, after: dict) -> phantom_ceilings.Pair:
    states = phantom_ceilings.study_states
    return states(before), states(after), after["day"] - before["day"], before["order"] - 1
