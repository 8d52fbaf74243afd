"""The engine that answers test questions: `predict.engine`."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from lumen_hpc.config.schema import Predict
from lumen_hpc.errors import UserError
from lumen_hpc.training import predict

from .trial import try_vllm

log = logging.getLogger(__name__)


def uses_vllm(engine: str) -> bool:
    """Whether `predict.engine` means vLLM; UserError if it is named and not installed.

    `auto` is vLLM where it is installed, there is a GPU, and a trial at the start equals the native engine.
    """
    import torch

    installed = importlib.util.find_spec("vllm") is not None
    if engine == "vllm" and not installed:
        raise UserError("predict.engine=vllm: vLLM is not installed here; install extra `gpu` or `cpu`, or take native")
    if engine != "auto" or not installed or not torch.cuda.is_available():
        return engine == "vllm"
    if reason := try_vllm():
        log.warning("predict.engine=auto takes the native engine: vLLM was tried, and %s", reason)
    return not reason


def open_predictor(weights: Path, settings: Predict, *, model: str, max_tokens: int | None = None) -> predict.Predictor:
    """A predictor with the weights in a folder, on the engine that the settings name.

    `max_tokens`: as of `predict.Predictor`.
    """
    if not uses_vllm(settings.engine):
        return predict.open_predictor(weights, settings, model=model, max_tokens=max_tokens)
    import torch

    from .vllm_answerer import VLLMModel

    dtype = "bfloat16" if torch.cuda.is_available() else ""
    answerer = VLLMModel(weights, dtype=dtype, answer_tokens=settings.max_new_tokens, gpu_memory=settings.gpu_memory)
    return predict.Predictor(answerer, settings, model, max_tokens)
