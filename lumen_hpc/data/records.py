"""JSON lines on disk: the one format in which stages exchange rows.

Writes are atomic (a reader sees the whole file or none), reads are streams, and `Records` gives random access with
eight bytes of memory per row, so that training can start at any sample of a large file.
"""

from __future__ import annotations

import codecs
import mmap
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from lumen_hpc import files
from lumen_hpc.data.file_kinds import other_kind
from lumen_hpc.errors import UserError


def read_jsonl(path: str | os.PathLike, pipe: bool = False) -> Iterator[dict]:
    """Yields the objects of a JSON lines file in order, holding one line at a time.

    `pipe`: the path may be a pipe's. Blank lines are skipped. Raises UserError naming file and line for a line that is
    not a JSON object.
    """
    for number, line in enumerate(files.lines(path, pipe), 1):
        if line.strip():
            yield _object(line, path, number)


def write_jsonl(path: str | os.PathLike, rows: Iterable[dict]) -> int:
    """Writes one JSON object per line, atomically, and returns the number of rows."""
    count = 0
    with files.atomic(path) as file:
        for row in rows:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


class Records(Sequence):
    """The rows of a JSON lines file by position, from any process, from a memory-mapped file.

    Memory: eight bytes per row for the offsets; the text itself stays in the page cache. A `Records` can be
    pickled (to a worker process): only its path is pickled, and the file is opened again there.
    Raises UserError, on access, for a line that is not a JSON object.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # mmap refuses an empty file; an empty shard is a valid one.
            self._text = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        self._offsets = _line_offsets(self._text)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {self.path}, which has {len(self)}")
        index %= len(self)
        return _object(self._text[self._offsets[index] : self._offsets[index + 1]], self.path, index + 1)

    def __reduce__(self):
        return type(self), (self.path,)


_WHITESPACE = b" \t\r\n"


def _line_offsets(text: mmap.mmap | bytes) -> array:
    """The start of each row, and the end of the text; a blank line belongs to the row above."""
    offsets, start = array("Q"), 0
    while start < len(text):
        end = text.find(b"\n", start) + 1 or len(text)
        if text[start] not in _WHITESPACE or text[start:end].strip():
            offsets.append(start)
        start = end
    offsets.append(len(text))
    return offsets


def _object(line: bytes, path: str | os.PathLike, number: int) -> dict:
    if number == 1:  # some editors begin a file with a byte order mark
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} line {number}: not JSON ({error}); {_fix(line.strip(), number)}") from None
    if not isinstance(row, dict):
        fix = _ONE_PER_LINE if isinstance(row, list) else "write one object per line"
        raise UserError(f"{path} line {number}: a {type(row).__name__} where a JSON object is expected; {fix}")
    return row


_ONE_PER_LINE = "write one object per line, as `jq -c '.[]' FILE > FILE.jsonl` does of a list"


def _fix(line: bytes, number: int) -> str:
    """The fix for a file with a line that is not JSON; the first line shows the kind of the file."""
    if number == 1:
        if line.startswith(files.GZIP):
            return "the file is packed by gzip: unpack it"
        if kind := other_kind(line, "JSON lines"):
            return f"the file is {kind}"
        if line.startswith(b"["):
            return _ONE_PER_LINE
        if not line.startswith(b"{"):
            return (
                "is it csv? then pandas.read_csv(FILE).to_json('FILE.jsonl', orient='records', lines=True) makes "
                "JSON lines of it"
            )
    if line.startswith(b"{'"):
        return "this is Python's own notation; write it with json.dumps"
    if line.endswith(b"},"):
        return "no comma follows an object"
    if not _is_utf8(line):
        return "save it as UTF-8"
    if b"\\ud" in line.lower():
        return "a character may be cut in half (\\ud83d alone): write U+FFFD in its place"
    if any(word in line for word in (b"NaN", b"Infinity")):
        return "JSON has no NaN and no Infinity: write null"
    return "write the file again, one complete object per line (`jq -c . FILE` joins objects over several lines)"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
