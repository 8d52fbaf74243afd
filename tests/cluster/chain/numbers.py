"""One CPU job: ten numbers for each shard of `squares`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jobs.witness import watched
from lumen_hpc.cluster.shards import Shard
from lumen_hpc.cluster.stage import Stage, Task

STAGE = Stage(name="numbers", paper="", about="count", resources="cpu", settings=("experts.shards", "seed"))


def work(task: Task) -> Callable[[Shard], Iterator[dict]]:
    first, many = task.settings.seed, 10 * task.settings.experts.shards
    return lambda shard: watched(task, shard, ({"number": first + number} for number in range(many)))
