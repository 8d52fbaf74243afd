"""Sections 2.2 to 2.4: questions, long answers, expert predictions and intervals become instruction records.

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
    settings=("seed", "data", "instruct", "experts.in_prompt", "experts.thresholds"),
    after=("prepare", "experts", "rewrite"),
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row with the digest of each file of records."""
    from lumen_hpc.data import instructions

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        run = task.run
        written = instructions.write(
            task.folder,
            prepared=run.path("prepare"),
            experts=run.rows("experts"),
            rewrites=run.rows("rewrite"),
            settings=task.settings.instruct,
            in_prompt=task.settings.experts.in_prompt,
            thresholds=task.settings.experts.thresholds,
            diff_vqa=run.diff_vqa,
        )
        for path in written:
            yield task.artefact(path)

    return process
