"""The datasets' csv files as streams of rows that know where they stand.

Plain or gzipped is told by the first bytes, columns are found by name, and a row that cannot be read is
handed to the caller's `bad` with its place, never skipped in silence.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
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


@dataclass(slots=True)
class Table:
    """One csv file, read by column names; iterating yields a tuple of the wanted columns a row.

    While it is read, `row` and `line` say where the row just yielded stands. A row with another number of
    fields than the header, or with bytes that are not UTF-8, goes to `bad(place, kind, reason)` instead.
    Raises UserError, naming the file, for a missing column, a broken gzip stream or csv that cannot be parsed.
    """

    path: Path
    columns: tuple[str, ...]
    bad: Callable[[Place, str, str], None]
    row: int = 0
    line: int = 0

    @property
    def place(self) -> Place:
        return Place(self.path.name, self.row, self.line)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        try:
            with open(self.path, "rb") as raw:
                packed = raw.peek(2)[:2] == b"\x1f\x8b"
                stream = gzip.GzipFile(fileobj=raw) if packed else raw
                # Bytes that are not UTF-8 come through as surrogates, so that their row can be named.
                yield from self._rows(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.place}: the gzip stream breaks off here ({error}); copy the file again") from None
        except csv.Error as error:
            raise UserError(f"{self.place}: the next row is not csv ({error})") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def _rows(self, text: io.TextIOWrapper) -> Iterator[tuple[str, ...]]:
        reader = csv.reader(text)
        header = next(reader, [])
        missing = [name for name in self.columns if name not in header]
        if missing:
            raise UserError(
                f"{self.path.name} row 0 (line 1): missing column {', '.join(missing)}; the header has "
                f"{_printable(', '.join(header)) or 'nothing'}"
            )
        width = len(header)
        wanted = itemgetter(*(header.index(name) for name in self.columns))
        for fields in reader:
            if not fields:
                continue
            self.row += 1
            self.line = reader.line_num
            if len(fields) != width:
                reason = f"{len(fields)} fields where the header has {width}"
                self.bad(self.place, "wrong number of fields", reason)
            elif not (whole := "".join(fields)).isascii() and not _is_utf8(whole):
                self.bad(self.place, "not UTF-8", "bytes that are not UTF-8 text")
            else:
                yield wanted(fields)


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
