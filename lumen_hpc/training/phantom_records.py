"""Builds instruction records of phantoms in memory, by the stages' own functions and without their files.

They are what `prepare`, `rewrite` (engine `grammar`) and `instruct` write for a generated folder. The stand-in weights
(`pretrain.py`) are trained on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lumen_hpc.config.schema import Instruct
from lumen_hpc.data import findings_line, instructions
from lumen_hpc.data import phantom_questions as questions
from lumen_hpc.data.diff_vqa import is_closed
from lumen_hpc.data.image_texts import ImageTexts
from lumen_hpc.data.phantom import Study, looks
from lumen_hpc.language import prediction_questions
from lumen_hpc.language.sentences import sentence

Row = dict[str, Any]


def records(
    timelines: Sequence[Sequence[Study]],
    settings: Instruct,
    seed: int,
    *,
    expert_sentences: Mapping[str, str] | None = None,
) -> list[Row]:
    """All records of these patients, with images as arrays instead of paths, and one prediction for each pair.

    `expert_sentences`: study_id → the experts' sentence, used with `settings.expert_text`.
    """
    studies = [study for timeline in timelines for study in timeline]
    question_rows = [row for timeline in timelines for row in _questions(timeline)]
    sources = instructions.Sources.join(
        map(_study_row, studies),
        _rewrites(question_rows, seed),
        texts=ImageTexts(experts=expert_sentences or {} if settings.expert_text else {}),
        findings={str(study.study_id): findings(study) for study in studies} if settings.findings_first else {},
        looks={str(study.study_id): looks(study) for study in studies} if settings.findings_first else {},
    )
    return [record for _, record in instructions.records(question_rows, sources, settings)]


def findings(study: Study) -> findings_line.Findings:
    """A study's findings as `findings_line.read_findings` gives them."""
    states = {
        name: {"level": state.level, "type": state.texture} for name, state in study.states.items() if state.present
    }
    return {name: {key: value for key, value in entity.items() if value} for name, entity in states.items()}


def _study_row(study: Study) -> Row:
    return {
        "subject_id": str(study.subject_id), "study_id": str(study.study_id), "dicom_id": study.dicom_id,
        "image": study.pixels, "view": "AP" if study.portable else "PA", "taken_at": study.taken_at.isoformat(),
        "split": study.split,
    }  # fmt: skip


def _questions(timeline: Sequence[Study]) -> Iterator[Row]:
    rng = np.random.default_rng(timeline[0].study_id)
    for study in timeline:
        for number, question in enumerate(questions.diagnostic(study.states, study.portable, rng)):
            yield _question(study, question, f"{study.study_id}-{number}")
    for before, after in pairwise(timeline):
        question = questions.difference(before.states, after.states)
        yield _question(after, question, f"{after.study_id}-d", reference=before)


def _question(study: Study, question: questions.QuestionRow, name: str, reference: Study | None = None) -> Row:
    return {
        "question_id": name, "subject_id": str(study.subject_id), "study_id": str(study.study_id),
        "ref_study_id": str(reference.study_id) if reference else None, "type": question.type,
        "question": question.question, "short_answer": question.short_answer.strip(),
        "closed": is_closed(question.short_answer),
        "interval_days": study.day - reference.day if reference else None, "split": study.split,
    }  # fmt: skip


def _rewrites(question_rows: list[Row], seed: int) -> Iterator[Row]:
    for question in question_rows:
        long_answer = sentence(question["type"], question["question"], question["short_answer"])
        yield {"question_id": question["question_id"], "long_answer": long_answer}
        if question["type"] == "difference":
            for row in prediction_questions.draw_predictions(question, 1, seed):
                yield row | {"long_answer": sentence("prediction", row["question"], question["short_answer"])}
