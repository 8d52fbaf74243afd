"""Which file system has no room left, or is read-only, when a task could not write."""

from __future__ import annotations

import errno
import os
import re
import resource
import tempfile
from pathlib import Path

from lumen_hpc.files import NO_ROOM_ERRORS, has_room

MESSAGES = re.compile(
    r"No space left|Disk quota|File too large|inline_container.*unexpected pos|PytorchStreamWriter|file write failed",
    re.IGNORECASE,
)
"""What libraries say of a disk that is full."""
FIX = (
    "free space there (df, df -i, quota), then the same command goes on; finished shards and older checkpoints are safe"
)
READ_ONLY_MESSAGE = "is read-only now"
READ_ONLY_FIX = "once it can be written again, the same command goes on; finished shards are safe"


def explain(error: BaseException, folder: Path) -> str:
    """Where there is no room, for an error that says so; empty for any other. `folder` is the step's."""
    number = getattr(error, "errno", None)
    if number not in (*NO_ROOM_ERRORS, errno.EFBIG) and not MESSAGES.search(str(error)):
        return ""
    file = Path(str(getattr(error, "filename", None) or folder))
    if number == errno.EDQUOT:
        return f"No space left: the quota of {file} is used up"
    for candidate in (file, folder, Path(tempfile.gettempdir())):
        if text := no_room_message(candidate):
            return text
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY:
        return f"File too large: this task may write {limit / 1e9:.3g} GB to a file (ulimit -f), as to {file}"
    if number == errno.EFBIG:  # its file system's own limit
        return ""
    return f"No space left on the file system {mount_point(file)} when this was written: {file}"


def no_room_message(place: Path) -> str:
    """What to say where a file's or folder's file system has no room left; empty where it has."""
    return "" if has_room(place) else f"No space left on the file system {mount_point(place)}, where {place} is"


def unwritable_message(folder: Path) -> str:
    """What to say of a folder to which nothing can be written now, for want of room or right; else empty."""
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"the file system {mount_point(folder)}, where {folder} is, {READ_ONLY_MESSAGE}"
    return no_room_message(folder)


def mount_point(place: Path) -> Path:
    """The mount point of the file system of a file or folder, there or not."""
    return next(path for path in (place.absolute(), *place.absolute().parents) if path.is_mount())
