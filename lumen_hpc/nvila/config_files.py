"""Reads a checkpoint's configuration: the json and tokenizer files of the official and of the flat layout.

Official layout: a root `config.json` beside `llm/`, `vision_tower/` and `mm_projector/`, each with its own
`config.json`. The flat layout of `NVILA-8B-hf` (one `config.json` with `text_config` and `vision_config`) is read too;
saving always writes the official one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumen_hpc.errors import UserError
from lumen_hpc.files import read_bytes
from lumen_hpc.weights import require_self_contained

from .config import PARTS, NVILAConfig


def read_config(folder: str | Path) -> NVILAConfig:
    """Read a checkpoint's json and tokenizer files, without weights.

    Raises UserError naming a file that is missing, not json, or a link to a file outside the checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder at {folder}: give the folder that holds config.json and llm/")
    if not (folder / "config.json").exists() and (snapshots := sorted(folder.glob("snapshots/*/config.json"))):
        raise UserError(f"{folder} is a folder of the hub's cache: give the snapshot in it, {snapshots[0].parent}")
    _require_own_files(folder)
    require_self_contained(folder)
    root = read_json(folder / "config.json")
    try:
        return _read_flat(folder, root) if "text_config" in root else _read_official(folder, root)
    except UserError:  # is a ValueError too, and names its file already
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise UserError(
            f"{folder}: a value in its config.json is of another type than an NVILA's ({error}): copy it again"
        ) from None


def _read_official(folder: Path, root: dict[str, Any]) -> NVILAConfig:
    parts = {part: read_json(folder / part / "config.json") for part in PARTS}
    files = {}
    for part in PARTS:
        for path in sorted((folder / part).iterdir()):
            if path.is_file() and path.name != "config.json" and _is_small_model_file(path):
                files[f"{part}/{path.name}"] = _small_file(path)
    return NVILAConfig(root=root, files=files, **parts)


def _require_own_files(folder: Path) -> None:
    """Refuse a small file that is a link out of the checkpoint: saving and export would publish its target.

    Links within a folder, and the hub cache's from a snapshot to its blobs, stay with the checkpoint.
    """
    blobs = folder.resolve().parent.parent / "blobs"
    for path in sorted([*folder.iterdir(), *folder.glob("*/*")]):
        if not path.is_symlink() or not _is_small_model_file(path):
            continue
        target = path.resolve()
        if target.parent != blobs and not target.is_relative_to(path.parent.resolve()):
            raise UserError(
                f"{path} is a link to {target}, which is no file of this checkpoint; if it belongs there, copy it"
            )


def _is_small_model_file(path: Path) -> bool:
    """True for a small file of the model; not for macOS's shadow files (`._config.json`) and a trainer's state."""
    if path.name.startswith(".") or path.name == "trainer_state.json":
        return False
    return path.suffix in (".json", ".txt", ".jinja", ".model") and not path.name.endswith(".index.json")


def _small_file(path: Path) -> bytes:
    if path.suffix == ".json":
        read_json(path)  # raises if it is broken, before its first use
    return read_bytes(path)


def _read_flat(folder: Path, flat: dict[str, Any]) -> NVILAConfig:
    """Names as SGLang's NVILA models read them: `llm.*`, `mm_projector.layers.*`, `vision_tower.vision_model.*`.

    Those models fix what the flat config leaves out: three scales of the tower's size and 2x2 blocks (NVILA), or
    dynamic tiles and 3x3 blocks (NVILA-Lite). NVILA is the default.
    """
    vision, llm = dict(flat["vision_config"]), dict(flat["text_config"])
    lite = "lite" in f"{flat.get('model_type', '')} {flat.get('architectures', '')}".lower()
    side = int(vision["image_size"])
    root = {key: value for key, value in flat.items() if key not in ("text_config", "vision_config")}
    root |= {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        "dynamic_s2": flat.get("dynamic_s2", not lite),
        "image_aspect_ratio": flat.get("image_aspect_ratio", "dynamic" if lite else "dynamic_s2"),
        "s2_scales": flat.get("s2_scales", f"{side},{2 * side},{3 * side}"),
        "s2_resize_output_to_scale_idx": flat.get("s2_resize_output_to_scale_idx", -1),
        "mm_vision_select_layer": flat.get("mm_vision_select_layer", -2),
        "min_tiles": flat.get("min_tiles", 1),
        "max_tiles": flat.get("max_tiles", 12),
    }
    kind = flat.get("mm_projector_type", "mlp_downsample_3x3_fix" if lite else "mlp_downsample")
    projector = {"architectures": ["MultimodalProjector"], "mm_projector_type": kind, "model_type": "v2l_projector"}
    llm = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"} | llm
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False} | vision
    vision["architectures"] = ["SiglipVisionModel"]
    files = {
        ("vision_tower/" if path.name == "preprocessor_config.json" else "llm/") + path.name: _small_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "config.json" and _is_small_model_file(path)
    }
    return NVILAConfig(root=root, llm=llm, vision_tower=vision, mm_projector=projector, files=files)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file. Raises UserError naming a file that is missing or holds no object."""
    try:
        value = json.loads(read_bytes(path), object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} where an object belongs")
        return value
    except FileNotFoundError:
        raise UserError(f"{path} is missing: not a complete NVILA checkpoint in the official layout") from None
    except (OSError, ValueError, RecursionError) as error:  # broken bytes and broken json are ValueErrors
        raise UserError(f"{path} cannot be read as json: {error}") from None


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of json")


def dump_json(value: dict[str, Any]) -> bytes:
    """Json text as transformers writes it: two spaces, a final newline, keys in the given order."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
