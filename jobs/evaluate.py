"""Section 3: metrics, tests and intervals; tables 1 and 2; the page.

Reads everything that came before and writes report/index.html, report/tables.{md,csv,tex} and report/figures/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lumen_hpc.cluster.stage import Shard, Stage, Task

STAGE = Stage(
    name="evaluate",
    paper="3",
    about="tables, tests, figures and the report",
    resources="cpu",
    settings=("seed", "evaluate", "predict.models"),
    after=("prepare", "experts", "rewrite", "instruct", "train-*", "predict-*", "judge-*"),
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row that vouches for each file of the report."""
    from lumen_hpc.report import evaluate

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        written = evaluate.report(task.run, task.config.evaluate, task.config.seed, task.run.folder / "report")
        for path in written:
            yield task.artefact(path)

    return process
