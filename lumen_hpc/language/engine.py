"""Opens the engine of the settings: vLLM in process, transformers, an OpenAI-compatible server, or the grammar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.language.protocol import Engine
from lumen_hpc.registry import ENGINES, implementation

SINGLE_PROCESS = Ranks()


def open_engine(
    settings: schema.EngineSettings,
    allowed_endpoints: Sequence[str] | None = None,
    ranks: Ranks = SINGLE_PROCESS,
    rendezvous: Path = Path(),
) -> Engine:
    """The engine that the settings name, with its model loaded.

    `allowed_endpoints` are the URL prefixes that may see restricted data; None says that the data is not restricted.
    The engine checks them before it sends anything. `ranks`: the processes of this job. Several processes open the
    same vLLM engine, send it the same conversations and get the same completions; they find each other in the folder
    `rendezvous`. Raises UserError for a missing model, package, key or permission, and for a wrong number of processes.
    """
    if problem := misfit(settings, ranks.world_size):
        raise UserError("; ".join(problem))
    if settings.kind not in ENGINES:
        raise UserError(f"engine kind '{settings.kind}' is unknown; it is one of {', '.join(ENGINES)}")
    if not settings.model and (settings.in_task or settings.kind == "server"):
        raise UserError(f"engine.model is empty; engine.kind={settings.kind} needs a folder or a staged model's name")
    engine: type[Engine] = implementation(ENGINES[settings.kind])
    return engine.open(settings, allowed_endpoints=allowed_endpoints, ranks=ranks, rendezvous=rendezvous)


def misfit(
    settings: schema.EngineSettings, processes: int, resources: str = "its kind in profile.resources"
) -> tuple[str, str] | None:
    """The problem with running this engine in a job of `processes` processes, and its fix; None if there is none.

    `resources`: the name of that job's settings in the fix. A vLLM model needs one process for each of its GPUs; the
    grammar runs in any number of processes.
    """
    needed = settings.tensor_parallel * settings.pipeline_parallel if settings.kind == "vllm" else 1
    if processes == needed or settings.kind == "grammar":
        return None
    size = f" (tensor_parallel {settings.tensor_parallel} x pipeline_parallel {settings.pipeline_parallel})"
    return (
        f"engine.kind={settings.kind}{size if settings.kind == 'vllm' else ''} runs in {needed} "
        f"process{'es, one a GPU' if needed > 1 else ''}, and this job has {processes}",
        f"nodes x tasks_per_node of {resources} must be {needed}",
    )
