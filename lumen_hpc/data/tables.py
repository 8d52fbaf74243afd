"""The datasets' csv files as streams of rows with their row and line numbers.

Columns are found by name, and a row that cannot be read goes to the caller's `reject` with its place; no row is skipped
silently.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import methodcaller
from typing import Any, NamedTuple

import numpy as np

from lumen_hpc.data.csv_files import OPEN_QUOTE, CsvFile, Fields, NotCsv, parse_fields, text_of


class Place(NamedTuple):
    """The position of a row: row 1 is the first below the header, line 1 is the header's."""

    file: str
    row: int
    line: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row} (line {self.line})"


class Block(NamedTuple):
    """Consecutive rows of a table, column by column, with their row and line numbers."""

    columns: Sequence[Sequence]
    rows: np.ndarray
    lines: np.ndarray

    def place(self, file: str, index: int) -> Place:
        """The place of one of the rows."""
        return Place(file, int(self.rows[index]), int(self.lines[index]))


BLOCK_ROWS = 4096
"""Rows per block."""


@dataclass(slots=True)
class CsvTable(CsvFile):
    """One csv file, read by column names and in blocks; only the requested columns.

    A row that is not csv, has another number of fields than the header, or holds NUL bytes or bytes that are not
    UTF-8, goes to `reject(place, kind, reason)` instead; blank lines are no rows. `row` is the last one read.
    Raises UserError as `CsvFile.opened`.
    """

    reject: Callable[[Place, str, str], None]
    row: int = 0

    def blocks(self) -> Iterator[Block]:
        """Blocks of text fields; a quoted field may hold line breaks."""
        with self.opened() as (header, stream):
            partial_row: list[bytes] = []
            while lines := partial_row + list(islice(stream, BLOCK_ROWS)):
                line_offset = self.line - len(partial_row)
                is_last = len(lines) - len(partial_row) < BLOCK_ROWS
                self.line = line_offset + len(lines)
                if columns := _columns(lines, [header.index(name) for name in self.columns], len(header)):
                    numbers, partial_row = np.arange(1, len(lines) + 1), []
                    yield Block(columns, self.row + numbers, line_offset + numbers)
                    self.row += len(lines)
                else:
                    rows, ends, open_lines = _rows(list(map(text_of, lines)), len(header), is_last)
                    partial_row = lines[len(lines) - open_lines :]
                    yield self._good_block(rows, line_offset + ends, header)

    def packed_blocks(self, lead: int) -> Iterator[Block]:
        """Blocks of bytes: the first `lead` requested columns, then the others of the row as one piece of csv text.

        For a file in which those others repeat, so that each piece is parsed only once. A row is a line here. Lines
        are split, not parsed, wherever that is equivalent; the reader of the piece then checks the number of fields
        and UTF-8.
        """
        with self.opened() as (header, stream):
            while lines := list(islice(stream, BLOCK_ROWS)):
                pieces = [line.split(b",", lead) for line in lines]
                columns = list(zip(*pieces, strict=False))
                splittable = set(map(len, pieces)) == {lead + 1} and b'"' not in b"".join(map(b"".join, columns[:lead]))
                line_offset, self.line = self.line, self.line + len(lines)
                if splittable and header == list(self.columns):
                    numbers = np.arange(1, len(lines) + 1)
                    yield Block(columns, self.row + numbers, line_offset + numbers)
                    self.row += len(lines)
                else:
                    rows = list(map(parse_row, lines))
                    block = self._good_block(rows, np.arange(line_offset + 1, self.line + 1), header)
                    packed_rows = [_pack(row, lead) for row in zip(*block.columns, strict=True)]
                    yield block._replace(columns=list(zip(*packed_rows, strict=True)))

    def _good_block(self, rows: list[Fields], last_lines: np.ndarray, header: list[str]) -> Block:
        """The requested columns of the good rows; the others go to `reject`. `last_lines`: each row's last line."""
        row_numbers = np.arange(self.row + 1, self.row + 1 + len(rows))
        if set(map(len, rows)) == {len(header)} and _is_clean("".join(map("".join, rows))):
            self.row += len(rows)
        else:
            row_numbers, last_lines, rows = self._sift(rows, last_lines, len(header))
        columns = list(zip(*rows, strict=True)) or [()] * len(header)
        return Block([columns[header.index(name)] for name in self.columns], row_numbers, last_lines)

    def _sift(self, rows: list[Fields], last_lines: np.ndarray, width: int) -> tuple:
        """(numbers, lines, fields) of the good rows."""
        good_rows, row_numbers, row_ends = [], [], []
        for fields, line in zip(rows, last_lines.tolist(), strict=True):
            if fault := row_fault(fields, width):
                self.row += 1
                self.reject(Place(self.path.name, self.row, line), *fault)
            elif fields:
                self.row += 1
                good_rows.append(fields)
                row_numbers.append(self.row)
                row_ends.append(line)
        return np.array(row_numbers, np.int64), np.array(row_ends, np.int64), good_rows


def row_fault(fields: Fields, width: int, lead: int = 0) -> tuple[str, str] | None:
    """Kind and reason of the fault of a row that should have `width` fields; None for a good or blank row.

    `lead`: fields of the row that are already parsed.
    """
    if isinstance(fields, NotCsv):
        return "not csv", fields.reason
    if fields and len(fields) != width:
        return "wrong number of fields", f"{lead + len(fields)} fields where the header has {lead + width}"
    text = "".join(fields)
    if not _is_utf8(text):
        return "not UTF-8", "bytes that are not UTF-8 text"
    return ("NUL byte", "a NUL byte") if "\0" in text else None


def _columns(lines: list[bytes], positions: list[int], width: int) -> list[list[str]]:
    """The fields at these positions of good rows that need no parser, by column; empty if any row needs one."""
    text = text_of(b"".join(lines)).replace("\r\n", "\n")
    commas = set(map(methodcaller("count", b","), lines))
    if commas != {width - 1} or width == 1 or '"' in text or "\r" in text or not _is_clean(text):
        return []
    fields = text.removesuffix("\n").replace("\n", ",").split(",")
    return [fields[position::width] for position in positions]


def _rows(lines: list[str], width: int, is_last: bool) -> tuple[list[Fields], np.ndarray, int]:
    """Rows of csv text, the line that each ends on (from 1), and how many lines belong to a row not yet complete.

    A quoted field may hold line breaks, but not a whole row: where a continuing line has the fields of a row by
    itself, the quote above it is a stray one. Without this, two stray quotes would fuse rows, and a study would get
    another patient's date. `is_last`: no lines follow these.
    """
    try:
        rows = list(csv.reader(lines, strict=True))
        if len(rows) == len(lines) and ('"' not in "".join(lines) or set(map(len, rows)) == {width}):
            return rows, np.arange(1, len(lines) + 1), 0
    except csv.Error:
        pass
    rows, row_ends, start = [], [], 0
    while start < len(lines):
        row, line_count = _row(lines, start, width)
        if not line_count and not is_last:
            break
        rows.append(row)
        start += max(line_count, 1)
        row_ends.append(start)
    return rows, np.array(row_ends, np.int64), len(lines) - start


def _row(lines: list[str], start: int, width: int) -> tuple[Fields, int]:
    """The row that begins at a line, and how many lines it takes; 0 if it is still open at the last line."""
    text = ""
    for line_count, line in enumerate(lines[start : start + MAX_ROW_LINES], 1):
        if text and len(parse_fields(line)) >= width:
            return NotCsv(OPEN_QUOTE), 1
        text += line
        fields = parse_fields(text)
        if not isinstance(fields, NotCsv):
            return fields, line_count
        if fields.reason != OPEN_QUOTE:
            return NotCsv(fields.reason), 1
    return NotCsv(OPEN_QUOTE), int(len(lines) - start >= MAX_ROW_LINES)


MAX_ROW_LINES = 100
"""Lines that the quoted fields of one row may span."""


def parse_row(line: bytes) -> Fields:
    """The fields of a piece of csv text that is one line; a NotCsv, which is empty, if it is not csv."""
    return parse_fields(text_of(line))


def _is_clean(text: str) -> bool:
    return "\0" not in text and _is_utf8(text)


def _pack(fields: tuple[str, ...], lead: int) -> tuple[bytes, ...]:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields[lead:])
    return *(field.encode() for field in fields[:lead]), text.getvalue().encode()


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole_numbers(texts: Sequence[Any]) -> np.ndarray:
    """int64 [n] of a column of ids (str or bytes); -1 for anything but 1 to 18 digits, or those with `.0`.

    pandas writes a column of ids in which one is missing as `50414267.0`. No id begins with 0: as text it would be
    another one.
    """
    if not texts:
        return np.zeros(0, np.int64)
    empty: Any
    point: Any
    empty, point = ("", ".0") if isinstance(texts[0], str) else (b"", b".0")
    if not _is_number(text := empty.join(texts)):
        texts = [item.removesuffix(point) for item in texts]
        text = empty.join(texts)
    width = len(texts[0])
    if not (_is_number(text) and width <= 18 and set(map(len, texts)) == {width}):
        return np.array([int(item) if _is_id(item) else -1 for item in texts], np.int64)
    encoded = text.encode() if isinstance(text, str) else text
    digits = np.frombuffer(encoded, np.uint8).reshape(-1, width) - ord("0")
    numbers: np.ndarray = np.zeros(len(texts), np.int64)
    for column in digits.T:
        numbers = numbers * 10 + column
    return np.where(digits[:, 0] > 0, numbers, -1)


def _is_id(text: str | bytes) -> bool:
    return _is_number(text) and len(text) <= 18 and text[:1] not in ("0", b"0")


def _is_number(text: str | bytes) -> bool:
    # In text, Python looks up every single digit.
    return text.isascii() and (text.encode() if isinstance(text, str) else text).isdigit()
