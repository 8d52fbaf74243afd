"""Quantises frozen linear layers under adapters to 8 or 4 bits, through `bitsandbytes` (QLoRA, arXiv 2305.14314).

An 8 B model in bfloat16 takes 16 GB; in 4 bits it fits a 24 GB GPU with its adapters and activations. 8 bits is
LLM.int8 (arXiv 2208.07339), which rounds inputs as well; 4 bits is NF4, which rounds only weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lumen_hpc.errors import UserError

OUTLIER = 6.0
"""LLM.int8 multiplies inputs of at least this size in 16 bits, as in its paper."""


def quantise(model: nn.Module, names: Iterable[str], bits: int) -> None:
    """Replace linear layers by frozen ones of 8 or 4 bits, on the device on which they will work, one at a time.

    Raises UserError if bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"train.adapter.base_bits={bits} needs the package bitsandbytes; pip install bitsandbytes, or use 16"
        )
    for name in names:
        parent, _, child_name = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), child_name, quantise_layer(layer, bits))
    setattr(model, f"is_loaded_in_{bits}bit", True)  # from which peft chooses its own kind of adapter


def quantise_layer(layer: nn.Linear, bits: int) -> nn.Module:
    """The layer in 8 or 4 bits; it computes in the dtype of the given weight."""
    import bitsandbytes

    bias, dtype = layer.bias is not None, layer.weight.dtype
    quantised_layer: nn.Module
    if bits == 4:
        quantised_layer = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias, compute_dtype=dtype, quant_type="nf4"
        )
        # On a processor with AVX512-BF16, a forward pass without gradients would repack the codes in place and round
        # their scales, which would change a training after its first validation.
        quantised_layer.support_avx512bf16_for_cpu = False
    else:
        quantised_layer = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, bias, has_fp16_weights=False, threshold=OUTLIER
        )
    quantised_layer.load_state_dict(layer.state_dict())
    if bias:
        quantised_layer.bias.data = layer.bias.data.clone()
    return quantised_layer.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)


def dequantised_weight(layer: nn.Module) -> torch.Tensor:
    """The weight by which a quantised layer multiplies."""
    from bitsandbytes import functional

    weight: Any = layer.weight
    if type(weight).__name__ == "Params4bit":
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    scales = layer.state.SCB if layer.state.SCB is not None else weight.SCB
    return functional.int8_vectorwise_dequant(weight.data, scales)


def is_quantised(module: nn.Module) -> bool:
    """Whether this layer is one that `quantise` made; not so peft's, which wraps one."""
    return type(module).__module__.startswith("bitsandbytes.")


def rounded_weight(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """A weight rounded to 8 or 4 bits, in its own dtype and on its own device."""
    layer = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, device=tensor.device, dtype=tensor.dtype)
    layer.weight.data = tensor
    return dequantised_weight(quantise_layer(layer, bits)).to(tensor)


def plain_state(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A state with dequantised weights in place of the codes and scales of the quantised layers of `model`."""
    layers = {name: module for name, module in model.named_modules() if is_quantised(module)}
    state = {name: tensor for name, tensor in tensors.items() if not _is_code(name, layers)}
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    return state | {f"{name}.weight": dequantised_weight(layer).to(dtype).cpu() for name, layer in layers.items()}


def _is_code(name: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a tensor of a state belongs to a quantised layer, other than as its bias."""
    layer, tensor_name = name, ""
    while layer and layer not in layers:
        layer, _, last = layer.rpartition(".")
        tensor_name = f"{last}.{tensor_name}" if tensor_name else last
    return bool(layer) and tensor_name != "bias"
