"""Reads and writes weights in the official layout, one tensor at a time.

Published folders have no completeness marker; those that `save` writes have `complete.json` with every file's size,
which `load` checks.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lumen_hpc.errors import UserError
from lumen_hpc.files import sync_file

from . import placement
from .chat import Tokenizer
from .config import PARTS, NVILAConfig
from .config_files import dump_json, read_config, read_json
from .model import NVILA
from .packing import require_default_device
from .tensors import INDEX, read_tensors, weight_files, write_tensors

COMPLETE = "complete.json"
SHARD_BYTES = 5_000_000_000


@torch.inference_mode(False)  # what is created within cannot learn, nor be called outside
def load(
    folder: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    attention: str = "auto",
    memory: Mapping[placement.Device, int | str] | None = None,
) -> NVILA:
    """Read a checkpoint: the official layout, or the flat one of `NVILA-8B-hf`.

    dtype: of the weights, also by its name; None: as stored. attention: `sdpa`, `eager`, `flash`, `flex`, or `auto`
    (flash if it can run, else sdpa). Weights go straight to `device`, one tensor at a time, so the peak is the model
    plus one tensor. The model is in evaluation mode.

    memory: for a model that one device cannot hold, how much of it each may take, as in `{0: "20GiB", "cpu": "60GiB",
    "disk": "1TB"}`, in that order (`placement`); `device` is then ignored. `device="auto"`: the same, with the free
    memory. Raises UserError naming a file or tensor that is missing, cut short or unfit.
    """
    folder, dtype = Path(folder), _torch_dtype(dtype)
    require_default_device()
    config = read_config(folder)
    _check_marker(folder)
    model = _build(folder, config, attention)
    _check_vocabulary(model)
    if device == "auto":
        memory = memory or placement.free_memory()
    device_map = placement.device_map(model, dtype or getattr(torch, config.dtype), memory) if memory else None
    first_device = device if device_map is None else _torch_device(device_map[placement.FIXED_MODULES[0]])
    on_disk: dict[str, dict[str, Any]] = {}
    for name, tensor, file in _fitting_weights(folder, model, dtype):
        location = first_device if device_map is None else placement.device_of(name, device_map)
        if location == "disk":
            flat = not (folder / "llm").is_dir()
            on_disk[name] = placement.disk_entry(name, file, flat, dtype or tensor.dtype)
            location = "meta"
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.to(_torch_device(location), dtype)))
    if config.llm.get("tie_word_embeddings"):
        model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    _make_buffers(model, first_device, on_disk)
    model.eval()
    if device_map is not None:
        model.requires_grad_(False)
        placement.dispatch(model, device_map, on_disk)
    return model


def _fitting_weights(folder: Path, model: NVILA, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """The tensors of `read_weights`, one per parameter; with `dtype` None all must have the same dtype.

    Raises UserError naming the file and tensor that does not fit, and at the end the parameters without a tensor.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    missing_names = set(shapes)
    first_stored: tuple[torch.dtype, Path] | None = None
    for name, tensor, file in read_weights(folder):
        if name not in shapes:
            if name == "llm.lm_head.weight" and model.config.llm.get("tie_word_embeddings"):
                continue
            raise UserError(f"{file}: tensor {name!r} has no place in this model; does config.json belong to it?")
        if tensor.shape != shapes[name]:
            raise UserError(f"{file}: {name} is {tuple(tensor.shape)}, config.json needs {tuple(shapes[name])}")
        first_stored = first_stored or (tensor.dtype, file)
        if not tensor.is_floating_point():
            raise UserError(f"{file}: {name} is stored as {_dtype_name(tensor.dtype)}: quantised weights are not read")
        if dtype is None and tensor.dtype != first_stored[0]:
            raise UserError(
                f"{file}: {name} is stored as {_dtype_name(tensor.dtype)}, "
                f"{first_stored[1]} holds {_dtype_name(first_stored[0])}; hint: load with one dtype, "
                "as in dtype=torch.bfloat16"
            )
        if not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise UserError(f"{file}: {name} holds values that are no numbers (NaN or infinity): copy it again")
        if name not in missing_names:
            raise UserError(f"{file}: {name} is stored in an earlier file too; keep one of the two")
        missing_names.discard(name)
        yield name, tensor, file
    if missing_names:
        raise UserError(
            f"{folder} lacks the weights of {sorted(missing_names)[:3]}{' …' if len(missing_names) > 3 else ''}: "
            "copy it again"
        )


def _build(folder: Path, config: NVILAConfig, attention: str) -> NVILA:
    """The model without weights. Raises UserError for values in its json files that transformers cannot take."""
    try:
        with torch.device("meta"):
            return NVILA(config, Tokenizer.from_files(config.files), kernel=attention)
    except UserError:
        raise
    except Exception as error:  # of any type: for wrong types, impossible shapes, unknown names
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: no model can be built from its config.json files ({reason})") from None


def _torch_device(device: Any) -> torch.device:
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype of a name. Raises UserError for one without floating-point numbers."""
    torch_dtype = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(torch_dtype, torch.dtype) and torch_dtype.is_floating_point):
        raise UserError(f"dtype={dtype!r}: use one such as torch.bfloat16, its name, or None for the stored one")
    return torch_dtype


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_vocabulary(model: NVILA) -> None:
    """Refuse token ids without a row in the embedding, which on a GPU end in a device-side assertion."""
    rows = model.llm.config.vocab_size
    if (largest := model.tokenizer.largest_text_id) >= rows:
        raise UserError(
            f"the tokenizer in llm/ has token id {largest}, but vocab_size={rows} in llm/config.json: "
            "tokenizer and weights belong to different checkpoints"
        )


def _make_buffers(model: NVILA, device: torch.device | str, on_disk: Collection[str] = ()) -> None:
    """Create the buffers that no file holds: rotary frequencies, positions of patches."""
    rotary = model.llm.model.rotary_emb
    model.llm.model.rotary_emb = type(rotary)(config=rotary.config).to(device)
    embeddings = getattr(model.vision_tower, "vision_model", model.vision_tower).embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device).expand(1, -1)
    unset_names = [
        name
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_meta and name not in on_disk
    ]
    assert not unset_names, f"never given a value: {unset_names}"


def read_files(folder: str | Path) -> list[Path]:
    """The files that `load` reads, sorted: configuration, tokenizer, weights; no others in the folder."""
    folder = Path(folder)
    config = read_config(folder)
    flat = not (folder / "llm").is_dir()
    paths = {folder / "config.json"} | {folder / (Path(name).name if flat else name) for name in config.files}
    for part in [""] if flat else PARTS:
        paths |= {folder / part / "config.json", *weight_files(folder / part)}
        if (index := folder / part / INDEX).is_file():
            paths.add(index)
    return sorted(paths)


def read_weights(folder: str | Path) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """(parameter name, tensor, file) of all stored tensors but the heads, which NVILA does not use."""
    folder = Path(folder)
    flat = not (folder / "llm").is_dir()
    for part in [""] if flat else PARTS:
        for file in weight_files(folder / part):
            for key, tensor in read_tensors(file):
                name = _parameter_name(key if flat else f"{part}.{key}")
                if name is not None:
                    yield name, tensor, file


def _parameter_name(official: str) -> str | None:
    part, _, rest = official.partition(".")
    if part == "vision_tower":
        rest = rest.removeprefix("vision_tower.").removeprefix("vision_model.")
        if rest.startswith("head.") or rest == "embeddings.position_ids":
            return None
    return f"{part}.{rest}"


def save(model: NVILA, folder: str | Path, tensors: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write the official layout atomically: into a sibling `.partial` folder, synced, marked, then renamed.

    `tensors` replaces `model.state_dict()` if that is sharded over processes (same names). An existing checkpoint at
    `folder` is replaced (for an instant it is `.old`). Returns the folder.
    """
    folder = Path(folder)
    tensors = model.state_dict() if tensors is None else tensors
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_layout(model.config, partial, tensors)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the disk may be full
        raise
    _put_in_place(partial, folder)
    return folder


def _write_layout(config: NVILAConfig, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    config = config.with_dtype(tensors["llm.model.embed_tokens.weight"].dtype)
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    contents = {"config.json": dump_json(config.root), **config.files}
    contents |= {f"{part}/config.json": dump_json(getattr(config, part)) for part in PARTS}
    for name, content in contents.items():
        _write(folder / name, content)
    for part in PARTS:
        prefix = "vision_model." if part == "vision_tower" else ""
        names = {prefix + name.removeprefix(f"{part}."): name for name in tensors if name.startswith(f"{part}.")}
        if config.llm.get("tie_word_embeddings"):
            names.pop("lm_head.weight", None)
        _save_part(folder / part, names, tensors)
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    _write(folder / COMPLETE, dump_json({"files": sizes}))


def _save_part(folder: Path, names: dict[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Shards of at most 5 GB in the order of the names, with transformers' file names and index."""
    shards: list[dict[str, str]] = [{}]
    filled, total = 0, 0
    for official in sorted(names):
        tensor = tensors[names[official]]
        size = tensor.numel() * tensor.element_size()
        if filled and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][official] = names[official]
        filled += size
        total += size
    weight_map: dict[str, str] = {}
    for place, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{place:05d}-of-{len(shards):05d}.safetensors"
        content = {official: tensors[name].detach().to("cpu").contiguous() for official, name in shard.items()}
        write_tensors(content, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write(folder / INDEX, dump_json(index))


def _put_in_place(partial: Path, folder: Path) -> None:
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    sync_file(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _check_marker(folder: Path) -> None:
    if folder.name.endswith(".partial"):
        raise UserError(f"{folder} is an unfinished save; use a folder without .partial")
    if not (folder / COMPLETE).is_file():
        return
    sizes = read_json(folder / COMPLETE).get("files")
    if not isinstance(sizes, dict):
        raise UserError(f"{folder / COMPLETE} lists no files: copy the checkpoint again")
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing, though {COMPLETE} names it: copy the checkpoint again")
        if file.stat().st_size != size:
            raise UserError(
                f"{file} has {file.stat().st_size} bytes, {COMPLETE} says {size}: copy the checkpoint again"
            )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync_file(path)
