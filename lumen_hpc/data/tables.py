"""The datasets' csv files as streams of rows with their row and line numbers.

The first bytes show whether a file is gzipped, columns are found by name, and a row that cannot be read goes to the
caller's `bad` with its place; none is skipped in silence.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from lumen_hpc.errors import UserError


class Place(NamedTuple):
    """The position of a row: row 1 is the first below the header, line 1 is the header's."""

    file: str
    row: int
    line: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row} (line {self.line})"


class Block(NamedTuple):
    """Consecutive rows of a table, column by column, with their row and line numbers."""

    columns: Sequence[tuple]
    rows: np.ndarray
    lines: np.ndarray

    def place(self, file: str, at: int) -> Place:
        """The place of one of the rows."""
        return Place(file, int(self.rows[at]), int(self.lines[at]))

    def part(self, which: slice) -> Block:
        """Some of the rows."""
        return Block([column[which] for column in self.columns], self.rows[which], self.lines[which])


BLOCK = 4096
"""Rows of a block."""


@dataclass(slots=True)
class Table:
    """One csv file, read by column names and in blocks; only the requested columns.

    A row with another number of fields than the header, or with bytes that are not UTF-8, goes to
    `bad(place, kind, reason)` instead; blank lines are no rows. `row` and `line` are the last ones read.
    Raises UserError, naming the file, for a missing column, a broken gzip stream or csv that cannot be parsed.
    """

    path: Path
    columns: tuple[str, ...]
    bad: Callable[[Place, str, str], None]
    row: int = 0
    line: int = 0

    def blocks(self) -> Iterator[Block]:
        """Blocks of text fields; a quoted field may hold line breaks."""
        with self._opened() as stream:
            # Bytes that are not UTF-8 become surrogates, so that their row can be named.
            reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""))
            header = self._header(next(reader, []))
            self.line = reader.line_num
            while True:
                above = self.line
                try:
                    rows = list(islice(reader, BLOCK))
                finally:
                    self.line = reader.line_num
                if not rows:
                    return
                simple = self.line - above == len(rows)
                lines = np.arange(above + 1, self.line + 1) if simple else _last_lines(rows, above, self.line)
                yield self._good(rows, lines, header)

    def packed_blocks(self, lead: int) -> Iterator[Block]:
        """Blocks of bytes: the first `lead` requested columns, then the others of the row as one piece of csv text.

        For a file in which those others repeat, so that each piece is parsed only once. A row is a line here. Lines
        are split, not parsed, wherever that is equivalent; the reader of the piece then checks the number of fields
        and UTF-8.
        """
        with self._opened() as stream:
            header = self._header(_fields(stream.readline().removeprefix(codecs.BOM_UTF8)))
            self.line = 1
            while lines := list(islice(stream, BLOCK)):
                cut = [line.split(b",", lead) for line in lines]
                columns = list(zip(*cut, strict=False))
                simple = set(map(len, cut)) == {lead + 1} and b'"' not in b"".join(map(b"".join, columns[:lead]))
                above, self.line = self.line, self.line + len(lines)
                if simple and header == list(self.columns):
                    numbers = np.arange(1, len(lines) + 1)
                    yield Block(columns, self.row + numbers, above + numbers)
                    self.row += len(lines)
                else:
                    block = self._good(list(map(_fields, lines)), np.arange(above + 1, self.line + 1), header)
                    packed = [_packed(row, lead) for row in zip(*block.columns, strict=True)]
                    yield block._replace(columns=list(zip(*packed, strict=True)))

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with open(self.path, "rb") as raw:
                packed = raw.peek(2)[:2] == b"\x1f\x8b"
                # Buffered, since GzipFile itself is slow at lines.
                yield cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=raw))) if packed else raw
        except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
            where = f"{self.path.name} after line {self.line}"
            raise UserError(f"{where}: the file is corrupt ({error}); fetch it again") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def _header(self, header: list[str]) -> list[str]:
        missing = [name for name in self.columns if name not in header]
        if missing:
            raise UserError(
                f"{self.path.name} row 0 (line 1): missing column {', '.join(missing)}; the header has "
                f"{_printable(', '.join(header)) or 'nothing'}"
            )
        return header

    def _good(self, parsed: list[list[str]], lines: np.ndarray, header: list[str]) -> Block:
        """The requested columns of the good rows; the others go to `bad`. `lines` holds the last line of each row."""
        numbers = np.arange(self.row + 1, self.row + 1 + len(parsed))
        if set(map(len, parsed)) == {len(header)} and _is_utf8("".join(map("".join, parsed))):
            self.row += len(parsed)
        else:
            numbers, lines, parsed = self._sift(parsed, lines, len(header))
        columns = list(zip(*parsed, strict=True)) or [()] * len(header)
        return Block([columns[header.index(name)] for name in self.columns], numbers, lines)

    def _sift(self, parsed: list[list[str]], lines: np.ndarray, width: int) -> tuple:
        """(numbers, lines, fields) of the good rows."""
        good, numbers, places = [], [], []
        for fields, line in zip(parsed, lines.tolist(), strict=True):
            if not fields:
                continue
            self.row += 1
            place = Place(self.path.name, self.row, line)
            if len(fields) != width:
                self.bad(place, *wrong_width(len(fields), width))
            elif not _is_utf8("".join(fields)):
                self.bad(place, *NOT_UTF8)
            else:
                good.append(fields)
                numbers.append(self.row)
                places.append(line)
        return np.array(numbers, np.int64), np.array(places, np.int64), good


NOT_UTF8 = "not UTF-8", "bytes that are not UTF-8 text"


def wrong_width(fields: int, expected: int) -> tuple[str, str]:
    """Kind and reason of a row with too few or too many fields."""
    return "wrong number of fields", f"{fields} fields where the header has {expected}"


def _fields(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8", "surrogateescape")]), [])


def _packed(fields: tuple[str, ...], lead: int) -> tuple[bytes, ...]:
    rest = io.StringIO()
    csv.writer(rest, lineterminator="\n").writerow(fields[lead:])
    return *(field.encode() for field in fields[:lead]), rest.getvalue().encode()


def _last_lines(rows: list[list[str]], above: int, end: int) -> np.ndarray:
    """The line that each row ends on; blank lines count, and so do line breaks within a row's quoted fields."""
    breaks = [sum(len(_LINE_BREAK.findall(field)) for field in fields) for fields in rows]
    # An open quote takes the file's last line break into its field.
    return np.minimum(above + np.cumsum(1 + np.array(breaks)), end)


_LINE_BREAK = re.compile(r"\r\n?|\n")


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str, width: int = 200) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= width else text[:width] + "…"


def whole_numbers(texts: Sequence[Any]) -> np.ndarray:
    """int64 [n] of a column of ids (str or bytes); -1 for anything but 1 to 18 digits."""
    if not texts:
        return np.zeros(0, np.int64)
    empty: Any
    space: Any
    empty, space = ("", " ") if isinstance(texts[0], str) else (b"", b" ")
    if _is_number(empty.join(texts)) and all(texts) and max(map(len, texts)) <= 18:
        return np.fromstring(space.join(texts), np.int64, sep=" ")
    return np.array([int(text) if _is_number(text) and len(text) <= 18 else -1 for text in texts], np.int64)


def _is_number(text: str | bytes) -> bool:
    return text.isascii() and text.isdigit()


def find_table(folder: str | Path, *patterns: str) -> Path:
    """The csv file in `folder` of the first pattern with a match, plain before gzipped, newest version first.

    Patterns are globs without the ending, such as `mimic-cxr-*-metadata`. Raises UserError if there is none.
    """
    folder = Path(folder).expanduser()
    for pattern in patterns:
        for ending in (".csv", ".csv.gz"):
            if found := sorted(folder.glob(pattern + ending)):
                return found[-1]
    state = "has no such file" if folder.is_dir() else "is not a folder"
    raise UserError(f"{' or '.join(p + '.csv[.gz]' for p in patterns)} not found: {folder} {state}")
