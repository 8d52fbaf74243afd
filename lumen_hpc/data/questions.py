"""Medical-Diff-VQA's questions: one pass that checks each row, gives it its id and interval, and writes it as JSON."""

from __future__ import annotations

from array import array
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson

from lumen_hpc.data.diff_vqa import (
    CLOSED_TEMPLATES,
    TYPES,
    GrammarError,
    is_closed,
    parse_difference,
    parse_findings,
)
from lumen_hpc.data.mimic_cxr import Studies
from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.tables import Place, Table, find_table

SPLITS = ("train", "val", "test")
"""The questions' own splits, the least held out first."""

_COLUMNS = ("study_id", "subject_id", "ref_id", "question_type", "question", "answer", "split")
_LISTS = ("what abnormalities are seen",)


class Questions:
    """The readable questions in columns, in the order of the file; positions of studies are those of `Studies`."""

    def __init__(self, file: str = "") -> None:
        self.file = file
        self.read = 0
        self.id = array("Q")
        self.main = array("I")
        self.reference = array("i")
        self.days = array("i")
        self.type = bytearray()
        self.split = bytearray()
        self.closed = bytearray()
        self.row = array("I")
        self.line = array("I")

    def __len__(self) -> int:
        return len(self.id)

    def place(self, position: int) -> Place:
        """The row a question came from."""
        return Place(self.file, self.row[position], self.line[position])


def question_id(study_id: int, ref_study_id: int | None, type: str, question: str) -> str:
    """The stable id of a question: 16 hex digits of what is asked about which studies.

    The order of the file, the split and the answer take no part, so two answers to one question share an id,
    and are found as duplicates.
    """
    content = f"{study_id}\n{'' if ref_study_id is None else ref_study_id}\n{type}\n{question}"
    return blake2b(content.encode(), digest_size=8).hexdigest()


def read_questions(folder: str | Path, studies: Studies, bad: Rejections, out: BinaryIO) -> Questions:
    """Reads `mimic_pair_questions.csv[.gz]` and writes a JSON line to `out` for each question that stands on its own.

    Rows with a fault of their own go to `bad`. Intervals of undated studies are meaningless here; the caller leaves
    such studies out. Raises UserError for a missing file or column.
    """
    path = find_table(folder, "mimic_pair_questions")
    questions = Questions(path.name)
    table = Table(path, _COLUMNS, bad.question)
    for study, subject, ref, type, question, answer, split in table:
        form = _form(type, question, answer)
        if form.kind:
            bad.question(table.place, form.kind, form.reason, study_id=study, answer=answer)
            continue
        try:
            study_id, subject_id = int(study), int(subject)
            ref_id = int(ref.removesuffix(".0")) if form.paired else None
        except ValueError:
            missing = form.paired and not ref.strip()
            reason = "a difference question without ref_id" if missing else "ids must be whole numbers"
            bad.question(table.place, "bad id", reason, study_id=study)
            continue
        main = studies.index.get(study_id, -1)
        reference = studies.index.get(ref_id, -1) if form.paired else -1
        days = studies.day[main] - studies.day[reference] if form.paired else None
        fault = (
            _unfit(studies, main, study_id, subject_id)
            or (form.paired and _unfit(studies, reference, ref_id, subject_id))
            or (main == reference and ("bad pair", f"study {study_id} is compared with itself"))
            or (split not in SPLITS and ("unknown split", f"split {split!r} is none of {', '.join(SPLITS)}"))
        )
        if fault:
            bad.question(table.place, *fault, study_id=study_id)
            continue
        key = question_id(study_id, ref_id, type, question)
        out.write(
            orjson.dumps(
                {
                    "question_id": key,
                    "subject_id": subject_id,
                    "study_id": study_id,
                    "ref_study_id": ref_id,
                    "type": type,
                    "question": question,
                    "short_answer": answer,
                    "closed": form.closed,
                    "interval_days": days,
                    "split": split,
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
        )
        questions.id.append(int(key, 16))
        questions.main.append(main)
        questions.reference.append(reference)
        questions.days.append(days or 0)
        questions.type.append(form.type)
        questions.split.append(SPLITS.index(split))
        questions.closed.append(form.closed)
        questions.row.append(table.row)
        questions.line.append(table.line)
    questions.read = table.row
    return questions


class _Form(NamedTuple):
    """What can be said of a row by its type, question and answer alone; `kind` is empty if nothing is wrong."""

    type: int = -1
    paired: bool = False
    closed: bool = False
    kind: str = ""
    reason: str = ""


# Most rows repeat one of a few thousand (type, question, answer).
@lru_cache(maxsize=1 << 14)
def _form(type: str, question: str, answer: str) -> _Form:
    if type not in TYPES:
        return _Form(kind="unknown question type", reason=f"question_type {type!r} is none of {', '.join(TYPES)}")
    if not question.strip():
        return _Form(kind="empty question", reason="the question is empty")
    if not answer.strip():
        return _Form(kind="empty answer", reason="the answer is empty")
    closed = is_closed(answer)
    outside = ""
    if type == "difference":
        try:
            parse_difference(answer)
        except GrammarError:
            outside = "a difference answer made of the dataset's clauses"
    elif question in CLOSED_TEMPLATES or type == "presence":
        outside = "" if closed else "yes or no"
    elif question == "which view is this image taken?":
        outside = "" if answer.strip().lower() in ("pa view", "ap view") else "PA view or AP view"
    elif question.startswith(_LISTS):
        try:
            parse_findings(answer)
        except GrammarError:
            outside = "findings with commas between them"
    if outside:
        # The answer is a patient's: it goes to rejected.jsonl, not into a message.
        return _Form(kind="answer outside the grammar", reason=f"the answer to a {type} question is not {outside}")
    return _Form(TYPES.index(type), type == "difference", closed)


def _unfit(studies: Studies, at: int, study_id: int, subject_id: int) -> tuple[str, str] | None:
    if at < 0:
        return "unknown study", f"study {study_id} is not in {studies.file}"
    if studies.subject[at] != subject_id:
        reason = f"study {study_id} is subject {studies.subject[at]}'s in {studies.file}, here subject {subject_id}'s"
        return "study of another patient", reason
    return None
