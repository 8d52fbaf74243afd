"""Questions and answers about phantom studies, in Medical-Diff-VQA's own templates.

All seven official types; the texture of a finding answers the type question, so that diagnostic training
teaches a model the cue that the prediction questions depend on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lumen_hpc.data import phantom_states as ps
from lumen_hpc.data.diff_vqa import Change, LevelChange, render_difference, render_findings

WHERE = {"pleural effusion": "is the {} located on the left side or right side?",
         "nodule": "is the {} located on the left side or right side?",
         "consolidation": "where in the image is the {} located?"}  # fmt: skip
DIFFERENCE = "what has changed compared to the reference image?"


class QuestionRow(NamedTuple):
    """One question of mimic_pair_questions.csv without its ids."""

    type: str
    question: str
    short_answer: str


def diagnostic(states: ps.States, portable: bool, rng: np.random.Generator) -> Iterator[QuestionRow]:
    """Every question about one study: each official type once, and one for each attribute of each finding."""
    present = [finding for finding in ps.FINDINGS if states[finding].present]
    absent = [finding for finding in ps.FINDINGS if not states[finding].present]
    yield QuestionRow("abnormality", "what abnormalities are seen in this image?", render_findings(tuple(present)))
    yield QuestionRow("abnormality", "is there evidence of any abnormalities in this image?", _yes_or_no(bool(present)))
    for finding in _one_of(present, rng) + _one_of(absent, rng):
        template = "is there evidence of {} in this image?" if rng.random() < 0.5 else "is there {}?"
        yield QuestionRow("presence", template.format(finding), _yes_or_no(finding in present))
    yield _view(portable, rng)
    for finding in present:
        state = states[finding]
        if state.where:
            answer = f"in the {state.where}" if finding == "consolidation" else f"{state.where} side"
            yield QuestionRow("location", WHERE[finding].format(finding), answer)
        if state.level:
            yield QuestionRow("level", f"what level is the {finding}?", state.level)
        if state.texture:
            yield QuestionRow("type", f"what type is the {finding}?", state.texture)


def difference(before: ps.States, after: ps.States) -> QuestionRow:
    """The difference question of a pair, answered in the official grammar."""
    return QuestionRow("difference", DIFFERENCE, render_difference(change(before, after)))


def change(before: ps.States, after: ps.States) -> Change:
    """What changed between two studies, findings in the order of FINDINGS."""
    items = [item for finding in ps.FINDINGS if (item := ps.change(finding, before[finding], after[finding]))]
    return Change(
        new=tuple(item[1] for item in items if item[0] == "new"),
        resolved=tuple(item[1] for item in items if item[0] == "resolved"),
        levels=tuple(LevelChange(*item[1:]) for item in items if item[0] == "level"),
    )


def _view(portable: bool, rng: np.random.Generator) -> QuestionRow:
    view = "AP" if portable else "PA"
    kind = int(rng.integers(3))
    if kind == 0:
        return QuestionRow("view", "which view is this image taken?", f"{view} view")
    named_view = ("PA", "AP")[kind - 1]
    return QuestionRow("view", f"is this {named_view} view?", _yes_or_no(named_view == view))


def _one_of(findings: list[str], rng: np.random.Generator) -> list[str]:
    """One of the findings at random; empty for no findings."""
    return [findings[int(rng.integers(len(findings)))]] if findings else []


def _yes_or_no(condition: bool) -> str:
    return "yes" if condition else "no"
