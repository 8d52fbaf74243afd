"""What the test stages report to their test, and the control files by which it steers them.

`computed.txt` gets a line `begin STAGE SHARD NODE PID` when a shard's first row is read, `end …` when its last row was
written, and `asked …` when a task that is held learns that it should stop. Files in the same folder steer:
`fail-STAGE-SHARD` and `fail-STAGE-on-NODE` raise, `wrong-STAGE-SHARD` raises what says that the input is wrong,
`hold-STAGE-SHARD` waits in mid-shard while the file is there, before it may fail, and `pause-STAGE` (its text: seconds)
slows every row down.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.shards import Shard
from lumen_hpc.cluster.stage import Task
from lumen_hpc.errors import UserError


def watched(task: Task, shard: Shard, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, reported to the test."""
    control = _control(task)
    what = f"{task.step.name}-{shard.index}"
    here = f"{task.step.name}-on-{socket.gethostname()}"
    _report(control, "begin", task, shard)
    pause = control / f"pause-{task.step.name}"
    for number, row in enumerate(rows):
        if number == 1:
            asked = False
            while (control / f"hold-{what}").exists():
                if task.should_stop() and not asked:
                    asked = True
                    _report(control, "asked", task, shard)
                time.sleep(0.05)
            if (control / f"fail-{what}").exists() or (control / f"fail-{here}").exists():
                raise RuntimeError(f"{what} fails by order of its test")
            if (control / f"wrong-{what}").exists():
                raise UserError(f"{what}: wrong input by order of its test")
        if pause.exists():
            time.sleep(float(pause.read_text()))
        yield row
    _report(control, "end", task, shard)


def meet(task: Task) -> None:
    """Return once every process of the job has come here; each leaves a file `process-RANK-NODE`."""
    control = _control(task)
    control.mkdir(exist_ok=True)
    (control / f"process-{task.ranks.rank}-{socket.gethostname()}").touch()
    while any(not list(control.glob(f"process-{rank}-*")) for rank in range(task.ranks.world_size)):
        time.sleep(0.05)


def _control(task: Task) -> Path:
    return task.run.folder.parent / f"control-{task.run.folder.name}"


def _report(control: Path, event: str, task: Task, shard: Shard) -> None:
    line = f"{event} {task.step.name} {shard.index} {socket.gethostname()} {os.getpid()}\n"
    control.mkdir(exist_ok=True)
    handle = os.open(control / "computed.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        os.write(handle, line.encode())  # one short write: tasks that report at once do not mix
    finally:
        os.close(handle)
