"""An array that follows `squares` shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jobs.witness import watched
from lumen_hpc.cluster.shards import Shard
from lumen_hpc.cluster.stage import Stage, Task

STAGE = Stage(
    name="checks",
    paper="",
    about="check",
    resources="judge",
    settings=("judge.canaries",),
    after=("squares",),
    shardwise_after="squares",
    shards=lambda settings: settings.experts.shards,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict]]:
    limit = task.settings.judge.canaries

    def rows(shard: Shard) -> Iterator[dict]:
        squares = task.run.rows("squares", shard=shard)
        checked = (row | {"right": row["number"] ** 2 == row["square"], "limit": limit} for row in squares)
        return watched(task, shard, checked)

    return rows
