"""Files that are whole or absent, and their hashes: the one writer and the one hash of the project."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import pwd
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from lumen_hpc.errors import UserError

NO_ROOM_ERRORS = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a write that a full disk or a quota refused."""
MIN_FREE_BYTES = 1_000_000
"""Free bytes of a file system that counts as full."""
MAX_RECORD_BYTES = 1 << 30
"""Bytes of the largest file that is read whole, which no record of a run comes near."""
GZIP = b"\x1f\x8b"
"""The first bytes of a gzip stream."""
MAX_LINE_BYTES = 1 << 26
"""Bytes of a line of a file of records."""
_TAIL_BYTES = 1 << 18
"""Bytes at the end of a log that are looked at."""
REMOTE_FILE_SYSTEMS = (
    "nfs", "lustre", "gpfs", "beegfs", "ceph", "fuse", "smb", "cifs", "9p", "orangefs", "wekafs", "pvfs",
    "panfs", "dvs", "afs",
)  # fmt: skip
"""Beginnings of the names of file systems that several nodes share."""


def has_room(place: Path) -> bool:
    """Whether the file system of a file or folder, there or not, has space left, and takes another file."""
    status = os.statvfs(next(path for path in (place, *place.parents) if path.exists()))
    return status.f_bavail * status.f_frsize > MIN_FREE_BYTES and (status.f_favail > 0 or not status.f_files)


def file_system(folder: Path, mounts: Path) -> str:
    """The kind of file system that a folder lies on, as the kernel calls it; empty if that is not known."""
    folder_path, longest, kind = folder.resolve(), -1, ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, mount_point, name, *_ = line.split()
        mount_path = Path(mount_point.replace("\\040", " "))
        if folder_path.is_relative_to(mount_path) and len(mount_path.parts) > longest:
            longest, kind = len(mount_path.parts), name
    return kind


def visibility_delay(folder: Path, mounts: Path = Path("/proc/mounts")) -> float:
    """How long this machine may be shown a folder as it was before another machine wrote there [s].

    A network file system keeps what it knows of a folder for up to a minute.
    """
    return 65.0 if file_system(folder, mounts).startswith(REMOTE_FILE_SYSTEMS) else 5.0


def sha256(path: Path) -> str:
    """Hash of a file's bytes, as hexadecimal; the file is read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A file to read that others may have put there. Raises UserError for a pipe or a device: it may not end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path}: a pipe, a device or a folder, where a file should be")
    return open(handle, "rb")


def read_bytes(path: Path) -> bytes:
    """A file's bytes; UserError for what is none, and for one that is too large to be a record (a sparse one is)."""
    with open_regular(path) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > MAX_RECORD_BYTES:
            raise UserError(f"{path}: {size / 1e9:.1f} GB, more than any record of a run has")
        return stream.read()


def lines(path: str | os.PathLike, pipe: bool = False) -> Iterator[bytes]:
    """The lines of a text file of any size, with their ends; UserError for what is none, and for a line without end.

    `pipe`: a pipe is as good, as in `<(tail answers.jsonl)` on a command line, and so is a gzip stream.
    """
    with open(path, "rb") if pipe else open_regular(path) as stream:
        is_gzip = pipe and cast(io.BufferedReader, stream).peek(2)[:2] == GZIP
        text: Any = gzip.GzipFile(fileobj=stream) if is_gzip else stream
        try:
            while line := text.readline(MAX_LINE_BYTES):
                if len(line) == MAX_LINE_BYTES:
                    raise UserError(f"{path}: a line of more than {MAX_LINE_BYTES >> 20} MiB, more than any record has")
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: a gzip stream that is corrupt or cut off ({error}); write it again") from None


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a text file of any size, without their ends: at most `count`, and no more than 256 KiB."""
    with open_regular(path) as stream:
        start = max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES)
        stream.seek(start)
        text_lines = stream.read(_TAIL_BYTES).decode(errors="replace").split("\n")
    text_lines = text_lines[1:] if start and len(text_lines) > 1 else text_lines  # the first one is cut
    return text_lines[: -1 if not text_lines[-1] else None][-count:]


def foreign(path: Path) -> str:
    """Why a file or folder may hold what another user wrote; empty if only this user (or root) could write it."""
    status = path.lstat()
    if status.st_uid not in (os.getuid(), 0):
        return f"{path.name} belongs to {user_name(status.st_uid)}, not to {user_name(os.getuid())}"
    if stat.S_ISLNK(status.st_mode):
        return f"{path.name} is a symbolic link"
    if status.st_mode & stat.S_IWOTH and not (status.st_mode & stat.S_ISVTX):
        return f"{path.name} may be written by any user (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def replaceable(path: Path) -> str:
    """Why any user may put another folder in this one's place; empty if none may.

    Who may write a folder may rename what lies in it, unless its sticky bit is set. The members of a group count as
    this user, as they do in `foreign`.
    """
    for parent in filter(Path.exists, path.resolve().parents):
        status = parent.stat()
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            return f"any user may rename what lies in {parent} (mode {stat.S_IMODE(status.st_mode):04o}, no sticky bit)"
    return ""


def user_name(uid: int, unknown: str | None = None) -> str:
    """A user's name, as this machine knows it; for one that it does not, `unknown`, or `user 1234`."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}" if unknown is None else unknown


@contextmanager
def atomic(path: str | os.PathLike, *, sync_name: bool = True, private: bool = False) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` whole or not at all: `.tmp` beside it, fsync, rename, fsync of the folder.

    An exception inside the block leaves whatever was at `path` as it was, and no `.tmp` behind. `sync_name=False`
    leaves the fsync of the folder to a caller who writes many files. A `private` file has mode 0600 from the start.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.unlink(missing_ok=True)  # of an earlier process of this number
        with open(partial, "wb", buffering=1 << 20, opener=_private if private else _new) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM_ERRORS and error.filename is None:
            disk_full = error.errno == errno.EDQUOT or not has_room(path.parent)  # else it was another file
            error.filename = str(path) if disk_full else None
        partial.unlink(missing_ok=True)
        raise
    if sync_name:
        sync_folder(path.parent)


def _private(path: str, flags: int) -> int:
    return _new(path, flags, 0o600)


def _new(path: str, flags: int, mode: int = 0o666) -> int:
    """Creates a file to write: neither a link to another one, nor one that somebody else has opened already."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, mode)


def write_text(path: str | os.PathLike, text: str, *, private: bool = False, sync_name: bool = True) -> None:
    """Writes a text file, whole or not at all; `private`: with mode 0600; `sync_name` as in `atomic`."""
    with atomic(path, private=private, sync_name=sync_name) as stream:
        stream.write(text.encode())


def write_json(path: str | os.PathLike, value: Any, *, private: bool = False) -> None:
    """Writes one readable JSON value, whole or not at all; `private`: with mode 0600."""
    with atomic(path, private=private) as stream:
        stream.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_json(path: Path, absent: Any) -> Any:
    """The value in a JSON file; `absent` where there is no file."""
    return orjson.loads(path.read_bytes()) if path.is_file() else absent


@contextmanager
def repeatable_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """A text file to write, gzipped if it ends in .gz, without name and date: equal text gives equal bytes."""
    with ExitStack() as stack:
        raw: Any = stack.enter_context(path.open("wb"))
        if path.suffix == ".gz":
            raw = stack.enter_context(gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=3))
        yield stack.enter_context(io.TextIOWrapper(raw, "utf-8", newline=""))


def sync_file(path: Path) -> None:
    """Makes a file's bytes, or a folder's names, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder durable, as far as its file system can (some refuse fsync of a folder)."""
    with suppress(OSError):
        sync_file(folder)
