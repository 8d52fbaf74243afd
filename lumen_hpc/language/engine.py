"""Opens whatever answers: vLLM in process, transformers, an OpenAI-compatible server, or the grammar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.language.protocol import Engine

ALONE = Ranks()


def open_engine(
    wanted: schema.EngineSettings,
    allowed_endpoints: Sequence[str] | None = None,
    ranks: Ranks = ALONE,
    meeting: Path = Path(),
) -> Engine:
    """The engine that the settings name, with its model loaded.

    `allowed_endpoints` are the URL prefixes that may see restricted data; None says that the data is not restricted.
    They are checked before anything is sent. `ranks`: the processes of this job; where they are several, each opens
    the same vLLM engine, asks it the same and gets the same, and they find each other in folder `meeting`. Raises
    UserError for a missing model, package, key or permission, and for a number of processes that does not fit.
    """
    if problem := misfit(wanted, ranks.world_size):
        raise UserError("; ".join(problem))
    if wanted.kind == "grammar":
        from lumen_hpc.language.grammar import GrammarEngine

        return GrammarEngine()
    if not wanted.model:
        raise UserError(f"engine.model is empty; engine.kind={wanted.kind} needs a folder or a staged model's name")
    if wanted.kind == "vllm":
        from lumen_hpc.language.vllm_engine import VLLMEngine

        return VLLMEngine(wanted, ranks, meeting)
    if wanted.kind == "transformers":
        from lumen_hpc.language.transformers_engine import TransformersEngine

        return TransformersEngine(wanted)
    if wanted.kind == "server":
        from lumen_hpc.language.server_engine import ServerEngine

        return ServerEngine(wanted, allowed_endpoints)
    raise UserError(f"engine kind '{wanted.kind}' is unknown; it is one of vllm, transformers, server, grammar")


def misfit(
    wanted: schema.EngineSettings, processes: int, resources: str = "its kind in profile.resources"
) -> tuple[str, str] | None:
    """What is wrong with running this engine in a job of so many processes, and the cure; None if nothing is.

    `resources`: what the cure calls the settings of that job. A vLLM model is shared by as many processes as GPUs; the
    grammar costs nothing, so any number will do.
    """
    needed = wanted.tensor_parallel * wanted.pipeline_parallel if wanted.kind == "vllm" else 1
    if processes == needed or wanted.kind == "grammar":
        return None
    size = f" (tensor_parallel {wanted.tensor_parallel} x pipeline_parallel {wanted.pipeline_parallel})"
    return (
        f"engine.kind={wanted.kind}{size if wanted.kind == 'vllm' else ''} runs in {needed} "
        f"process{'es, one a GPU' if needed > 1 else ''}, and this job has {processes}",
        f"nodes x tasks_per_node of {resources} must be {needed}",
    )
