"""One command at a time holds a run, by a lock that the kernel releases whenever the command ends."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lumen_hpc.errors import UserError
from lumen_hpc.files import read_bytes

LOCK = ".submitting"
"""In the run's folder while a command has it; its text names the command: host and process id."""
handles: set[int] = set()
"""The locks of this process. An sbatch inherits them, so that the run stays locked if its command is killed."""
TIMEOUT_S, POLL_INTERVAL_S = 120.0, 0.1
"""How long a command waits for the sbatch of a killed one, and how often it looks."""


class Busy(UserError):
    """Another command has the run right now."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a run. It takes over the lock of a dead process of this host once no sbatch of that process is at work.

    It never takes over the lock of another host: where a file system's locks do not reach across hosts, it looks free.
    """
    path, deadline = folder / LOCK, time.monotonic() + TIMEOUT_S
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise Busy(f"{folder}: another command was refused and has just removed this new run; try again") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            host, pid = _read_holder(path)
            is_ours = host in ("", socket.gethostname())
        except BlockingIOError:
            is_ours, (host, pid) = False, _read_holder(path)
        except OSError as error:
            os.close(handle)
            raise UserError(f"{path}: this file system has no locks ({error.strerror}); choose runs=FOLDER") from None
        if is_ours and _is_current(path, handle):
            break
        os.close(handle)
        if not is_ours and path.exists():
            if not _is_dead(host, pid) or time.monotonic() > deadline:
                raise _busy_error(path, host, pid)
            time.sleep(POLL_INTERVAL_S)
    os.ftruncate(handle, 0)
    os.write(handle, f"{socket.gethostname()} {os.getpid()}".encode())
    handles.add(handle)
    try:
        yield
    finally:
        handles.discard(handle)
        path.unlink(missing_ok=True)
        os.close(handle)


def require_free(folder: Path) -> None:
    """Raises Busy while another command has the run."""
    if is_held(folder):
        raise _busy_error(folder / LOCK, *_read_holder(folder / LOCK))


def _busy_error(path: Path, host: str, pid: str) -> Busy:
    return Busy(
        f"{path.parent}: another command (process {pid or '?'} on {host or '?'}) works on this run; "
        f"if it no longer exists, remove {path}"
    )


def is_held(folder: Path) -> bool:
    """Whether a living command has the run; one of another host counts as living."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return _read_holder(folder / LOCK)[0] != socket.gethostname()
    finally:
        os.close(handle)


def _is_dead(host: str, pid: str) -> bool:
    """Whether the command that a lock names ran on this host and has ended."""
    return host == socket.gethostname() and not Path("/proc", pid).exists()


def _read_holder(path: Path) -> tuple[str, str]:
    """Host and process id in a lock; empty if nobody has written them, or the file is missing."""
    try:
        host, _, pid = read_bytes(path).decode(errors="replace").partition(" ")
    except FileNotFoundError:
        return "", ""
    return host, pid


def _is_current(path: Path, handle: int) -> bool:
    """False if the command before removed the file that was opened: then the lock is on nothing."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
