"""The language model's last layer, whose MLP runs only on the places that are read.

Training reads the places that predict supervised tokens: a third of the demo's, and a twentieth of NVILA-8B's, whose
sequences are mostly pictures. No result changes.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer


def set_last_layer(layer: Qwen2DecoderLayer, *, compiled: bool) -> None:
    """Make a model's last layer a LastLayer, or a plain one if it is compiled, so that all layers share their code."""
    layer.__class__ = Qwen2DecoderLayer if compiled else LastLayer


class LastLayer(Qwen2DecoderLayer):
    """A Qwen2 layer whose result may be requested for some places only."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, places: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """[rows, length, width] to the same, or to [1, places, width] at `places` of the flattened rows."""
        if places is None:
            return super().forward(hidden_states, *args, **kwargs)
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), *args, **kwargs)
        residual = (hidden_states + attended).flatten(0, 1).index_select(0, places)[None]
        return residual + self.mlp(self.post_attention_layernorm(residual))
