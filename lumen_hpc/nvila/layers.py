"""Sets how the transformer layers run: what the backward pass recomputes, and whether layers are compiled.

Nothing here changes the maths. A layer is compiled as one graph with its recomputation; ZeRO-3 gathers whole layers, so
DeepSpeed's hooks stay outside the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import checkpoint as recomputation
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from lumen_hpc.errors import UserError

from . import last_layer
from .config import NVILAConfig

MAX_SHAPES = 128
"""Shapes for which a layer may be compiled: 32 lengths, with and without gradients, and more. torch's own limit of 8
would stop a training at its fifth length."""
CHECKPOINTING = ("full", "selective", "none")
"""What the backward pass recomputes of a layer: all of it, all but matrix products and attention, or nothing."""
BACKEND = "inductor" if torch.cuda.is_available() else "aot_eager"
"""Without a GPU the same graphs are traced, but their operators run uncompiled."""
FLASH_OPERATORS = (
    ("flash_attn", "_flash_attn_varlen_forward"),
    ("flash_attn_3", "_flash_attn_forward"),
    ("flash_attn_3", "fwd"),
)
"""The forward pass of flash-attention 2 and 3; that of version 4 is not a torch operator, and is recomputed."""
COMPILED_KERNELS = ("flex",)
"""Attention whose plan is only tensors. The others' spans are Python data: every batch would be compiled again."""


class Layered(Protocol):
    """What `prepare` needs of a model (`model.NVILA`)."""

    config: NVILAConfig
    kernel: str
    vision_tower: Any
    llm: Any


def layers(model: Layered) -> dict[str, list[nn.Module]]:
    """The transformer layers that run, by part."""
    tower = getattr(model.vision_tower, "vision_model", model.vision_tower).encoder.layers
    return {
        "vision_tower": list(tower[: model.config.select_layer % (len(tower) + 1)]),
        "llm": list(model.llm.model.layers),
    }


def prepare(model: Layered, checkpointing: str, *, compiled: bool = False, backend: Any = BACKEND) -> None:
    """Set recomputation and compilation of every layer; a later call replaces an earlier one.

    `compiled` compiles the tower's layers, and the language model's if its attention allows it (`COMPILED_KERNELS`).
    Recomputation happens only in training mode. Raises UserError for another `checkpointing`.
    """
    if checkpointing not in CHECKPOINTING:
        raise UserError(f"checkpointing={checkpointing!r}: use one of {CHECKPOINTING}")
    if compiled:
        _allow_shapes()
    options: dict[str, Any] = {"use_reentrant": False}
    if checkpointing == "selective":
        options["context_fn"] = selective_contexts
    for part, part_layers in layers(model).items():
        graph = compiled and (part == "vision_tower" or model.kernel in COMPILED_KERNELS)
        owner = model.vision_tower if part == "vision_tower" else model.llm
        if checkpointing == "none" or graph:
            owner.gradient_checkpointing_disable()
        else:
            owner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        if part == "llm":
            last_layer.set_last_layer(part_layers[-1], compiled=graph)
        for layer in part_layers:
            layer.__dict__.pop("forward", None)
            if graph:
                forward = layer.forward
                if checkpointing != "none":
                    forward = _with_recomputation(layer, forward, options)
                # One graph takes any number of tiles, but each length has its own: FlexAttention for any length
                # compiles in a minute instead of ten seconds and is 4 % slower (one H200, torch 2.11).
                any_size = part == "vision_tower"
                layer.forward = torch.compile(forward, backend=backend, dynamic=any_size, fullgraph=True)


def _allow_shapes() -> None:
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch 2.6
    setattr(config, name, max(getattr(config, name), MAX_SHAPES))
    from torch._inductor import config as inductor

    if hasattr(inductor, "deterministic"):  # kernels chosen by timing would break bit-equal resumes
        inductor.deterministic = True


def _with_recomputation(layer: nn.Module, forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        # Without a backward pass, as in a frozen tower, nothing is recomputed, and torch refuses to compile it.
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        if layer.training and torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *layer.parameters())):
            return recomputation.checkpoint(forward, *args, **options, **kwargs)
        return forward(*args, **kwargs)

    return run


def selective_contexts() -> Any:
    """Contexts of `torch.utils.checkpoint` that keep matrix products and attention and recompute the rest."""
    return create_selective_checkpoint_contexts(partial(_policy, _kept_operators()))


def _policy(kept_operators: frozenset[Any], context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in kept_operators else CheckpointPolicy.PREFER_RECOMPUTE


@cache
def _kept_operators() -> frozenset[Any]:
    """Matrix products and attention kernels, as far as this build of torch has them."""
    aten = torch.ops.aten
    operators = {aten.mm.default, aten.addmm.default, torch.ops.higher_order.flex_attention}
    for name in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
        if hasattr(aten, f"_scaled_dot_product_{name}"):
            operators.add(getattr(aten, f"_scaled_dot_product_{name}").default)
    for package, name in FLASH_OPERATORS:
        if hasattr(getattr(torch.ops, package), name):
            operators.add(getattr(getattr(torch.ops, package), name).default)
    return frozenset(operators)
