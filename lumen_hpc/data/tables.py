"""The datasets' csv files as streams of rows that know where they stand.

Plain or gzipped is told by the first bytes, columns are found by name, and a row that cannot be read is
handed to the caller's `bad` with its place, never skipped in silence.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from lumen_hpc.errors import UserError


class Place(NamedTuple):
    """Where a row stands: row 1 is the first below the header, line 1 is the header's."""

    file: str
    row: int
    line: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row} (line {self.line})"


class Block(NamedTuple):
    """Consecutive rows of a table, column by column, and where each stands."""

    columns: list[tuple[bytes, ...]]
    rows: Sequence[int]
    lines: Sequence[int]


@dataclass(slots=True)
class Table:
    """One csv file, read by column names: iterating yields the wanted columns of each row.

    A row with another number of fields than the header, or with bytes that are not UTF-8, goes to
    `bad(place, kind, reason)` instead; blank lines are no rows. `row` and `line` say where the row just yielded
    stands, and `row` in the end how many there were.
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
        with self._opened() as stream:
            # Bytes that are not UTF-8 come through as surrogates, so that their row can be named.
            reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""))
            header = self._header(next(reader, []))
            yield from self._rows(((fields, reader.line_num) for fields in reader), header)

    def packed_blocks(self, lead: int, size: int = 512) -> Iterator[Block]:
        """Blocks of bytes: the first `lead` wanted columns, then the others of the row as one piece of csv text.

        For a file whose rows repeat in those others, so that each piece need be parsed only once. A row is a line
        here. Lines are cut, not parsed, wherever that is the same; the number of fields and UTF-8 are then for the
        reader of the piece to see.
        """
        with self._opened() as stream:
            header = self._header(_fields(stream.readline().removeprefix(codecs.BOM_UTF8)))
            self.line = 1
            while lines := list(islice(stream, size)):
                cut = [line.split(b",", lead) for line in lines]
                columns = list(zip(*cut, strict=False))
                simple = set(map(len, cut)) == {lead + 1} and b'"' not in b"".join(map(b"".join, columns[:lead]))
                above = self.line
                if simple and header == list(self.columns):
                    yield Block(columns, *(range(n + 1, n + 1 + len(lines)) for n in (self.row, above)))
                    self.row += len(lines)
                else:
                    parsed = ((_fields(line), number) for number, line in enumerate(lines, above + 1))
                    rows = [(_packed(row, lead), self.row, self.line) for row in self._rows(parsed, header)]
                    if rows:
                        packed, numbers, places = zip(*rows, strict=True)
                        yield Block(list(zip(*packed, strict=True)), numbers, places)
                self.line = above + len(lines)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with open(self.path, "rb") as raw:
                packed = raw.peek(2)[:2] == b"\x1f\x8b"
                yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
            where = f"{self.path.name} after line {self.line}"
            raise UserError(f"{where}: the file is broken ({error}); get it again") from None
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

    def _rows(self, parsed: Iterable[tuple[list[str], int]], header: list[str]) -> Iterator[tuple[str, ...]]:
        """The wanted columns of the good rows, out of fields and the line that each row ends on."""
        wanted, width = itemgetter(*(header.index(name) for name in self.columns)), len(header)
        for fields, self.line in parsed:
            if not fields:
                continue
            self.row += 1
            if len(fields) != width:
                self.bad(self.place, *wrong_width(len(fields), width))
            elif not (whole := "".join(fields)).isascii() and not _is_utf8(whole):
                self.bad(self.place, *NOT_UTF8)
            else:
                yield wanted(fields)


NOT_UTF8 = "not UTF-8", "bytes that are not UTF-8 text"


def wrong_width(fields: int, wanted: int) -> tuple[str, str]:
    """Kind and reason of a row with too few or too many fields."""
    return "wrong number of fields", f"{fields} fields where the header has {wanted}"


def _fields(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8", "surrogateescape")]), [])


def _packed(fields: tuple[str, ...], lead: int) -> tuple[bytes, ...]:
    rest = io.StringIO()
    csv.writer(rest, lineterminator="\n").writerow(fields[lead:])
    return *(field.encode() for field in fields[:lead]), rest.getvalue().encode()


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
    folder = Path(folder).expanduser()
    for pattern in patterns:
        for ending in (".csv", ".csv.gz"):
            if found := sorted(folder.glob(pattern + ending)):
                return found[-1]
    state = "has no such file" if folder.is_dir() else "is not a folder"
    raise UserError(f"{' or '.join(p + '.csv[.gz]' for p in patterns)} not found: {folder} {state}")
