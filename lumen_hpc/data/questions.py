"""Medical-Diff-VQA's questions: one pass checks each row, adds its id and interval, and writes it as JSON.

The pass works on blocks of rows, column by column, since a file has 700,000 rows.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, compress, repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import orjson
from numpy.typing import ArrayLike

from lumen_hpc.data.diff_vqa import TYPES, GrammarError, is_closed, parse_difference, render_difference
from lumen_hpc.data.mimic_cxr import Studies
from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.short_answers import answer_fault, is_question
from lumen_hpc.data.table_files import COLUMNS, QUESTIONS, require
from lumen_hpc.data.tables import Block, CsvTable, Place, parse_row, row_fault, whole_numbers

SPLITS = ("train", "val", "test")
"""The questions' own splits, the least held out first."""


class Questions:
    """The readable questions in columns, in the order of the file; `main` and `reference` are positions in `Studies`.

    `reference` is -1 and `days` 0 for a question about one image; `reordered` marks a pair whose order was exchanged;
    `bytes` is the length of the JSON line.
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
        self.reordered = array("b")
        self.bytes = array("i")
        self.row = array("I")
        self.line = array("I")

    def __len__(self) -> int:
        return len(self.id)

    def place(self, position: int) -> Place:
        """The row a question came from."""
        return Place(self.file, self.row[position], self.line[position])


def question_id(study_id: int, ref_study_id: int | None, type: str, question: str) -> str:
    """The stable id of a question: 16 hex digits, a hash of its type, its text and its studies.

    It does not depend on the order of the file, the split or the answer, so two answers to one question share an
    id, and are found as duplicates.
    """
    return f"{int(_ids([study_id], [ref_study_id or 0], [_text_hash(type, question)])[0]):016x}"


def read_questions(
    folder: str | Path, studies: Studies, rejections: Rejections, out: BinaryIO, *, reorder: bool = False
) -> Questions:
    """Reads `mimic_pair_questions.csv[.gz]` and writes a JSON line to `out` for each readable question.

    Rows with a fault go to `rejections`. Intervals of undated studies are meaningless here; the caller leaves out such
    studies. `reorder` exchanges the studies of a pair whose main study is the earlier one, and its answer with them, as
    release 1.0.1 did. Raises UserError for a missing file or column.
    """
    path = require(folder, QUESTIONS)
    table = CsvTable(path, COLUMNS[QUESTIONS], rejections.question)
    reader = _Reader(studies, rejections, Questions(path.name), out, reorder)
    for block in table.packed_blocks(lead=3):
        reader.add(block)
    reader.questions.read = table.row
    return reader.questions


_FORM_LAYOUT = "<bbbQ"


class _Fault(Exception):
    """A bad row: its kind, by which it is counted, and the reason."""

    columns, tail = struct.pack(_FORM_LAYOUT, -1, False, 0, 0), b""
    """In place of a form's."""

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


@dataclass(eq=False)
class _Rows:
    """The rows of a block in columns; -1 is an id that cannot be read, or the position of an unknown study."""

    forms: list[_Form | _Fault]
    tail: list[bytes]
    type: np.ndarray
    """int8, as `closed` and `split`."""
    closed: np.ndarray
    split: np.ndarray
    text_hash: np.ndarray
    """uint64"""
    study_id: np.ndarray
    """int64, as all that follow."""
    subject_id: np.ndarray
    ref_id: np.ndarray
    """0 for a question about one image."""
    main: np.ndarray
    """Position of the study in Studies."""
    reference: np.ndarray
    reordered: np.ndarray
    row: np.ndarray
    line: np.ndarray

    @property
    def pair(self) -> np.ndarray:
        """bool: difference questions."""
        return self.type == _DIFFERENCE

    def without(self, positions: Iterable[int]) -> _Rows:
        """The other rows."""
        kept: np.ndarray = np.ones(len(self.type), bool)
        kept[list(positions)] = False
        old_columns: Any = (getattr(self, column.name) for column in fields(self))
        columns: list[Any] = [list(compress(c, kept)) if isinstance(c, list) else c[kept] for c in old_columns]
        return _Rows(*columns)


class _Reader:
    def __init__(self, studies: Studies, rejections: Rejections, questions: Questions, out: BinaryIO, reorder: bool):
        self.studies, self.rejections, self.questions, self.out = studies, rejections, questions, out
        self.forms, self.reordered_forms = _Forms(), _Forms(reordered=True)
        self.reorder = reorder

    def add(self, block: Block) -> None:
        """Writes a block's rows; a row with a fault goes to `rejections`."""
        if not len(block.rows):
            return
        rows = self._parse(block)
        faults = self._faults(rows)
        if self.reorder:
            self._exchange(rows, block, faults)
        for row, fault in sorted(faults.items()):
            self.rejections.question(block.place(self.questions.file, row), *fault, text=_csv_text(block, row))
        self._write(rows.without(faults) if faults else rows)

    def _parse(self, block: Block) -> _Rows:
        study, subject, ref, rest = block.columns
        forms = list(map(self.forms.__getitem__, rest))
        columns = np.frombuffer(b"".join([form.columns for form in forms]), "i1,i1,i1,<u8")
        types, closed, splits, hashes = (columns[name].copy() for name in columns.dtype.names or ())
        pairs = np.flatnonzero(types == _DIFFERENCE)
        ref_id: np.ndarray = np.zeros(len(rest), np.int64)
        ref_id[pairs] = whole_numbers([ref[row] for row in pairs.tolist()])
        reference: np.ndarray = np.full(len(rest), -1)
        reference[pairs] = self.studies.positions(ref_id[pairs])
        tails = [form.tail for form in forms]
        study_id = whole_numbers(study)
        return _Rows(
            forms, tails, types, closed, splits, hashes, study_id, whole_numbers(subject), ref_id,
            self.studies.positions(study_id), reference, np.zeros(len(rest), np.int64), block.rows, block.lines,
        )  # fmt: skip

    def _faults(self, rows: _Rows) -> dict[int, tuple[str, str]]:
        """Position → kind and reason, of the first fault of each bad row."""
        owner = self.studies.subject
        checks: tuple[tuple[np.ndarray, Callable[[int], tuple[str, str]]], ...] = (
            (rows.type < 0, lambda row: _kind_and_reason(rows.forms[row])),
            (rows.study_id < 0, lambda row: ("bad id", "study_id is missing or not a whole number")),
            (rows.subject_id < 0, lambda row: ("bad id", "subject_id is missing or not a whole number")),
            (rows.pair & (rows.ref_id < 0), lambda row: ("bad id", "ref_id is missing or not a whole number")),
            (rows.main < 0, lambda row: self._unknown_study(int(rows.study_id[row]))),
            (rows.pair & (rows.reference < 0), lambda row: self._unknown_study(int(rows.ref_id[row]))),
            (
                owner[rows.main] != rows.subject_id,
                lambda row: self._wrong_patient(rows.main[row], rows.subject_id[row]),
            ),
            (
                rows.pair & (owner[rows.reference] != rows.subject_id),
                lambda row: self._wrong_patient(rows.reference[row], rows.subject_id[row]),
            ),
            (
                rows.pair & (rows.main == rows.reference),
                lambda row: ("bad pair", f"study {rows.study_id[row]} is compared with itself"),
            ),
        )
        faults: dict[int, tuple[str, str]] = {}
        for is_faulty, fault in checks:
            for row in np.flatnonzero(is_faulty).tolist():
                if row not in faults:
                    faults[row] = fault(row)
        return faults

    def _unknown_study(self, study_id: int) -> tuple[str, str]:
        return "unknown study", f"study {study_id} is not in {self.studies.file}"

    def _wrong_patient(self, position: Any, claimed_subject: Any) -> tuple[str, str]:
        study, owner = self.studies.study[position], self.studies.subject[position]
        reason = f"study {study} belongs to subject {owner} in {self.studies.file}, to subject {claimed_subject} here"
        return "study of another patient", reason

    def _exchange(self, rows: _Rows, block: Block, faults: dict[int, tuple[str, str]]) -> None:
        """Exchanges the studies, and the answer, of good pairs whose main study is of an earlier day."""
        main, reference = self.studies.day[rows.main], self.studies.day[rows.reference]
        for row in np.flatnonzero(rows.pair & (main > 0) & (reference > main)).tolist():
            if row in faults:
                continue
            form = rows.forms[row] = self.reordered_forms[block.columns[3][row]]
            if isinstance(form, _Fault):
                faults[row] = _kind_and_reason(form)
            rows.main[row], rows.reference[row] = rows.reference[row], rows.main[row]
            rows.study_id[row], rows.ref_id[row] = rows.ref_id[row], rows.study_id[row]
            rows.reordered[row] = 1

    def _write(self, rows: _Rows) -> None:
        """Writes good rows."""
        if not len(rows.type):
            return
        pairs = np.flatnonzero(rows.pair)
        days: np.ndarray = np.zeros(len(rows.type), np.int64)
        days[pairs] = self.studies.day[rows.main[pairs]] - self.studies.day[rows.reference[pairs]]
        for row, reference_id, interval in zip(
            pairs.tolist(), rows.ref_id[pairs].tolist(), days[pairs].tolist(), strict=True
        ):
            form = cast(_Form, rows.forms[row])
            rows.tail[row] = _PAIR_TAIL % (reference_id, form.json, interval, form.split)
        # Rows of a study are adjacent, so its ids are formatted once for all of them.
        runs = np.flatnonzero(np.diff(rows.main, prepend=-1))
        run_texts = [
            _IDS % ids for ids in zip(rows.subject_id[runs].tolist(), rows.study_id[runs].tolist(), strict=True)
        ]
        ids = _ids(rows.study_id, rows.ref_id, rows.text_hash)
        id_texts = (" " + ids.astype(">u8").tobytes().hex(" ", 8)).encode().replace(b" ", b" " + _HEAD).split()
        run_lengths = np.diff(runs, append=len(days))
        head_texts = chain.from_iterable(map(repeat, run_texts, run_lengths.tolist()))
        self.out.write(b"".join(chain.from_iterable(zip(id_texts, head_texts, rows.tail))))
        lengths = len(_HEAD) + 16 + np.repeat(list(map(len, run_texts)), run_lengths) + list(map(len, rows.tail))
        for name, values in (
            ("id", ids), ("main", rows.main), ("reference", rows.reference), ("days", days), ("type", rows.type),
            ("split", rows.split), ("closed", rows.closed), ("reordered", rows.reordered), ("row", rows.row),
            ("line", rows.line), ("bytes", lengths),
        ):  # fmt: skip
            column = getattr(self.questions, name)
            column.frombytes(np.asarray(values, column.typecode).tobytes())


_DIFFERENCE = TYPES.index("difference")
_HEAD = b'{"question_id":"'
_IDS = b'","subject_id":%d,"study_id":%d'
_PAIR_TAIL = b',"ref_study_id":%d,%b,"interval_days":%d,"split":"%b"}\n'
_TAIL = b',"ref_study_id":null,%b,"interval_days":null,"split":"%b"}\n'


def _kind_and_reason(form: _Form | _Fault) -> tuple[str, str]:
    assert isinstance(form, _Fault)
    return form.kind, form.reason


def _csv_text(block: Block, row: int) -> str:
    """A row as csv text, for rejected.jsonl."""
    return b",".join(column[row] for column in block.columns).decode("utf-8", "replace").rstrip("\r\n")


def _ids(study_ids: ArrayLike, ref_ids: ArrayLike, text_hashes: ArrayLike) -> np.ndarray:
    """64-bit ids: the hash of the text, mixed with the studies by splitmix64's finalizer (bijective at each step)."""
    mixed = np.array(text_hashes, np.uint64)
    for numbers in (study_ids, ref_ids):
        mixed = (mixed ^ np.asarray(numbers).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return mixed


@lru_cache(maxsize=1 << 12)
def _text_hash(type: str, question: str) -> int:
    question = " ".join(question.split())  # with other spaces it is the same question
    return int.from_bytes(blake2b(f"{type}\n{question}".encode(), digest_size=8).digest(), "big")


class _Form(NamedTuple):
    """What follows from a row's type, question, short answer and split alone."""

    columns: bytes
    """Type, closed, split and hash of the text, as _FORM_LAYOUT packs them."""
    tail: bytes
    """The end of the JSON line of a question about one image."""
    json: bytes
    split: bytes


class _Forms(dict):
    """Forms, or faults, by the text of a row from its type on; most rows repeat one of a few thousand."""

    def __init__(self, reordered: bool = False) -> None:
        super().__init__()
        self._reordered = reordered

    def __missing__(self, rest: bytes) -> _Form | _Fault:
        if len(self) == 1 << 14:
            self.clear()  # cheaper than a least-recently-used order
        try:
            form: _Form | _Fault = _form(rest, self._reordered)
        except _Fault as fault:
            form = fault
        self[rest] = form
        return form


def _form(rest: bytes, reordered: bool) -> _Form:
    """Reads a row from its type on; `reordered` exchanges the two images of a difference answer.

    Raises _Fault for other than four fields of UTF-8, an unknown type or split, an empty text, or an answer that
    its question cannot have.
    """
    row_fields = parse_row(rest)
    if fault := row_fault(row_fields, 4, lead=3):
        raise _Fault(*fault)
    type, question, short_answer, split = row_fields
    if type not in TYPES:
        raise _Fault("unknown question type", f"question_type, {len(type)} characters, is none of {', '.join(TYPES)}")
    if split not in SPLITS:
        raise _Fault("unknown split", f"split, {len(split)} characters, is none of {', '.join(SPLITS)}")
    for name, text in (("question", question), ("answer", short_answer)):
        if not text.strip():
            raise _Fault(f"empty {name}", f"the {name} is empty")
    if not is_question(question):
        raise _Fault("not a question", "the question is a missing value, has no words, empty blanks or odd characters")
    if fault := answer_fault(type, question, short_answer):
        raise _Fault(*fault)
    if reordered:
        try:
            short_answer = render_difference(parse_difference(short_answer).reversed())
        except GrammarError:
            reason = "the answer of this reversed pair cannot be written for the other order"
            raise _Fault("answer outside the grammar", reason) from None
    closed = is_closed(short_answer)
    row = {"type": type, "question": question, "short_answer": short_answer, "closed": closed}
    json, split_name = orjson.dumps(row)[1:-1], split.encode()
    columns = (TYPES.index(type), closed, SPLITS.index(split), _text_hash(type, question))
    return _Form(struct.pack(_FORM_LAYOUT, *columns), _TAIL % (json, split_name), json, split_name)
