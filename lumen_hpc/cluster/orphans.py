"""Tasks on this machine end with the command that started them, so that two commands never write one run at once.

A task holds a shared lock on the run's folder while it lives, and dies with its launcher, however that ends
(kill -9, a closed terminal). The next command waits for the lock: usually not at all.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lumen_hpc.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

LAUNCHER = "LUMEN_LAUNCHER"
"""In a local task's environment: the process id of its launcher."""
LOCK = ".working"
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)
"""Signals that a terminal sends to all of its processes."""
TIMEOUT_S = 60.0


def end_with_launcher(folder: Path) -> None:
    """In a local task: holds the run, and ends this process at once when its launcher ends. Elsewhere: nothing.

    Ctrl-C, or its end, reaches every process of a terminal: the task ignores it, and its launcher asks it to stop.
    """
    launcher = os.environ.get(LAUNCHER)
    if not launcher or os.environ.get("SUBMITIT_EXECUTOR") != "local":
        return
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINAL_SIGNALS)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)  # open as long as the process lives
    fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        launcher_handle = os.pidfd_open(int(launcher))
    except ProcessLookupError:
        os._exit(1)

    def follow() -> None:
        select.select([launcher_handle], [], [])
        print("the command that started this task has ended, and so does the task", flush=True)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def terminal_signals_blocked() -> Iterator[None]:
    """What is started in the block never gets a terminal's signals; this process gets them once it has ended.

    submitit's process between a launcher and its tasks would kill them within a second of Ctrl-C.
    """
    signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)


def require_no_tasks(folder: Path, console: Console) -> None:
    """In a launcher: waits until no task of an earlier command works on the run; UserError if one does not end."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + TIMEOUT_S
    announced = False
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{folder}: tasks of an earlier command still work on this run and do not end; "
                        f"`fuser {folder / LOCK}` names them"
                    ) from None
            if not announced:
                console.print("waiting for the tasks of an earlier command to end")
                announced = True
            time.sleep(0.1)
    finally:
        os.close(handle)
