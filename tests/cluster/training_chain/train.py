"""The project's own training (tests lay it beside this file as training.py), held in mid-run while a test says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from jobs import training
from lumen_hpc.cluster.shards import Shard
from lumen_hpc.cluster.stage import Stage, Task

HELD_AFTER = 12
"""Steps of a process after which it waits for as long as the run's folder has a file `hold` beside it."""
STAGE: Stage = replace(training.STAGE, after=("instruct",))


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    hold = task.run.folder.with_name(f"{task.run.folder.name}.hold")
    steps = 0

    def held(doing: str = "", within: float = 0.0, waits: bool = False) -> None:
        nonlocal steps
        steps += doing.startswith("computes step")
        while steps > HELD_AFTER and hold.exists() and not task.should_stop():
            time.sleep(0.05)
        task.beat(doing, within, waits)

    return training.work(replace(task, beat=held))
