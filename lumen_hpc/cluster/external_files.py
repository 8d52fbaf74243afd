"""Files outside the run that a stage reads, such as a dataset's tables: what they contribute to a shard's `inputs`.

A file goes by its name, size and time. On a mount whose times change (a copy without them, an object store, a restored
snapshot) or differ between machines, the same bytes have another time: so a task notes the digests of what it has read
in its step's `external.jsonl`, and a file of the same size with another time is hashed, once per time. Where the
digest is a noted one, the file counts with the time at which these bytes were first read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import manifest
from lumen_hpc.cluster.stage import Run, Step
from lumen_hpc.config.profile import on_nodes_only
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign, sha256

NAME = "external.jsonl"


def statuses(run: Run, step: Step) -> dict[Path, os.stat_result]:
    """The files that count, with their size and time; UserError for one that is not there.

    Those that only the nodes see do not count: a worker's hash must be that of the machine that submits.
    """
    paths = [Path(name).expanduser() for name in step.stage.external(run.settings)]
    try:
        return {path: path.stat() for path in paths if not on_nodes_only(path, run.profile)}
    except FileNotFoundError as error:
        raise UserError(
            f"stage {step.name} reads {error.filename}, which is not there; put it back, or correct the setting that "
            "names its folder"
        ) from None


def fingerprint(folder: Path, path: Path, status: os.stat_result) -> str:
    """Name, size and time of a file; the time is the one with which the step in `folder` first read these bytes."""
    rows = _rows(folder, path, status)
    digest = next((row["sha256"] for row in rows if row["mtime_ns"] == status.st_mtime_ns), None)
    if rows and digest is None and not foreign(folder):  # nobody else's run has this user read a file for hours
        digest = _note(folder, path, status)
    times = (row["mtime_ns"] for row in rows if row["sha256"] == digest)
    return f"{path.name} {status.st_size} {next(times, status.st_mtime_ns)}\n"


def note(folder: Path, read_files: Mapping[Path, os.stat_result]) -> None:
    """Notes the digests of files that a shard has read; of one that has changed since, none."""
    for path, status in read_files.items():
        if all(row["mtime_ns"] != status.st_mtime_ns for row in _rows(folder, path, status)):
            _note(folder, path, status)


def _rows(folder: Path, path: Path, status: os.stat_result) -> list[dict[str, Any]]:
    """What is noted of files of this name and size."""
    rows = manifest.read(folder / NAME)
    return [row for row in rows if (row["file"], row["bytes"]) == (path.name, status.st_size)]


def _note(folder: Path, path: Path, status: os.stat_result) -> str | None:
    """The digest of a file, noted; None if it is no longer the file of this status, or cannot be read."""
    with suppress(OSError):
        digest, now = sha256(path), path.stat()
        if (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            row = {"file": path.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
            with suppress(OSError):  # a full disk, or a run that is not this user's to write: it is hashed again
                manifest.append(folder / NAME, row)
            return digest
    return None
