"""Instruction records: images, prompt and target answer, in the LLaVA/VILA form that other trainers read.

Images come in one fixed order, references before the main image, and the text names them. Each image is followed by
the experts' predictions for it (paper, section 2.3, after D-Rax); the question comes last, so that questions about
the same images share everything before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from lumen_hpc.config.schema import Instruct
from lumen_hpc.data import findings_line, leaks
from lumen_hpc.data.diff_vqa import DIAGNOSTIC
from lumen_hpc.data.image_texts import ImageTexts
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.data.study_times import is_earlier
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic
from lumen_hpc.models import MODELS

Row = dict[str, Any]
EARLIER = "earlier image, "
"""How the prompt names an image older than the reference, or than the current image; its distance in time follows."""


@dataclass
class Sources:
    """Everything that is joined to a question, by id."""

    studies: dict[str, Row]
    """study_id → study."""
    long_answers: dict[str, str]
    """question_id → long answer."""
    predictions: dict[str, list[Row]]
    """question_id of a difference question → the prediction rows derived from it."""
    texts: ImageTexts = field(default_factory=ImageTexts)
    """What follows each image."""
    findings: Mapping[str, findings_line.Findings] = field(default_factory=dict)
    """study_id → its findings; empty where `instruct.findings_first` is off."""
    looks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """study_id → its looks (`findings_line.StudyState`); phantoms have them."""
    line: Sequence[str] = findings_line.FINDINGS
    """The findings of a findings line, in its order."""
    _histories: dict[str, list[str]] | None = None

    @classmethod
    def join(cls, studies: Iterable[Row], rewrites: Iterable[Row], **more: Any) -> Sources:
        """Indexes the rows of `prepare` and `rewrite`; `more`: texts, findings, looks and line."""
        long_answers: dict[str, str] = {}
        predictions: dict[str, list[Row]] = {}
        for row in rewrites:
            if row.get("type") == "prediction":
                predictions.setdefault(row["source_question_id"], []).append(row)
            else:
                long_answers[row["question_id"]] = row["long_answer"]
        return cls({str(row["study_id"]): row for row in studies}, long_answers, predictions, **more)

    @classmethod
    def read(
        cls, prepared: Path, rewrites: Iterable[Row], texts: ImageTexts, settings: Instruct, diff_vqa: Path
    ) -> Sources:
        """From stage prepare's folder; findings and looks from Medical-Diff-VQA's, for `settings.findings_first`."""
        findings = findings_line.read_findings(diff_vqa) if settings.findings_first else {}
        return cls.join(
            read_jsonl(prepared / "studies.jsonl"),
            rewrites,
            texts=texts,
            findings=findings,
            looks=findings_line.read_looks(diff_vqa) if settings.findings_first else {},
            line=findings_line.line_findings(settings.line, findings) or findings_line.names(findings),
        )

    def study(self, study_id: Any, question_id: str) -> Row:
        """A study; raises UserError naming the question if it is missing."""
        try:
            return self.studies[str(study_id)]
        except KeyError:
            raise UserError(f"question {question_id} is about study {study_id}, which studies.jsonl lacks") from None

    def state(self, study_id: str) -> findings_line.StudyState:
        """A study's state for a findings line."""
        return findings_line.StudyState(self.findings.get(study_id, {}), self.looks.get(study_id, {}))

    def has_findings(self, studies: Iterable[Row]) -> bool:
        """Whether the findings of all these studies are known: a study that the file lacks need not be normal."""
        return all(str(study["study_id"]) in self.findings for study in studies)

    def long_answer(self, question_id: str) -> str:
        """A question's long answer; raises UserError if the rewrite stage has none."""
        try:
            return self.long_answers[question_id]
        except KeyError:
            raise UserError(f"question {question_id} has no long answer: hint: run stage=rewrite again") from None

    def priors(self, study: Row, count: int, without: Row | None = None) -> list[Row]:
        """At most `count` studies of the same patient that are known to be earlier than this one, the nearest last.

        `without`: a study that is no candidate.
        """
        if count <= 0:
            return []
        if self._histories is None:
            self._histories = {}
            for other in sorted(self.studies.values(), key=lambda s: (s["taken_at"], str(s["study_id"]))):
                self._histories.setdefault(str(other["subject_id"]), []).append(str(other["study_id"]))
        history = self._histories[str(study["subject_id"])]
        preceding_ids = history[: history.index(str(study["study_id"]))]
        candidates = (other for i in preceding_ids if (other := self.studies[i])["split"] == study["split"])
        earlier = (other for other in candidates if is_earlier(other["taken_at"], study["taken_at"]))
        return [other for other in earlier if other is not without][-count:]


def records(questions: Iterable[Row], sources: Sources, settings: Instruct) -> Iterator[tuple[str, Row]]:
    """(split, record) of every question, and of the prediction questions of every difference question.

    A diagnostic question shows its image. A difference question shows up to `settings.max_images` images: older
    studies, the reference, the main image. A prediction question shows the reference and at most as many priors
    as leave room for the main image, which is never shown.
    """
    for question in questions:
        if question["type"] in DIAGNOSTIC:
            study = sources.study(question["study_id"], question["question_id"])
            yield question["split"], _record(question, [study], sources.long_answer(question["question_id"]), sources)
        elif question["type"] == "difference":
            yield from _pair(question, sources, settings)
        else:
            raise UserError(
                f"question {question['question_id']} has an unknown type of {len(str(question['type']))} characters"
            )


def kind(record: Row) -> str:
    """diagnostic, difference, prediction, outcome or timeline: the kinds of `trains_on` (lumen_hpc/models.py)."""
    type = record["meta"]["type"]
    return "diagnostic" if type in DIAGNOSTIC else type


def _pair(question: Row, sources: Sources, settings: Instruct) -> Iterator[tuple[str, Row]]:
    main = sources.study(question["study_id"], question["question_id"])
    reference = sources.study(question["ref_study_id"], question["question_id"])
    # The pair is always shown, even if max_images is smaller.
    # In a reversed pair the main image is older than the reference; it must not appear twice, nor in a prediction.
    older_studies = sources.priors(reference, settings.max_images - 2, without=main)
    before, after = (sources.state(str(study["study_id"])) for study in (reference, main))
    long_answer = sources.long_answer(question["question_id"])
    has_line = sources.has_findings((reference, main))
    line = findings_line.difference_line(before, after, sources.line) if has_line else ""
    yield question["split"], _record(question, [*older_studies, reference, main], long_answer, sources, line=line)
    line = findings_line.prediction_line(before, after, sources.line) if has_line else ""
    for row in sources.predictions.get(question["question_id"], []):
        prediction = {
            **question,
            "question_id": row["question_id"],
            "type": "prediction",
            "question": row["question"],
            "closed": False,
        }
        studies = [*older_studies, reference]
        yield question["split"], _record(prediction, studies, row["long_answer"], sources, line=line)


def _record(question: Row, studies: list[Row], long_answer: str, sources: Sources, *, line: str = "") -> Row:
    meta = {
        key: question[key]
        for key in (
            "question_id",
            "type",
            "question",
            "closed",
            "short_answer",
            "interval_days",
            "subject_id",
            "study_id",
            "ref_study_id",
        )
    }
    return {
        "id": question["question_id"],
        "images": [study["image"] for study in studies],
        "conversations": [
            {"from": "human", "value": prompt(studies, question, sources.texts.of(studies))},
            {"from": "gpt", "value": findings_line.join(line, long_answer) if line else long_answer},
        ],
        "meta": {
            **meta,
            "long_answer": long_answer,
            **({"line": list(sources.line)} if line else {}),
            **image_sizes(studies),
        },
    }


def image_sizes(studies: Sequence[Row]) -> dict[str, Any]:
    """`sizes` of the images, where all are known, so that training need not open the files to count tokens."""
    sizes = [study.get("size") for study in studies]
    return {"sizes": sizes} if all(sizes) else {}


def prompt(studies: list[Row], question: Row, texts: Mapping[str, str]) -> str:
    """The human turn: images in order, each with its name, its distance in time and its text (`ImageTexts.of`)."""
    lines = []
    for study, name in zip(studies, _image_names(studies, question)):
        lines.append(f"{name}<image>")
        if text := texts.get(str(study["study_id"])):
            lines.append(text)
    return "\n".join([*lines, question["question"]])


def _image_names(studies: list[Row], question: Row) -> list[str]:
    """The name of each image in the prompt; a single image has none."""
    if len(studies) == 1:
        return [""]
    anchor = studies[-2] if question["type"] == "difference" else studies[-1]
    names = []
    for study in studies:
        if question["type"] == "difference" and study is studies[-1]:
            names.append(f"main image, {distance(question['interval_days'])}: ")
        elif study is anchor:
            names.append("current image: " if question["type"] == "outcome" else "reference image: ")
        else:
            names.append(f"{EARLIER}{distance(_days(anchor, study))}: ")
    return names


def distance(days: int | None) -> str:
    """How far in time an image is from the reference, human-readable."""
    if days is None:
        return "at an unknown distance in time"
    if days == 0:
        return "on the same day"
    number = abs(days)
    return f"{number} {'day' if number == 1 else 'days'} {'later' if days > 0 else 'before'}"


def _days(anchor: Row, study: Row) -> int:
    """Whole calendar days from `anchor` to `study`."""
    days = [datetime.fromisoformat(s["taken_at"]).date() for s in (anchor, study)]
    return (days[1] - days[0]).days


TEST = "lumen-test.jsonl"
"""One file holds all test records, since every model answers all of them."""


def files() -> dict[str, tuple[str, ...]]:
    """Names of the record files of each trained model and split: the kinds of question in each.

    Those of models that train on outcomes are written by `outcomes/questions.py`.
    """
    return {
        f"{model.name}-{split}.jsonl": model.trains_on
        for model in MODELS.values()
        if model.trained and "outcome" not in model.trains_on
        for split in ("train", "val")
    }


def write(
    folder: Path,
    *,
    prepared: Path,
    rewrites: Iterable[Row],
    texts: ImageTexts,
    settings: Instruct,
    diff_vqa: Path,
) -> tuple[list[Path], list[str]]:
    """Writes the record files of all models and splits under `folder`, each whole or not at all.

    Returns their paths, and the ids of the prediction questions of the test split that are left out, since an image
    that they show is a copy of the one that they ask about (`leaks`).
    `prepared` holds studies.jsonl and questions.jsonl; `texts` has every study's experts' sentence where
    `settings.expert_text` is on; `diff_vqa` is Medical-Diff-VQA's folder, read only for `settings.findings_first`.
    Raises UserError for a study or a long answer that is missing.
    """
    sources = Sources.read(prepared, rewrites, texts, settings, diff_vqa)
    if settings.expert_text and (missing_id := next((id for id in sources.studies if id not in texts.experts), None)):
        raise UserError(
            f"study {missing_id} has no expert prediction: run stage=experts again, or set instruct.expert_text=false"
        )
    kinds = files()
    paths, left_out = [folder / name for name in (*kinds, TEST)], []
    with ExitStack() as stack:
        streams = {path.name: stack.enter_context(atomic(path)) for path in paths}
        for split, record in records(read_jsonl(prepared / "questions.jsonl"), sources, settings):
            if split == "test" and kind(record) == "prediction":
                record = leaks.withhold(record, sources.study(record["meta"]["study_id"], record["id"])["image"])
                if leaks.shown_copy(record):
                    left_out.append(record["id"])
                    continue
            line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
            if split == "test":
                streams[TEST].write(line)
                continue
            for name, question_types in kinds.items():
                if name.endswith(f"-{split}.jsonl") and kind(record) in question_types:
                    streams[name].write(line)
    return paths, left_out
