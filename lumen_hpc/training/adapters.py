"""LoRA adapters: low-rank updates of linear layers are trained, the base is frozen (through `peft`, arXiv 2106.09685).

An 8 B model's optimizer state needs several GPUs; that of its adapters needs one. `train.tune` names the parts that get
adapters. Checkpoints hold only adapters and their optimizer state; the export merges them into the official layout
and also writes them in peft's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lumen_hpc.config import schema
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import NVILA, layers
from lumen_hpc.nvila.tensors import write_tensors
from lumen_hpc.training import quantisation

_FACTOR = re.compile(r"(.+)\.lora_([AB])\.default\.weight")
FOLDER = "adapter"
"""The adapters' folder beside the merged weights."""


def target_names(model: NVILA, train: schema.Train) -> list[str]:
    """Names of the linear layers that get an adapter, in the model's order. Raises UserError if there is none."""
    active_layer_ids = {id(layer) for part in layers.layers(model).values() for layer in part}
    roots = {name: module for name, module in model.named_modules() if id(module) in active_layer_ids}
    roots["mm_projector"] = model.mm_projector
    part_names = {"mm_projector": "projector"}
    targets = set(train.adapter.targets)
    names = [
        f"{root}.{name}"
        for root, module in roots.items()
        if part_names.get(root, root.split(".")[0]) in train.tune
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear) and (not targets or name.rpartition(".")[2] in targets)
    ]
    if not names:
        raise UserError(
            f"train.adapter.targets={train.adapter.targets}: no linear layer of {train.tune} has such a name; "
            "use some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, out_proj, fc1, fc2, "
            "or [] for all"
        )
    return names


def inject(model: NVILA, train: schema.Train, seed: int) -> None:
    """Put adapters into the model; only they are trained. `seed` determines their first values, which change no output.

    The layers under them are quantised first if `train.adapter.base_bits` is 8 or 4.
    """
    names = target_names(model, train)
    if train.adapter.base_bits < 16:
        quantisation.quantise(model, names, train.adapter.base_bits)
    config = _config(names, train.adapter)
    from peft import inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_FACTOR.fullmatch(name) is not None)


def _config(targets: list[str], adapter: schema.Adapter) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=targets, bias="none"
    )


def split(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """A state with adapters → (the base's tensors under their own names, {layer: {"A": …, "B": …}})."""
    base: dict[str, torch.Tensor] = {}
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match[1], {})[match[2]] = tensor
        else:
            base[name.replace(".base_layer.", ".")] = tensor
    return base, factors


def merge(
    base: Mapping[str, torch.Tensor], factors: Mapping[str, Mapping[str, torch.Tensor]], scale: float, bits: int = 16
) -> dict[str, torch.Tensor]:
    """The base's tensors with every adapter added: W + scale·B·A, computed in float32, in the base's dtype.

    `bits`: W is first rounded to so many, for adapters that were trained over a quantised base.
    """
    tensors = dict(base)
    for layer, pair in factors.items():
        weight = base[f"{layer}.weight"]
        weight = weight if bits == 16 else quantisation.rounded_weight(weight, bits)
        update = scale * (pair["B"].to(weight.device).float() @ pair["A"].to(weight.device).float())
        tensors[f"{layer}.weight"] = (weight.float() + update).to(weight.dtype)
    return tensors


def scale(adapter: Mapping[str, Any]) -> float:
    """LoRA's alpha over its rank, from the settings as a fingerprint holds them."""
    return adapter["alpha"] / adapter["rank"]


def save_peft(factors: Mapping[str, Mapping[str, torch.Tensor]], adapter: schema.Adapter, folder: Path) -> None:
    """Write the adapters as peft's `PeftModel.from_pretrained` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{layer}.lora_{factor}.weight": tensor.detach().cpu().contiguous()
        for layer, pair in factors.items()
        for factor, tensor in pair.items()
    }
    write_tensors(tensors, folder / "adapter_model.safetensors")
    _config(sorted(factors), adapter).save_pretrained(str(folder))
