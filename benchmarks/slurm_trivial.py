"""The same next-to-nothing for every contender: one row in one file, written as a shard should be."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def write(folder: str, shard: int) -> None:
    """Write `folder/shard-NNNNN.jsonl` with one row, atomically."""
    target = Path(folder) / f"shard-{shard:05d}.jsonl"
    partial = target.with_suffix(".tmp")
    partial.write_text(json.dumps({"shard": shard}) + "\n")
    os.replace(partial, target)


class DatatroveStep:
    """The same as a step of a datatrove pipeline, which calls it with the rank of its task."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        write(self.folder, rank)


class WorkWithTime:
    """Works for a while, then adds the time to a file: as a function, or as a step of a datatrove pipeline."""

    def __init__(self, times: str, seconds: float):
        self.times, self.seconds = times, seconds

    def __call__(self, *_: object) -> None:
        time.sleep(self.seconds)
        with open(self.times, "a") as times:
            print(time.time(), file=times)


class RestartableWork:
    """Writes when it first began, waits to be interrupted, and when it begins again writes that and ends.

    `times` gets one line per start. Whoever sends the interruption notes its time.
    """

    def __init__(self, times: str):
        self.times = times

    def __call__(self, *_: object) -> None:
        with open(self.times, "a") as times:
            print(time.time(), file=times)
        if len(Path(self.times).read_text().splitlines()) == 1:
            time.sleep(600)

    def checkpoint(self, *_: object) -> object:
        import submitit

        return submitit.helpers.DelayedSubmission(self)  # submitit requeues the job, to call this object again
