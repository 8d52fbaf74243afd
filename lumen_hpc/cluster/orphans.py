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
from pathlib import Path
from typing import TYPE_CHECKING

from lumen_hpc.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

LAUNCHER = "LUMEN_LAUNCHER"
"""In a local task's environment: the process id of its launcher."""
LOCK = ".working"
PATIENCE_S = 60.0


def end_with_launcher(folder: Path) -> None:
    """In a local task: holds the run, and ends this process at once when its launcher ends. Elsewhere: nothing.

    Ctrl-C reaches every process of the terminal: the task ignores it, and its launcher asks it to stop.
    """
    launcher = os.environ.get(LAUNCHER)
    if not launcher or os.environ.get("SUBMITIT_EXECUTOR") != "local":
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)  # open as long as the process lives
    fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        alive = os.pidfd_open(int(launcher))
    except ProcessLookupError:
        os._exit(1)

    def follow() -> None:
        select.select([alive], [], [])
        print("the command that started this task has ended, and so does the task", flush=True)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def require_none(folder: Path, console: Console) -> None:
    """In a launcher: waits until no task of an earlier command works on the run; UserError if one does not end."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + PATIENCE_S
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
