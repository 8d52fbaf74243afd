"""Spreads a model that one device cannot hold: its language model's layers over several GPUs, main memory and disk.

`accelerate` moves what a layer needs to where it runs. The rest (tower, projector, embeddings, head: 3 of an 8B model's
16 GB in bfloat16) stays on the first device. This is for inference; in training DeepSpeed shards the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lumen_hpc.errors import UserError

if TYPE_CHECKING:
    from .model import NVILA

Device = int | str
"""A GPU's number, `cpu` or `disk`."""
LAYERS = "llm.model.layers."
FIXED_MODULES = ("vision_tower", "mm_projector", "llm.model.embed_tokens", "llm.model.norm", "llm.model.rotary_emb",
         "llm.lm_head")  # fmt: skip
"""Modules that stay on the first device."""
HEADROOM = 0.15
"""Share of a device's memory that is reserved for activations, keys and values."""


def free_memory() -> dict[Device, int]:
    """Bytes that weights may take on each device: the GPUs in order, main memory, disk."""
    from accelerate.utils import get_max_memory

    memory = {device: int(free * (1 - HEADROOM)) for device, free in get_max_memory().items()}
    return {**memory, "disk": 1 << 62}


def device_map(model: NVILA, dtype: torch.dtype | None, memory: Mapping[Device, int | str]) -> dict[str, Device]:
    """Module → device: the fixed parts on the first device, each layer on the first that has room.

    `model` may be on the meta device. `memory`: bytes, or accelerate's `20GiB`, by device in the order of preference.
    Raises UserError if the fixed parts do not fit, or a layer fits nowhere.
    """
    from accelerate.utils import convert_file_size_to_int

    room = {device: int(convert_file_size_to_int(size)) for device, size in memory.items()}
    first = next(iter(room))
    sizes = {name: _bytes(model.get_submodule(name), dtype) for name in FIXED_MODULES}
    if model.config.llm.get("tie_word_embeddings"):
        sizes["llm.lm_head"] = 0
    room[first] -= sum(sizes.values())
    if room[first] < 0:
        raise UserError(
            f"device {first} lacks {-room[first] / 1e9:.1f} GB for the parts that must be together (tower, projector, "
            "embeddings, head): take a larger one"
        )
    result: dict[str, Device] = dict.fromkeys(FIXED_MODULES, first)
    devices = iter(room)
    here = next(devices)
    for number, layer in enumerate(model.llm.model.layers):
        size = _bytes(layer, dtype)
        while room[here] < size:
            next_device = next(devices, None)
            if next_device is None:
                raise UserError(f"layer {number} fits on none of {', '.join(map(str, room))}: give more memory")
            here = next_device
        room[here] -= size
        result[f"{LAYERS}{number}"] = here
    return result


def _bytes(module: torch.nn.Module, dtype: torch.dtype | None) -> int:
    return sum(p.numel() * (dtype.itemsize if dtype else p.element_size()) for p in module.parameters())


def device_of(name: str, devices: Mapping[str, Device]) -> Device:
    """The device of a parameter, whose module is a key of `devices`."""
    return next(device for module, device in devices.items() if name == module or name.startswith(f"{module}."))


def dispatch(model: NVILA, devices: Mapping[str, Device], on_disk: Mapping[str, Mapping[str, Any]]) -> None:
    """Attach accelerate's hooks; `on_disk`: for each parameter on disk, its file and its name there.

    Parameters on disk stay in the checkpoint's own files, and are read whenever their layer runs.
    """
    from accelerate import dispatch_model

    dispatch_model(model, device_map=dict(devices), offload_index=dict(on_disk) or None, force_hooks=True)


def disk_entry(name: str, file: Path, flat: bool, dtype: torch.dtype) -> dict[str, Any]:
    """accelerate's entry for a parameter that stays in its file."""
    key = name if flat else name.removeprefix("llm.")
    return {"safetensors_file": str(file), "weight_name": key, "dtype": str(dtype).removeprefix("torch.")}


def device_for(weight_bytes: int, free_bytes: Sequence[int]) -> str:
    """The device for weights, with `free_bytes` on each GPU: `cpu`, `cuda`, or `auto` (spread)."""
    if not free_bytes:
        return "cpu"
    return "cuda" if weight_bytes <= free_bytes[0] * (1 - HEADROOM) else "auto"
