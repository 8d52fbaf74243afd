"""Attention heads narrower than vLLM's kernels take, padded with zeros to the next width that they do.

vLLM's CPU kernels start at heads of 32; the smallest test models have narrower ones. Zeros add nothing to a query's
products with the keys, and what they add to the values is cut off, so the result is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from vllm.config import VllmConfig


def pad_narrow_heads(layers: nn.ModuleList, vllm_config: VllmConfig) -> None:
    """Replace the attention of each decoder layer whose heads its backend does not support; others stay."""
    for layer in layers:
        attention: Any = getattr(getattr(layer, "self_attn", None), "attn", None)
        backend = getattr(attention, "attn_backend", None)
        if backend is None or backend.supports_head_size(attention.head_size):
            continue
        wider_sizes = [size for size in backend.get_supported_head_sizes() if size > attention.head_size]
        if wider_sizes:
            layer.self_attn.attn = PaddedAttention(layer.self_attn, min(wider_sizes), vllm_config)


class PaddedAttention(nn.Module):
    """vLLM's attention with heads of `width` around a model's narrower ones."""

    def __init__(self, owner: nn.Module, width: int, vllm_config: VllmConfig) -> None:
        super().__init__()
        from vllm.model_executor.layers.attention import Attention

        narrow = owner.attn
        self.head_size, self.width = narrow.head_size, width
        vllm_config.compilation_config.static_forward_context.pop(narrow.layer_name)
        self.attn = Attention(
            narrow.num_heads,
            width,
            owner.scaling,
            num_kv_heads=narrow.num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=narrow.layer_name,
        )

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[tokens, heads · head_size] each, to the same."""
        attended = self.attn(*(self._pad(x) for x in (query, key, value)))
        return attended.view(len(attended), -1, self.width)[..., : self.head_size].flatten(1)

    def _pad(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x.view(len(x), -1, self.head_size), (0, self.width - self.head_size)).flatten(1)
