"""Sections 2.2 and 2.4: every short answer becomes a whole sentence, every difference pair a prediction question.

Reads prepare/questions.jsonl; every long answer is fact-checked against its short one. Questions are sorted by
wording and answer, so that equal ones fall into one shard and are requested once; shard k of n takes a contiguous part
of that order. The engine's input depends on the shard alone, so a rerun shard has the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lumen_hpc.cluster import engines, estimate
from lumen_hpc.cluster.stage import Shard, Stage, Task

STAGE = Stage(
    name="rewrite",
    paper="2.2, 2.4",
    about="long answers and prediction questions, fact-checked",
    resources="gpu",
    settings=("seed", "rewrite"),
    after=("prepare", "export_text_llama"),
    shards=lambda settings: settings.rewrite.shards,
    gpu_hours=estimate.rewrite,
    load_hours=estimate.rewrite_load,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Opens the engine once; yields rewrite rows."""
    from lumen_hpc.data.records import Records
    from lumen_hpc.language.rewriting import order_by_request, rewrite

    settings = task.settings.rewrite
    questions = Records(task.run.path("prepare") / "questions.jsonl")
    order = order_by_request(questions)
    engine = engines.open_for(task, settings.engine)

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        shard_questions = [questions[order[index]] for index in shard.span(len(order))]
        pairs = sum(question["type"] == "difference" for question in shard_questions)
        task.expected = len(shard_questions) + pairs * settings.predictions_per_pair
        yield from rewrite(shard_questions, engine, settings, task.settings.seed)

    return process
