"""Finds flash-attention's `varlen` function in the fastest of its packages that works on this machine's GPU.

Versions 2, 3 and 4 are separate packages with an equivalent function: concatenated sequences, causal to the bottom
right, grouped heads. A package may lack kernels for this GPU, and version 4 alone installs a `flash_attn` without
version 2: so each one is tried, forward and backward, before it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch.nn import functional as F

log = logging.getLogger(__name__)
DEVICE = "cuda"
Varlen = Callable[..., torch.Tensor]
"""(q, k, v, ends of queries, ends of keys, longest query, longest key, softmax_scale=, causal=) → like q."""

MODULES = {
    4: ("flash_attn.cute",),
    3: ("flash_attn_3.flash_attn_interface", "flash_attn_interface"),
    2: ("flash_attn",),
}
"""Modules that may have each version's function; that of 3 has moved."""


def versions_for(major: int) -> tuple[int, ...]:
    """Versions for a GPU's compute capability, the fastest first: 3 is for Hopper, 4 for Blackwell, 2 for all."""
    return (4, 2) if major >= 10 else (3, 4, 2) if major == 9 else (2,) if major == 8 else ()


@cache
def varlen() -> Varlen | None:
    """The function to use on this process's GPU; None without a GPU, or without a package that works."""
    if not torch.cuda.is_available():
        return None
    for version, function in installed_functions(versions_for(torch.cuda.get_device_capability()[0])):
        if not (reason := fault(function, DEVICE, torch.bfloat16)):
            log.info("flash-attention %d", version)
            return function
        log.warning("flash-attention %d is installed and not used: %s", version, reason)
    return None


def installed_functions(versions: tuple[int, ...]) -> Iterator[tuple[int, Varlen]]:
    """Those of `versions` whose package can be imported, with their functions."""
    for version in versions:
        for module in MODULES[version]:
            try:
                function = import_module(module).flash_attn_varlen_func
            except Exception:  # an extension built for another torch or CUDA raises anything
                continue
            yield version, _with_uniform_call(function)
            break


def _with_uniform_call(function: Callable[..., Any]) -> Varlen:
    """The function with arguments by the names that all versions share; of several results (4, older 3) the first."""

    def call(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, query_ends: torch.Tensor, key_ends: torch.Tensor,
        longest_query: int, longest_key: int, *, softmax_scale: float, causal: bool,
    ) -> torch.Tensor:  # fmt: skip
        out = function(
            q, k, v, cu_seqlens_q=query_ends, cu_seqlens_k=key_ends, max_seqlen_q=longest_query,
            max_seqlen_k=longest_key, softmax_scale=softmax_scale, causal=causal,
        )  # fmt: skip
        return out[0] if isinstance(out, tuple | list) else out

    return call


def fault(function: Varlen, device: str, dtype: torch.dtype) -> str:
    """Why a function should not be used on a device; empty if value and gradients equal those of plain attention.

    The trial has two sequences, of which the second sees a prefix.
    """
    lengths, key_lengths, heads, kv_heads, width = (70, 33), (70, 200), 4, 2, 128
    generator = torch.Generator().manual_seed(0)

    def tensor(tokens: int, count: int) -> torch.Tensor:
        return torch.randn(tokens, count, width, generator=generator).to(device, dtype).requires_grad_()

    inputs = (tensor(sum(lengths), heads), tensor(sum(key_lengths), kv_heads), tensor(sum(key_lengths), kv_heads))
    weight = torch.randn(sum(lengths), heads, width, generator=generator).to(device)
    ends = [torch.tensor([0, *sizes], device=device).cumsum(0, dtype=torch.int32) for sizes in (lengths, key_lengths)]

    def fused() -> torch.Tensor:
        return function(*inputs, *ends, max(lengths), max(key_lengths), softmax_scale=0.1, causal=True)

    def plain() -> torch.Tensor:
        parts = zip(*(x.split(sizes) for x, sizes in zip(inputs, (lengths, key_lengths, key_lengths))))
        return torch.cat([_plain(q, k, v, 0.1) for q, k, v in parts])

    results = []
    try:
        for run in (plain, fused):
            out = run()
            results.append([out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)])
    except Exception as error:  # a kernel on a GPU that it was not built for raises anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    distance = max(float((a.float() - b.float()).norm() / a.float().norm()) for a, b in zip(*results))
    return (
        ""
        if distance < (2e-2 if dtype != torch.float32 else 1e-4)
        else f"it differs from plain attention by {distance:.2g}"
    )


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """One sequence, [tokens, heads, width]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)
