"""Sections 2.2 to 2.4: questions, long answers, expert words and intervals become instruction records.

Reads prepare, experts and rewrite; writes {ft,lumen}-{train,val}.jsonl and lumen-test.jsonl, which every model answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lumen_hpc.cluster.stage import Shard, Stage, Task

STAGE = Stage(
    name="instruct",
    paper="2.2-2.4",
    about="instruction records for each model and split",
    resources="cpu",
    settings=("seed", "instruct", "experts.told", "experts.words"),
    after=("prepare", "experts", "rewrite"),
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row that vouches for each file of records."""
    from lumen_hpc.data import instructions

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        run = task.run
        written = instructions.write(
            task.folder,
            prepared=run.path("prepare"),
            experts=run.rows("experts"),
            rewrites=run.rows("rewrite"),
            settings=task.config.instruct,
            told=task.config.experts.told,
            words=task.config.experts.words,
        )
        for path in written:
            yield task.artefact(path)

    return process
