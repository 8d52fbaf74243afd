"""One operation of a transformer layer by every kernel at hand: attention, norms and activations.

`gpu_speed.py` measures them, forward and backward, at the shapes of its micro-batch.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, layer_norm, rms_norm, scaled_dot_product_attention, silu

from lumen_hpc.nvila import NVILA, Batch, attention, flash, layers

Kernel = Callable[..., tuple[torch.Tensor, ...]]
"""Maps an operation's inputs to its outputs."""


@dataclass(frozen=True)
class Operation:
    """An operation, and what computes it here."""

    shapes: list[tuple[int, ...]]
    """Of its inputs."""
    kernels: dict[str, Kernel]
    """By name; the first is the reference."""
    moved_values: int = 0
    """Values that both passes together read and write, each once; 0 where arithmetic limits the speed."""


def llm_attention(model: NVILA, batch: Batch) -> Operation:
    """A call a span, one call, and each version of flash-attention that is installed."""
    llm, spans, scale, (rows, length) = model.config.llm, batch.spans, 0.1, batch.token_ids.shape
    device = batch.token_ids.device
    plans = {kernel: attention.plan(spans, rows, length, kernel, device) for kernel in ("sdpa", "flex")}
    kernels: dict[str, Kernel] = {
        kernel: lambda q, k, v, plan=plan: (plan.attend(0, q, k, v, scale),) for kernel, plan in plans.items()
    }
    index = attention.VarlenIndex.of(spans, length, device)
    for version, function in flash.installed_functions((2, 3, 4)):
        kernels[f"flash-attention {version}"] = lambda q, k, v, function=function: (
            attention.spans_varlen(index, q, k, v, scale, function),
        )
    head_width = llm["hidden_size"] // llm["num_attention_heads"]
    heads = (llm["num_attention_heads"], llm["num_key_value_heads"], llm["num_key_value_heads"])
    return Operation([(rows, count, length, head_width) for count in heads], kernels)


def tower_attention(model: NVILA, batch: Batch) -> Operation:
    """All tiles at once: what torch takes by itself, and each of its kernels that runs here."""
    heads = model.config.vision_tower["num_attention_heads"]
    tiles, patches, width = _tower_shape(model, batch, "hidden_size")
    kernels: dict[str, Kernel] = {"sdpa": lambda q, k, v: (scaled_dot_product_attention(q, k, v),)}
    backends = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION) if batch.tiles.is_cuda else ()
    for backend in backends:

        def one(q, k, v, backend=backend) -> tuple[torch.Tensor]:
            with sdpa_kernel(backend):
                return (scaled_dot_product_attention(q, k, v),)

        kernels[backend.name.lower()] = one
    ends = torch.arange(0, (tiles + 1) * patches, patches, dtype=torch.int32, device=batch.tiles.device)
    for version, function in flash.installed_functions((2, 3, 4)):

        def flat(q, k, v, function=function) -> tuple[torch.Tensor]:
            q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
            out = function(q, k, v, ends, ends, patches, patches, softmax_scale=q.shape[-1] ** -0.5, causal=False)
            return (out.unflatten(0, (-1, patches)).transpose(1, 2),)

        kernels[f"flash-attention {version}"] = flat
    return Operation([(tiles, heads, patches, width // heads)] * 3, kernels)


def tower_norm(model: NVILA, batch: Batch) -> Operation:
    """The residual stream's sum, and its LayerNorm."""
    shape = _tower_shape(model, batch, "hidden_size")
    width, liger = shape[-1:], _liger()

    def plain(x, y, weight, bias) -> tuple[torch.Tensor, ...]:
        total = x + y
        return total, layer_norm(total, width, weight, bias, 1e-6)

    def one_pass(x, y, weight, bias) -> tuple[torch.Tensor, ...]:
        total = x + y
        return total, liger.LigerLayerNormFunction.apply(total, weight, bias, 1e-6)

    return Operation([shape, shape, width, width], _kernels(plain, liger and one_pass), 8 * math.prod(shape))


def tower_activation(model: NVILA, batch: Batch) -> Operation:
    """GELU."""
    shape = _tower_shape(model, batch, "intermediate_size")
    return Operation([shape], _kernels(lambda x: (gelu(x, approximate="tanh"),)), 5 * math.prod(shape))


def llm_norm(model: NVILA, batch: Batch) -> Operation:
    """The residual stream's sum, and its RMSNorm."""
    shape = (*batch.token_ids.shape, model.config.llm["hidden_size"])
    width, liger = shape[-1:], _liger()

    def plain(x, y, weight) -> tuple[torch.Tensor, ...]:
        total = x + y
        return total, rms_norm(total, width, weight, 1e-6)

    def one_pass(x, y, weight) -> tuple[torch.Tensor, ...]:
        return liger.LigerFusedAddRMSNormFunction.apply(x, y, weight, 1e-6)[::-1]

    return Operation([shape, shape, width], _kernels(plain, liger and one_pass), 8 * math.prod(shape))


def llm_activation(model: NVILA, batch: Batch) -> Operation:
    """SwiGLU, without its products."""
    shape, liger = (*batch.token_ids.shape, model.config.llm["intermediate_size"]), _liger()

    def plain(gate, up) -> tuple[torch.Tensor, ...]:
        return (silu(gate) * up,)

    def one_pass(gate, up) -> tuple[torch.Tensor, ...]:
        return (liger.LigerSiLUMulFunction.apply(gate, up),)

    return Operation([shape, shape], _kernels(plain, liger and one_pass), 8 * math.prod(shape))


def _tower_shape(model: NVILA, batch: Batch, width: str) -> tuple[int, int, int]:
    tower = model.config.vision_tower
    return len(batch.tiles), (tower["image_size"] // tower["patch_size"]) ** 2, tower[width]


def _kernels(plain: Kernel, liger: Kernel | None = None) -> dict[str, Kernel]:
    kernels = {"plain": plain, "compiled": torch.compile(plain, backend=layers.BACKEND)}
    return kernels | {"Liger": liger} if liger else kernels


def _liger() -> Any:
    """Liger's kernels, the peer; None where they are not installed, or there is no GPU for them."""
    if not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None:
        return None
    return importlib.import_module("liger_kernel.ops")
