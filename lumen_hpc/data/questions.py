"""Medical-Diff-VQA's questions: one pass checks each row, adds its id and interval, and writes it as JSON.

The pass works on blocks of rows, column by column, since a file has 700,000 of them. A block with a fault is
halved until the bad row is alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, repeat
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import orjson
from numpy.typing import ArrayLike

from lumen_hpc.data.answers import MISSING, expected_answer
from lumen_hpc.data.diff_vqa import TYPES, GrammarError, is_closed, parse_difference, render_difference
from lumen_hpc.data.mimic_cxr import Studies
from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.tables import Block, Place, Table, find_table, parse_row, row_fault, whole_numbers

SPLITS = ("train", "val", "test")
"""The questions' own splits, the least held out first."""

_COLUMNS = ("study_id", "subject_id", "ref_id", "question_type", "question", "answer", "split")


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
    folder: str | Path, studies: Studies, bad: Rejections, out: BinaryIO, *, reorder: bool = False
) -> Questions:
    """Reads `mimic_pair_questions.csv[.gz]` and writes a JSON line to `out` for each readable question.

    Rows with a fault of their own go to `bad`. Intervals of undated studies are meaningless here; the caller leaves
    out such studies. `reorder` exchanges the studies of a pair whose main study is the earlier one, and its answer
    with them, as release 1.0.1 did. Raises UserError for a missing file or column.
    """
    path = find_table(folder, "mimic_pair_questions")
    table = Table(path, _COLUMNS, bad.question)
    reader = _Reader(studies, bad, Questions(path.name), out, reorder)
    for block in table.packed_blocks(lead=3):
        reader.take(block)
    reader.questions.read = table.row
    return reader.questions


class _Fault(Exception):
    """A bad row: its kind, by which it is counted, and the reason."""

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


class _Reader:
    def __init__(self, studies: Studies, bad: Rejections, questions: Questions, out: BinaryIO, reorder: bool):
        self.studies, self.bad, self.questions, self.out = studies, bad, questions, out
        self.forms, self.reordered_forms = _Forms(), _Forms(reordered=True)
        self.reorder = reorder

    def take(self, block: Block) -> None:
        """Writes a block's rows; a row with a fault goes to `bad`."""
        if not len(block.rows):
            return
        try:
            self._write(block)
        except _Fault as fault:
            if len(block.rows) == 1:
                self.bad.question(block.place(self.questions.file, 0), fault.kind, fault.reason, text=_readable(block))
                return
            half = len(block.rows) // 2
            self.take(block.part(slice(half)))
            self.take(block.part(slice(half, None)))

    def _write(self, block: Block) -> None:
        """Writes all rows of a block, or raises _Fault before anything is written."""
        study, subject, ref, rest = block.columns
        forms = list(map(self.forms.__getitem__, rest))
        *codes, hashes, tails = map(list, zip(*(form.columns for form in forms), strict=True))
        types, closed, splits = (np.frombuffer(bytes(column), np.int8) for column in codes)
        reordered: np.ndarray = np.zeros(len(rest), np.int8)
        study_id, subject_id = _numbers("study_id", study), _numbers("subject_id", subject)
        pairs = np.flatnonzero(types == _DIFFERENCE)
        ref_id = _numbers("ref_id", [ref[at].removesuffix(b".0") for at in pairs.tolist()])
        main, of_pair = self._positions(study_id), self._positions(ref_id)
        self._same_patient(main, subject_id)
        self._same_patient(of_pair, subject_id[pairs])
        if (main[pairs] == of_pair).any():
            raise _Fault("bad pair", f"study {study_id[0]} is compared with itself")

        if self.reorder:
            later = self._earlier_main(main[pairs], of_pair)
            backwards = pairs[later]
            main[backwards], of_pair[later] = of_pair[later], main[backwards]
            study_id[backwards], ref_id[later] = ref_id[later], study_id[backwards]
            reordered[backwards] = 1
            for at in backwards.tolist():
                forms[at] = self.reordered_forms[rest[at]]
        reference: np.ndarray = np.full(len(main), -1)
        refs: np.ndarray = np.zeros(len(main), np.int64)
        days: np.ndarray = np.zeros(len(main), np.int64)
        reference[pairs], refs[pairs] = of_pair, ref_id
        days[pairs] = self.studies.day[main[pairs]] - self.studies.day[of_pair]
        for at, reference_id, interval in zip(pairs.tolist(), ref_id.tolist(), days[pairs].tolist(), strict=True):
            form = forms[at]
            tails[at] = _PAIR_TAIL % (reference_id, form.json, interval, form.split)
        # Rows of a study are adjacent, so its ids are formatted once for all of them.
        runs = np.flatnonzero(np.diff(main, prepend=-1))
        texts = [_IDS % ids for ids in zip(subject_id[runs].tolist(), study_id[runs].tolist(), strict=True)]
        ids = _ids(study_id, refs, hashes)
        digits = ids.astype(">u8").tobytes().hex(" ", 8).encode().split()
        heads = list(chain.from_iterable(map(repeat, texts, np.diff(runs, append=len(main)).tolist())))
        lines = list(map(b"".join, zip(repeat(_HEAD), digits, heads, tails)))
        self.out.write(b"".join(lines))
        for name, values in (
            ("id", ids), ("main", main), ("reference", reference), ("days", days), ("type", types), ("split", splits),
            ("closed", closed), ("reordered", reordered), ("row", block.rows), ("line", block.lines),
            ("bytes", list(map(len, lines))),
        ):  # fmt: skip
            column = getattr(self.questions, name)
            column.frombytes(np.asarray(values, column.typecode).tobytes())

    def _earlier_main(self, main: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """True for pairs whose main study was taken on an earlier day than the reference."""
        main, reference = self.studies.day[main], self.studies.day[reference]
        return (main > 0) & (reference > main)

    def _positions(self, study_ids: np.ndarray) -> np.ndarray:
        at = self.studies.positions(study_ids)
        if (at < 0).any():
            raise _Fault("unknown study", f"study {study_ids[at < 0][0]} is not in {self.studies.file}")
        return at

    def _same_patient(self, positions: np.ndarray, subject_ids: np.ndarray) -> None:
        wrong = np.flatnonzero(self.studies.subject[positions] != subject_ids)
        if wrong.size:
            at, claimed = positions[wrong[0]], subject_ids[wrong[0]]
            owner = (
                f"study {self.studies.study[at]} belongs to subject {self.studies.subject[at]} in {self.studies.file}"
            )
            raise _Fault("study of another patient", f"{owner}, to subject {claimed} here")


_DIFFERENCE = TYPES.index("difference")
_HEAD = b'{"question_id":"'
_IDS = b'","subject_id":%d,"study_id":%d'
_PAIR_TAIL = b',"ref_study_id":%d,%b,"interval_days":%d,"split":"%b"}\n'
_TAIL = b',"ref_study_id":null,%b,"interval_days":null,"split":"%b"}\n'


def _readable(block: Block) -> str:
    """A single row as csv text, for rejected.jsonl."""
    return b",".join(column[0] for column in block.columns).decode("utf-8", "replace").rstrip("\r\n")


def _numbers(column: str, texts: Sequence[bytes]) -> np.ndarray:
    """int64 [n]"""
    numbers = whole_numbers(texts)
    if (numbers < 0).any():
        raise _Fault("bad id", f"{column} is missing or not a whole number")
    return numbers


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
    return int.from_bytes(blake2b(f"{type}\n{question}".encode(), digest_size=8).digest(), "big")


class _Form(NamedTuple):
    """What follows from a row's type, question, answer and split alone."""

    columns: tuple[int, bool, int, int, bytes]
    """Type, closed, split, hash of the text, and the end of the JSON line of a question about one image."""
    json: bytes
    split: bytes


class _Forms(dict):
    """Forms by the text of a row from its type on; most rows repeat one of a few thousand."""

    def __init__(self, reordered: bool = False) -> None:
        super().__init__()
        self._reordered = reordered

    def __missing__(self, rest: bytes) -> _Form:
        if len(self) == 1 << 14:
            self.clear()  # cheaper than a least-recently-used order
        form = self[rest] = _form(rest, self._reordered)
        return form


def _form(rest: bytes, reordered: bool) -> _Form:
    """Reads a row from its type on; `reordered` exchanges the two images of a difference answer.

    Raises _Fault for other than four fields of UTF-8, an unknown type or split, an empty text, or an answer that
    its question cannot have.
    """
    fields = parse_row(rest)
    if fault := row_fault(fields, 4, lead=len(_COLUMNS) - 4):
        raise _Fault(*fault)
    type, question, answer, split = fields
    if type not in TYPES:
        raise _Fault("unknown question type", f"question_type {type!r} is none of {', '.join(TYPES)}")
    if split not in SPLITS:
        raise _Fault("unknown split", f"split {split!r} is none of {', '.join(SPLITS)}")
    for name, text in (("question", question), ("answer", answer)):
        if not text.strip():
            raise _Fault(f"empty {name}", f"the {name} is empty")
    if question.strip().lower() in MISSING or not question.strip().isprintable():
        raise _Fault("not a question", "the question is a missing value or has control characters")
    if expected := expected_answer(type, question, answer):
        # The answer is a patient's: it goes to rejected.jsonl, not into a message.
        raise _Fault("answer outside the grammar", f"the answer to this {type} question is not {expected}")
    if reordered:
        try:
            answer = render_difference(parse_difference(answer).reversed())
        except GrammarError:
            reason = "the answer of this reversed pair cannot be written for the other order"
            raise _Fault("answer outside the grammar", reason) from None
    closed = is_closed(answer)
    row = {"type": type, "question": question, "short_answer": answer, "closed": closed}
    json, split_name = orjson.dumps(row)[1:-1], split.encode()
    tail = _TAIL % (json, split_name)
    return _Form((TYPES.index(type), closed, SPLITS.index(split), _text_hash(type, question), tail), json, split_name)
