"""The datasets' csv files as lines of bytes: unpacked, of the right kind, with the columns that are read of them.

The first bytes show whether a file is gzipped. Without numpy, since `check` reads headers on a login node.
"""

from __future__ import annotations

import codecs
import csv
import errno
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from lumen_hpc.data.file_kinds import HEAD, other_kind
from lumen_hpc.errors import UserError
from lumen_hpc.files import GZIP, open_regular

MAX_LINE_BYTES = 1 << 18
"""Longest line of a table, a hundred times the releases' longest: a block of such lines is 1 GiB."""


@dataclass(slots=True)
class CsvFile:
    """One csv file of which these columns are read. `line` is the last line read."""

    path: Path
    columns: tuple[str, ...]
    line: int = field(default=0, init=False)

    @contextmanager
    def opened(self) -> Iterator[tuple[list[str], BinaryIO]]:
        """The header, and the lines below it.

        Raises UserError, naming the file, for a missing or repeated column, a file of another kind, or a broken gzip
        stream.
        """
        try:
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            with open_regular(self.path) as raw:
                gzipped = raw.read(2) == GZIP
                raw.seek(0)
                source: Any = gzip.GzipFile(fileobj=raw) if gzipped else raw
                # Buffered, since GzipFile itself is slow at lines.
                stream = io.BufferedReader(_Lines(source, self.path), 1 << 17)
                if not (head := stream.peek(HEAD)):
                    raise UserError(f"{self.path} is empty; fetch it again")
                if kind := other_kind(head, "csv or csv.gz"):
                    raise UserError(f"{self.path} is {kind}")
                header = self._header(text_of(stream.readline().removeprefix(codecs.BOM_UTF8)))
                self.line = 1
                yield header, cast(BinaryIO, stream)
        except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
            where = f"{self.path} after line {self.line}"
            raise UserError(f"{where}: the file is corrupt ({error}); fetch it again") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def read_header(self) -> list[str]:
        """The header alone; raises as `opened`."""
        with self.opened() as (header, _):
            return header

    def _header(self, line: str) -> list[str]:
        header = parse_fields(line)
        where = f"{self.path} row 0 (line 1)"
        if isinstance(header, NotCsv):
            raise UserError(f"{where}: the header is not csv ({header.reason}); fetch it again")
        # Not the header's own words: where the header is missing, this is a record.
        present_columns = ", ".join(name for name in self.columns if name in header)
        summary = f"the header has {len(header)} columns, of those needed {present_columns or 'none'}"
        if missing_columns := [name for name in self.columns if name not in header]:
            hint = "give them the release's names"
            if not present_columns:
                hint = "is it UTF-8 text with commas between its fields, and is its header there?"
            if {name.lower() for name in missing_columns} & {name.strip().lower() for name in header}:
                hint = "it is there with spaces or capitals that the release does not write"
            raise UserError(f"{where}: missing column {', '.join(missing_columns)}; {summary}; {hint}")
        if repeated_columns := [name for name in self.columns if header.count(name) > 1]:
            message = f"{where}: column {', '.join(repeated_columns)} appears more than once; {summary}"
            raise UserError(f"{message}; remove one of the two")
        return header


class _Lines(io.RawIOBase):
    """The bytes of a table; UserError for an endless line, which would fill the memory: 1 MB of gzip can hold 1 GB."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path, self._length = file, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        start = bytes(memoryview(buffer)[:count]).rfind(b"\n")
        self._length = self._length + count if start < 0 else count - start - 1
        if self._length > MAX_LINE_BYTES:
            raise UserError(
                f"{self._path}: a line of more than {MAX_LINE_BYTES >> 10} KiB; this is no table of records"
            )
        return count


Fields = list[str]


class NotCsv(Fields):
    """The fields of a row that cannot be parsed: none."""

    def __init__(self, reason: str):
        super().__init__()
        self.reason = reason


OPEN_QUOTE = "a quote opens a field and nothing closes it in this row"
_REASONS = {
    "unexpected end": OPEN_QUOTE,
    "new-line character": "a line end within a row; lines end with LF or CRLF, not with CR alone",
}
"""How Python's csv errors begin → what they mean."""


def text_of(line: bytes) -> str:
    """Bytes that are not UTF-8 become surrogates, so that their row can be named."""
    return line.decode("utf-8", "surrogateescape")


def parse_fields(line: str) -> Fields:
    """The fields of one row; a NotCsv, which is empty, if it is not csv."""
    row = line.removesuffix("\n").removesuffix("\r")
    if row and '"' not in row and "\r" not in row and "\n" not in row:
        return row.split(",")
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        return NotCsv(next((r for start, r in _REASONS.items() if str(error).startswith(start)), str(error)))
