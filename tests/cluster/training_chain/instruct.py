"""In place of instruct: the records that lie beside the base model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lumen_hpc.cluster.shards import Shard
from lumen_hpc.cluster.stage import Stage, Task

STAGE = Stage(name="instruct", paper="", about="records", resources="cpu", settings=())


def work(task: Task) -> Callable[[Shard], Iterator[dict]]:
    def rows(shard: Shard) -> Iterator[dict]:
        copied = task.folder / "lumen-train.jsonl"
        shutil.copy(Path(task.settings.train.base).parent / "records.jsonl", copied)
        yield task.artefact(copied)

    return rows
