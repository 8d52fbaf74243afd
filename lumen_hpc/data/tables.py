"""The datasets' csv files as streams of rows that know where they stand.

Plain or gzipped is told by the first bytes, columns are found by name, and a row that cannot be read is
handed to the caller's `bad` with its place, never skipped in silence.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lumen_hpc.errors import UserError


class Place(NamedTuple):
    """Where a row stands: row 1 is the first below the header, line 1 is the header's."""

    file: str
    row: int
    line: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row} (line {self.line})"


class Block(NamedTuple):
    """Consecutive good rows of a table, column by column."""

    columns: list[tuple[str, ...]]
    rows: Sequence[int]
    lines: Sequence[int]


@dataclass(slots=True)
class Table:
    """One csv file, read by column names: `blocks()` yields columns of many rows, iterating yields row by row.

    A row with another number of fields than the header, or with bytes that are not UTF-8, goes to
    `bad(place, kind, reason)` instead. `read` counts all rows so far; while iterating, `row` and `line` say where the
    row just yielded stands.
    Raises UserError, naming the file, for a missing column, a broken gzip stream or csv that cannot be parsed.
    """

    path: Path
    columns: tuple[str, ...]
    bad: Callable[[Place, str, str], None]
    read: int = 0
    row: int = 0
    line: int = 0

    @property
    def place(self) -> Place:
        return Place(self.path.name, self.row, self.line)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for block in self.blocks():
            rows = zip(*block.columns, strict=True)
            for fields, self.row, self.line in zip(rows, block.rows, block.lines, strict=True):
                yield fields

    def blocks(self, size: int = 512) -> Iterator[Block]:
        """Blocks of at most `size` rows, in order; blank lines are no rows."""
        reader = None
        try:
            with open(self.path, "rb") as raw:
                packed = raw.peek(2)[:2] == b"\x1f\x8b"
                stream = gzip.GzipFile(fileobj=raw) if packed else raw
                # Bytes that are not UTF-8 come through as surrogates, so that their row can be named.
                reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""))
                yield from self._blocks(reader, size)
        except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
            line = reader.line_num if reader else 0
            raise UserError(
                f"{self.path.name} after line {line}: the file is broken ({error}); get it again"
            ) from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def _blocks(self, reader: Iterator[list[str]], size: int) -> Iterator[Block]:
        header = next(reader, [])
        missing = [name for name in self.columns if name not in header]
        if missing:
            raise UserError(
                f"{self.path.name} row 0 (line 1): missing column {', '.join(missing)}; the header has "
                f"{_printable(', '.join(header)) or 'nothing'}"
            )
        wanted = [header.index(name) for name in self.columns]
        while True:
            rows, lines = [], []
            for row in islice(filter(None, reader), size):
                rows.append(row)
                lines.append(reader.line_num)
            if not rows:
                return
            numbers: Sequence[int] = range(self.read + 1, self.read + len(rows) + 1)
            self.read += len(rows)
            if set(map(len, rows)) != {len(header)} or not "".join(map("".join, rows)).isascii():
                good = self._good(zip(rows, numbers, lines, strict=True), len(header))
                rows, numbers, lines = map(list, zip(*good, strict=True)) if good else ([], [], [])
            if rows:
                every = list(zip(*rows, strict=True))
                yield Block([every[column] for column in wanted], numbers, lines)

    def _good(self, rows: Iterable[tuple[list[str], int, int]], width: int) -> list[tuple[list[str], int, int]]:
        """The rows that can be read; the others go to `bad`."""
        good = []
        for fields, row, line in rows:
            place = Place(self.path.name, row, line)
            if len(fields) != width:
                self.bad(place, "wrong number of fields", f"{len(fields)} fields where the header has {width}")
            elif not _is_utf8("".join(fields)):
                self.bad(place, "not UTF-8", "bytes that are not UTF-8 text")
            else:
                good.append((fields, row, line))
        return good


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str, width: int = 200) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= width else text[:width] + "…"


def find_table(folder: str | Path, *patterns: str) -> Path:
    """The csv file in `folder` that fits the first pattern with a match, plain before gzipped, newest version first.

    Patterns are globs without the ending, such as `mimic-cxr-*-metadata`. Raises UserError if there is none.
    """
    folder = Path(folder)
    for pattern in patterns:
        for ending in (".csv", ".csv.gz"):
            if found := sorted(folder.glob(pattern + ending)):
                return found[-1]
    state = "has no such file" if folder.is_dir() else "is not a folder"
    raise UserError(f"{' or '.join(p + '.csv[.gz]' for p in patterns)} not found: {folder} {state}")
