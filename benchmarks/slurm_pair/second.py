"""The step that waits for `first`; the time at which it begins is noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jobs.first import note
from lumen_hpc.cluster.shards import Shard
from lumen_hpc.cluster.stage import Stage, Task

STAGE = Stage(name="second", paper="", about="waits", resources="gpu", settings=("seed",), after=("first",))


def work(task: Task) -> Callable[[Shard], Iterator[dict]]:
    note()
    return lambda shard: iter([{"shard": shard.index}])
