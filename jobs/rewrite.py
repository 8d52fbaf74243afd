"""Sections 2.2 and 2.4: every short answer becomes a whole sentence, every difference pair a prediction question.

Reads prepare/questions.jsonl; every long answer is fact-checked against its short one. Questions are sorted by
wording and answer, so that equal ones fall into one shard and are requested once; shard k of n takes a contiguous part
of that order. The engine's input depends on the shard alone, so a rerun shard has the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lumen_hpc.cluster import estimate
from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.config import schema
from lumen_hpc.weights import locate

if TYPE_CHECKING:
    from lumen_hpc.language.protocol import Engine

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
    from lumen_hpc.language.rewriting import equal_together, rewrite

    settings = task.settings.rewrite
    questions = Records(task.run.path("prepare") / "questions.jsonl")
    order = equal_together(questions)
    engine = open_for(task, settings.engine)

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        part = [questions[order[index]] for index in shard.span(len(order))]
        yield from rewrite(part, engine, settings, task.settings.seed)

    return process


def open_for(task: Task, settings: schema.EngineSettings) -> Engine:
    """The engine of a language stage on the processes of this job; several processes each run the whole stage."""
    from lumen_hpc.language.engine import open_engine

    rendezvous = task.folder / f"rendezvous-{task.ranks.job}"
    return open_engine(with_local_model(settings, task), allowed_endpoints(task), task.ranks, rendezvous)


def with_local_model(engine: schema.EngineSettings, task: Task) -> schema.EngineSettings:
    """The engine's settings with the model's folder in place of its name, for a model that runs in this process."""
    if not engine.in_task:
        return engine
    return replace(engine, model=str(locate(engine.model, task.run.profile.cache)))


def allowed_endpoints(task: Task) -> list[str] | None:
    """The servers that may see this run's data; None if the data is not restricted."""
    rules = task.run.profile.data_use
    return rules.endpoints if task.settings.data.source == "mimic" and rules.restricted else None
