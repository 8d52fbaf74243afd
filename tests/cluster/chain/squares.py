"""An array: its part of the numbers, squared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jobs.witness import watched
from lumen_hpc.cluster.shards import Shard
from lumen_hpc.cluster.stage import Stage, Task

STAGE = Stage(name="squares", paper="", about="square", resources="gpu", settings=(), after=("numbers",),
              shards=lambda settings: settings.experts.shards)  # fmt: skip


def work(task: Task) -> Callable[[Shard], Iterator[dict]]:
    numbers = [row["number"] for row in task.run.rows("numbers")]

    def rows(shard: Shard) -> Iterator[dict]:
        span = shard.span(len(numbers))
        return watched(task, shard, ({"number": numbers[k], "square": numbers[k] ** 2} for k in span))

    return rows
