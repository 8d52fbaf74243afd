"""What has finished: one line of `manifest.jsonl` per shard, with its digest, and whether the shard still matches it.

A shard is done when its file matches its line, and the line's `of`, `config` and `inputs` are today's. A file
whose size and time are those of its line is taken to match; any other is hashed again. Everything else is missing.
What was hashed again, as in a copied or restored run, is noted in `verified.jsonl` with the time that the file has now.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from lumen_hpc.cluster.shards import Shard, encode
from lumen_hpc.errors import UserError
from lumen_hpc.files import MAX_RECORD_BYTES, foreign, open_regular, read_bytes, sha256, sync_file

NAME = "manifest.jsonl"
VERIFIED = "verified.jsonl"


def now() -> str:
    """This moment, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sync(folder: Path) -> None:
    """Makes the names of shards and the manifest's lines durable.

    A writer of many shards calls it now and then. What a power cut destroys before that is merely missing: a shard
    counts only when its name, its bytes and its line agree.
    """
    for path in (folder, folder / NAME):
        sync_file(path)


def append(path: Path, row: dict[str, Any]) -> None:
    """Appends one line, whole or not at all; concurrent writers on one file system take turns.

    A torn last line of a killed writer counts as no line. Raises OSError where `path` is a link: it could lead
    to a file that somebody else wants to be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)) as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX)
        end = stream.seek(0, os.SEEK_END)
        torn = False
        if end:
            stream.seek(end - 1)
            torn = stream.read(1) != b"\n"
        line = (b"\n" if torn else b"") + encode(row)
        if os.write(stream.fileno(), line) < len(line):  # a disk that is nearly full takes a part
            os.ftruncate(stream.fileno(), end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSONL file; one torn by a crash is left out, which means: not done."""
    try:
        lines = read_bytes(path).splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:  # not contextlib.suppress, which takes as long as reading the line
            rows.append(orjson.loads(line))
        except ValueError:
            continue
    return rows


def latest(folder: Path) -> dict[int, dict[str, Any]]:
    """The last line of each shard."""
    return {row["shard"]: row for row in read(folder / NAME)}


def finished_count(folder: Path) -> int:
    """The number of shards of the newest finished work."""
    rows = read(folder / NAME)
    return rows[-1]["of"] if rows else 0


def missing_shards(
    folder: Path,
    count: int,
    config: str,
    inputs: Sequence[str | None],
    verified_lines: set[tuple[int, str, int]] | None = None,
) -> list[int]:
    """Shards that are not done. `inputs` is each shard's inputs hash today; None where it cannot be known yet.

    `verified_lines` are lines whose files need not be looked at again; those that match are added to it.
    """
    try:
        folder_handle = os.open(folder, os.O_RDONLY)  # names are looked up from it: half the time of whole paths
    except FileNotFoundError:
        return list(range(count))
    lines = latest(folder)
    name_suffix = f"-of-{count:05d}.jsonl"  # of Shard.file, which is too slow to ask ten thousand times

    def is_done(index: int) -> bool:
        line = lines.get(index)
        if line is None or line["of"] != count or line["config"] != config or line["inputs"] != inputs[index]:
            return False
        if verified_lines is not None and (index, line["sha256"], line["mtime_ns"]) in verified_lines:
            return True
        name = f"shard-{index:05d}{name_suffix}"
        try:
            status = os.stat(name, dir_fd=folder_handle)
        except FileNotFoundError:
            return False
        unchanged = status.st_mtime_ns == line["mtime_ns"] and status.st_size == line["bytes"]
        if not unchanged and not matches(folder / name, line):
            return False
        if line["files"] and not all(matches(folder / file["file"], file, folder) for file in line["files"]):
            return False
        if verified_lines is not None:
            verified_lines.add((index, line["sha256"], line["mtime_ns"]))
        return True

    try:
        return [index for index in range(count) if not is_done(index)]
    finally:
        os.close(folder_handle)


def is_verified(folder: Path, line: dict[str, Any]) -> bool:
    """True if a line's shard and the files beside it match the digests that it records."""
    return not first_mismatch(folder, line)


def first_mismatch(folder: Path, line: dict[str, Any]) -> str:
    """The first file of a shard that does not match its line (corrupt or deleted); empty if all do."""
    shard_file = Shard(line["shard"], line["of"]).file
    for name, record in [(shard_file, line), *((file["file"], file) for file in line["files"])]:
        if not matches(folder / name, record, folder):
            with suppress(OSError, UserError):  # opening makes a network file system look at its server again
                open_regular(folder / name).close()
            if not matches(folder / name, record, folder):
                return name
    return ""


def require_verified(folder: Path, line: dict[str, Any]) -> None:
    """Raises UserError where a finished shard's files are not those that its line records."""
    if not is_verified(folder, line):
        raise UserError(
            f"{folder}: shard {line['shard']} is not the file that its manifest records; run the stage again"
        )


def matches(path: Path, line: dict[str, Any], folder: Path | None = None) -> bool:
    """True if a file is the one that a manifest line, or a row of its `files`, records.

    `folder` is its step's, where it is not the file's own: what was hashed again is noted there.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_size != line["bytes"] or not stat.S_ISREG(status.st_mode):
        return False
    return status.st_mtime_ns == line.get("mtime_ns") or _hash_matches(
        path, status, line["sha256"], folder or path.parent
    )


_verified_cache: dict[Path, tuple[int, set[tuple[str, int, str]]]] = {}
"""What `verified.jsonl` of a folder says, and its size then."""


def _hash_matches(path: Path, status: os.stat_result, sha: str, folder: Path) -> bool:
    """Whether a file whose time differs from its line's has that hash; it is read once per modification time."""
    notes_file = folder / VERIFIED
    entry = (os.path.relpath(path, folder), status.st_mtime_ns, sha)
    size = notes_file.stat().st_size if notes_file.exists() else 0
    if folder not in _verified_cache or _verified_cache[folder][0] != size:
        _verified_cache[folder] = (size, {(row["file"], row["mtime_ns"], row["sha256"]) for row in read(notes_file)})
    if entry in _verified_cache[folder][1]:
        return True
    foreign_reason = foreign(folder)
    if (
        foreign_reason and status.st_size > MAX_RECORD_BYTES
    ):  # a file with holes has any size, and would be read for days
        return False
    if sha256(path) != sha:
        return False
    if foreign_reason:  # nothing is written into another user's run, which every command hashes again
        return True
    with suppress(OSError):
        append(notes_file, dict(zip(("file", "mtime_ns", "sha256"), entry, strict=True)))
        _verified_cache[folder] = (notes_file.stat().st_size, _verified_cache[folder][1] | {entry})
    return True
