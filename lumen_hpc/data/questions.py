"""Medical-Diff-VQA's questions: one pass that checks each row, gives it its id and interval, and writes it as JSON.

The pass works on blocks of rows, column by column, since a file has 700,000 of them. A block in which anything is
wrong is halved until the row that is wrong stands alone.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import orjson
from numpy.typing import ArrayLike

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
from lumen_hpc.data.tables import NOT_UTF8, Block, Place, Table, find_table, wrong_width

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
    for block in table.packed_blocks(lead=3):
        reader.take(block)
    reader.questions.read = table.row
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
                self.bad.question(place, fault.kind, fault.reason, text=_readable(block))
                return
            half = len(block.rows) // 2
            for part in (slice(half), slice(half, None)):
                self.take(Block([column[part] for column in block.columns], block.rows[part], block.lines[part]))

    def _write(self, block: Block) -> None:
        """Writes all rows of a block, or raises _Fault before anything is written."""
        study, subject, ref, rest = block.columns
        forms = list(map(_form, rest))
        study_id, subject_id = _numbers("study_id", study), _numbers("subject_id", subject)
        pairs = [at for at, form in enumerate(forms) if form.paired]
        ref_id = _numbers("ref_id", [ref[at].removesuffix(b".0") for at in pairs])
        main, of_pair = self._positions(study_id), self._positions(ref_id)
        subjects = np.array(subject_id, np.uint64)
        self._same_patient(main, subjects)
        self._same_patient(of_pair, subjects[pairs])
        if (main[pairs] == of_pair).any():
            raise _Fault("bad pair", f"study {study_id[0]} is compared with itself")

        reference, refs, days = np.full(len(main), -1), np.zeros(len(main), np.uint64), np.zeros(len(main), np.int64)
        reference[pairs], refs[pairs], days[pairs] = of_pair, ref_id, self.day[main[pairs]] - self.day[of_pair]
        ids = _ids(study_id, refs, [form.hash for form in forms])
        digits = ids.astype(">u8").tobytes().hex().encode()
        of_pairs: list[tuple[bytes, bytes]] = [_NO_PAIR] * len(forms)
        for at, reference_id, interval in zip(pairs, ref_id, days[pairs].tolist(), strict=True):
            of_pairs[at] = (b"%d" % reference_id, b"%d" % interval)
        lines = [
            _LINE % (digits[at : at + 16], patient, about, ref_text, form.json, days_text, form.split_name)
            for at, patient, about, form, (ref_text, days_text) in zip(
                range(0, len(digits), 16), subject_id, study_id, forms, of_pairs, strict=True
            )
        ]
        self.out.write(b"".join(lines))
        for name, values in (
            ("id", ids), ("main", main), ("reference", reference), ("days", days), ("bytes", list(map(len, lines))),
            ("type", [form.type for form in forms]), ("split", [form.split for form in forms]),
            ("closed", [form.closed for form in forms]), ("row", block.rows), ("line", block.lines),
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


_LINE = b'{"question_id":"%b","subject_id":%d,"study_id":%d,"ref_study_id":%b,%b,"interval_days":%b,"split":"%b"}\n'
_NO_PAIR = (b"null", b"null")


def _readable(block: Block) -> str:
    """A single row as csv text, for rejected.jsonl."""
    return b",".join(column[0] for column in block.columns).decode("utf-8", "replace").rstrip("\r\n")


def _numbers(column: str, texts: Sequence[bytes]) -> list[int]:
    try:
        numbers = list(map(int, texts))
        if not numbers or (min(numbers) >= 0 and max(numbers) < 1 << 63):
            return numbers
    except ValueError:
        pass
    raise _Fault("bad id", f"{column} is missing or no whole number")


def _ids(study_ids: ArrayLike, ref_ids: ArrayLike, text_hashes: ArrayLike) -> np.ndarray:
    """64-bit ids: the hash of the text, mixed with the studies by splitmix64's finalizer (bijective at each step)."""
    mixed = np.array(text_hashes, np.uint64)
    for numbers in (study_ids, ref_ids):
        mixed = (mixed ^ np.array(numbers, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return mixed


@lru_cache(maxsize=1 << 12)
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
def _form(rest: bytes) -> _Form:
    """Reads a row from its type on.

    Raises _Fault for what is not four fields of UTF-8, an unknown type or split, an empty text, or an answer that
    its question cannot have.
    """
    try:
        fields = next(csv.reader([rest.decode()]), [])
    except UnicodeDecodeError:
        raise _Fault(*NOT_UTF8) from None
    except csv.Error as error:
        raise _Fault("not csv", str(error)) from None
    if len(fields) != 4:
        raise _Fault(*wrong_width(len(_COLUMNS) - 4 + len(fields), len(_COLUMNS)))
    type, question, answer, split = fields
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
