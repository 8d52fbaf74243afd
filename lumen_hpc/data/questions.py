"""Medical-Diff-VQA's questions: one pass that checks each row, gives it its id and interval, and writes it as JSON.

The pass works on blocks of rows, column by column, since a file has 700,000 of them. A block in which anything is
wrong is halved until the row that is wrong stands alone.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
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
from lumen_hpc.data.tables import Block, Place, Table, find_table

SPLITS = ("train", "val", "test")
"""The questions' own splits, the least held out first."""

_COLUMNS = ("study_id", "subject_id", "ref_id", "question_type", "question", "answer", "split")


class Questions:
    """The readable questions in columns, in the order of the file; `main` and `reference` are positions in `Studies`.

    `reference` is -1 and `days` 0 for a question about one image; `bytes` is the length of its JSON line.
    """

    def __init__(self, file: str = "") -> None:
        self.file = file
        self.read = 0
        self.id = array("Q")
        self.main = array("i")
        self.reference = array("i")
        self.days = array("i")
        self.type = array("b")
        self.split = array("b")
        self.closed = array("b")
        self.bytes = array("i")
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
    return f"{int(_ids([study_id], [ref_study_id or 0], [_text_hash(type, question)])[0]):016x}"


def read_questions(folder: str | Path, studies: Studies, bad: Rejections, out: BinaryIO) -> Questions:
    """Reads `mimic_pair_questions.csv[.gz]` and writes a JSON line to `out` for each question that stands on its own.

    Rows with a fault of their own go to `bad`. Intervals of undated studies are meaningless here; the caller leaves
    such studies out. Raises UserError for a missing file or column.
    """
    path = find_table(folder, "mimic_pair_questions")
    table = Table(path, _COLUMNS, bad.question)
    reader = _Reader(studies, bad, Questions(path.name), out)
    for block in table.blocks():
        reader.take(block)
    reader.questions.read = table.read
    return reader.questions


class _Fault(Exception):
    """Some row cannot be taken: `kind` to count it by, and the reason."""

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


class _Reader:
    def __init__(self, studies: Studies, bad: Rejections, questions: Questions, out: BinaryIO):
        self.studies, self.bad, self.questions, self.out = studies, bad, questions, out
        self.day = np.frombuffer(studies.day, np.int32)
        self.subject = np.frombuffer(studies.subject, np.uint64)

    def take(self, block: Block) -> None:
        """Writes a block's rows; a row with a fault goes to `bad`."""
        try:
            self._write(block)
        except _Fault as fault:
            if len(block.rows) == 1:
                place = Place(self.questions.file, block.rows[0], block.lines[0])
                study, answer = block.columns[0][0], block.columns[5][0]
                self.bad.question(place, fault.kind, fault.reason, study_id=study, answer=answer)
                return
            half = len(block.rows) // 2
            for part in (slice(half), slice(half, None)):
                self.take(Block([column[part] for column in block.columns], block.rows[part], block.lines[part]))

    def _write(self, block: Block) -> None:
        """Writes all rows of a block, or raises _Fault before anything is written."""
        study, subject, ref, type, question, answer, split = block.columns
        forms = list(map(_form, type, question, answer, split))
        paired = np.array([form.paired for form in forms])
        study_id, subject_id = _numbers("study_id", study), _numbers("subject_id", subject)
        references = [r.removesuffix(".0") if form.paired else "0" for r, form in zip(ref, forms, strict=True)]
        ref_id = _numbers("ref_id", references)
        main = self._positions(study_id)
        reference = np.full(len(main), -1)
        reference[paired] = self._positions(np.array(ref_id)[paired].tolist())
        self._same_patient(main, np.array(subject_id, np.uint64))
        self._same_patient(reference[paired], np.array(subject_id, np.uint64)[paired])
        if (main == reference).any():
            raise _Fault("bad pair", f"study {study_id[0]} is compared with itself")

        days = np.where(paired, self.day[main] - self.day[reference], 0)
        ids = _ids(study_id, ref_id, [form.hash for form in forms])
        digits = ids.astype(">u8").tobytes().hex().encode()
        lines = [
            _LINE % (digits[at : at + 16], patient, about, b"%d" % r if f.paired else b"null", f.json,
                     b"%d" % d if f.paired else b"null", f.split_name)
            for at, patient, about, r, f, d in zip(
                range(0, len(digits), 16), subject_id, study_id, ref_id, forms, days.tolist(), strict=True
            )
        ]  # fmt: skip
        self.out.write(b"".join(lines))
        for name, values in (
            ("id", ids), ("main", main), ("reference", reference), ("days", days), ("bytes", list(map(len, lines))),
            ("type", [f.type for f in forms]), ("split", [f.split for f in forms]),
            ("closed", [f.closed for f in forms]), ("row", block.rows), ("line", block.lines),
        ):  # fmt: skip
            column = getattr(self.questions, name)
            column.frombytes(np.asarray(values).astype(column.typecode).tobytes())

    def _positions(self, study_ids: list[int]) -> np.ndarray:
        try:
            return np.array(list(map(self.studies.index.__getitem__, study_ids)), np.int64)
        except KeyError as unknown:
            raise _Fault("unknown study", f"study {unknown.args[0]} is not in {self.studies.file}") from None

    def _same_patient(self, positions: np.ndarray, subject_ids: np.ndarray) -> None:
        wrong = np.flatnonzero(self.subject[positions] != subject_ids)
        if wrong.size:
            at, asked = positions[wrong[0]], subject_ids[wrong[0]]
            whose = f"study {self.studies.study[at]} is subject {self.subject[at]}'s in {self.studies.file}"
            raise _Fault("study of another patient", f"{whose}, subject {asked}'s here")


_LINE = (
    b'{"question_id":"%b","subject_id":%d,"study_id":%d,"ref_study_id":%b,%b,"interval_days":%b,"split":"%b"}\n'
)


def _numbers(column: str, texts) -> list[int]:
    try:
        numbers = list(map(int, texts))
        if min(numbers) >= 0 and max(numbers) < 1 << 63:
            return numbers
    except ValueError:
        pass
    raise _Fault("bad id", f"{column} is missing or no whole number")


def _ids(study_ids: list[int], ref_ids: list[int], text_hashes: list[int]) -> np.ndarray:
    """64-bit ids: the hash of the text, mixed with the studies by splitmix64's finalizer (bijective at each step)."""
    mixed = np.array(text_hashes, np.uint64)
    for numbers in (study_ids, ref_ids):
        mixed = (mixed ^ np.array(numbers, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _text_hash(type: str, question: str) -> int:
    return int.from_bytes(blake2b(f"{type}\n{question}".encode(), digest_size=8).digest(), "big")


class _Form(NamedTuple):
    """What a row's type, question, answer and split say by themselves."""

    type: int
    paired: bool
    closed: bool
    split: int
    split_name: bytes
    hash: int
    json: bytes


# Most rows repeat one of a few thousand combinations.
@lru_cache(maxsize=1 << 13)
def _form(type: str, question: str, answer: str, split: str) -> _Form:
    """Raises _Fault for an unknown type or split, an empty text, or an answer that its question cannot have."""
    if type not in TYPES:
        raise _Fault("unknown question type", f"question_type {type!r} is none of {', '.join(TYPES)}")
    if split not in SPLITS:
        raise _Fault("unknown split", f"split {split!r} is none of {', '.join(SPLITS)}")
    for name, text in (("question", question), ("answer", answer)):
        if not text.strip():
            raise _Fault(f"empty {name}", f"the {name} is empty")
    closed = is_closed(answer)
    if wanted := _outside_grammar(type, question, answer, closed):
        # The answer is a patient's: it goes to rejected.jsonl, not into a message.
        raise _Fault("answer outside the grammar", f"the answer to this {type} question is not {wanted}")
    row = {"type": type, "question": question, "short_answer": answer, "closed": closed}
    return _Form(
        TYPES.index(type),
        type == "difference",
        closed,
        SPLITS.index(split),
        split.encode(),
        _text_hash(type, question),
        orjson.dumps(row)[1:-1],
    )


def _outside_grammar(type: str, question: str, answer: str, closed: bool) -> str:
    """What the answer should have been, if it is none that this question can have; else empty."""
    try:
        if type == "difference":
            parse_difference(answer)
        elif type == "presence" or question in CLOSED_TEMPLATES:
            return "" if closed else "yes or no"
        elif question == "which view is this image taken?":
            return "" if answer.strip().lower() in ("pa view", "ap view") else "PA view or AP view"
        elif question.startswith("what abnormalities are seen"):
            parse_findings(answer)
    except GrammarError:
        return "made of the dataset's clauses" if type == "difference" else "a list of findings"
    return ""
