"""Two shards; the time at which the last row was written is noted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from lumen_hpc.cluster.shards import Shard
from lumen_hpc.cluster.stage import Stage, Task

STAGE = Stage(name="first", paper="", about="two shards", resources="gpu", settings=("seed",),
              shards=lambda settings: 2)  # fmt: skip


def note() -> None:
    """Adds the time to the file that the benchmark reads."""
    with open(os.environ["LUMEN_BENCHMARK_TIMES"], "a") as times:
        print(time.time(), file=times)


def work(task: Task) -> Callable[[Shard], Iterator[dict]]:
    def rows(shard: Shard) -> Iterator[dict]:
        time.sleep(1)
        yield {"shard": shard.index}
        note()

    return rows
