"""Language engines of a task: the model's folder, the processes of the job, and the servers that may see its data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lumen_hpc.cluster.stage import Task
from lumen_hpc.config import schema
from lumen_hpc.weights import locate, verify

if TYPE_CHECKING:
    from lumen_hpc.language.protocol import Engine

MAX_GPU_MEMORY = 0.9
"""Share of a GPU's memory that the models of one process take together."""


def open_for(task: Task, settings: schema.EngineSettings) -> Engine:
    """The engine of a language stage on the processes of this job; several processes each run the whole stage."""
    from lumen_hpc.language.engine import open_engine

    rendezvous = task.folder / f"rendezvous-{task.ranks.job}"
    engine = open_engine(with_local_model(settings, task), allowed_endpoints(task), task.ranks, rendezvous)
    engine.beat = task.beat
    return engine


def open_judges(task: Task) -> tuple[Engine, Engine | None]:
    """The judge, and the second where there is one; two vLLM models in one process share its GPUs and their memory."""
    judge = task.settings.judge
    first, second = judge.engine, judge.placed_second
    if second is None:
        return open_for(task, first), None
    if first.kind == second.kind == "vllm" and (total_memory := first.gpu_memory + second.gpu_memory) > MAX_GPU_MEMORY:
        first, second = (
            replace(engine, gpu_memory=engine.gpu_memory * MAX_GPU_MEMORY / total_memory) for engine in (first, second)
        )
    return open_for(task, first), open_for(task, second)


def with_local_model(engine: schema.EngineSettings, task: Task) -> schema.EngineSettings:
    """The engine's settings with the model's folder in place of its name, for a model that runs in this process."""
    if not engine.in_task:
        return engine
    cache = task.run.profile.cache
    return replace(engine, model=str(verify(locate(engine.model, cache), cache)))


def allowed_endpoints(task: Task) -> list[str] | None:
    """The servers that may see this run's data; None if the data is not restricted."""
    return task.run.profile.data_use.endpoints if task.run.restricted else None
