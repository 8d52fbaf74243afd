"""`final/` to the flat layout of `NVILA-8B-hf`: one folder that the hub, SGLang and this package's plugin read.

Weights go over one file at a time under the names that SGLang's `models/nvila.py` loads: `llm.*`,
`mm_projector.layers.*`, `vision_tower.vision_model.*`. Its code fixes three scales from 448 px; other families are
read by this package alone, and the model card says so.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lumen_hpc.errors import UserError
from lumen_hpc.nvila.chat import VIDEO, Tokenizer
from lumen_hpc.nvila.config import PARTS, NVILAConfig
from lumen_hpc.nvila.config_files import dump_json, read_config
from lumen_hpc.nvila.tensors import read_tensors, weight_files, write_tensors
from lumen_hpc.plain_text import visible

REMOTE_CODE = "Efficient-Large-Model/NVILA-8B-hf"
"""The hub's repository whose code reads this layout; `auto_map` names it, nothing is downloaded here."""
_EXCLUDED_KEYS = ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg", "resume_path", "_name_or_path")
"""Keys of the root config.json that repeat the parts or hold paths of the machine that trained."""
_CODE_KEYS = ("auto_map", "custom_pipelines")
"""Keys that name Python to be run: a base's author would run it where the export is loaded with trust_remote_code."""


def export(source: Path, target: Path, card: str) -> list[Path]:
    """Write the flat layout of a checkpoint in the official one; returns its files.

    The folder appears whole or not at all. Raises UserError if it exists, or if the source is no official checkpoint.
    """
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists already; remove it or choose another folder")
    if not (source / "llm").is_dir():
        raise UserError(f"{source}: no llm/ inside; an export starts from the official layout, a run's final/")
    config = read_config(source)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in small_files(config).items():
        (partial / name).write_bytes(content)
    (partial / "README.md").write_text(visible(card))
    _write_weights(source, partial)
    partial.rename(target)
    return sorted(target.iterdir())


def small_files(config: NVILAConfig) -> dict[str, bytes]:
    """Everything but weights and card: configuration, tokenizer, preprocessing, chat template."""
    from .hf_checkpoint import chat_template

    files = {path.split("/", 1)[1]: _remove_code(path, content) for path, content in config.files.items()}
    return files | {
        "config.json": dump_json(flat_config(config)),
        "processor_config.json": dump_json(
            {
                "auto_map": {"AutoProcessor": f"{REMOTE_CODE}--processing_nvila.NVILAProcessor"},
                "processor_class": "NVILAProcessor",
            }
        ),
        "chat_template.jinja": chat_template(config).encode(),
    }


def flat_config(config: NVILAConfig) -> dict[str, Any]:
    """`config.json` of the flat layout; keys that decide the family are written out, though NVILA-8B may go without."""
    lite = config.aspect == "dynamic"
    tokenizer = Tokenizer.from_files(config.files)
    return _keep_safe_keys(config.root) | {
        "architectures": ["NVILALiteForConditionalGeneration" if lite else "NVILAForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": f"{REMOTE_CODE}--configuration_nvila.NVILAConfig",
            "AutoModel": f"{REMOTE_CODE}--modeling_nvila.NVILAForConditionalGeneration",
        },
        "image_token_id": tokenizer.image,
        "mm_projector_type": config.projector,
        "model_type": "nvila_lite" if lite else "nvila",
        "text_config": _keep_safe_keys(config.llm),
        "video_token_id": tokenizer.id(VIDEO),
        "vision_config": _keep_safe_keys(config.vision_tower),
    }


def _keep_safe_keys(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in (*_EXCLUDED_KEYS, *_CODE_KEYS)}


def _remove_code(path: str, content: bytes) -> bytes:
    """A small file as it is, but for keys of a json object that name code."""
    if not path.endswith(".json") or not any(key.encode() in content for key in _CODE_KEYS):
        return content
    values = json.loads(content)
    return dump_json(_keep_safe_keys(values)) if set(_CODE_KEYS) & set(values) else content


def _write_weights(source: Path, target: Path) -> None:
    """One file for each of the source's, so that memory holds a single file's tensors."""
    files = [(part, file) for part in PARTS for file in weight_files(source / part)]
    weight_map: dict[str, str] = {}
    total = 0
    for number, (part, file) in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {f"{part}.{key}": tensor for key, tensor in read_tensors(file)}
        write_tensors(tensors, target / name)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (target / "model.safetensors.index.json").write_bytes(dump_json(index))


_PATH = re.compile(rb"(?:(?<![\w.:/-])|file://)/[A-Za-z0-9_]+/[\w./-]+")


def require_clean(files: Iterable[Path], sentences: Iterable[str]) -> None:
    """Refuse an export with a path of this machine or a sentence of the training data.

    `sentences` are the texts of the run's training records, compared as they stand and as json writes them, ignoring
    case and line breaks; those under 30 characters ("Yes.") are common and left out. Weights, which hold only numbers,
    and the vocabulary are not searched.
    """
    texts = {
        path: path.read_bytes()
        for path in files
        if path.suffix != ".safetensors" and path.name not in ("tokenizer.json", "vocab.json", "merges.txt")
    }
    for path, content in texts.items():
        if match := _PATH.search(content):
            raise UserError(f"{path.name} holds a path of this machine: {match[0].decode()}; nothing was published")
    plain_texts = {path: _normalise(content.decode(errors="replace")) for path, content in texts.items()}
    for sentence in set(map(str.strip, sentences)):
        if len(sentence) < 30:
            continue
        forms = {sentence, *(json.dumps(sentence, ensure_ascii=ascii)[1:-1] for ascii in (True, False))}
        forms = {_normalise(form) for form in forms}
        for path, text in plain_texts.items():
            if any(form in text for form in forms):
                raise UserError(f"{path.name} holds a text of a training record ({len(sentence)} characters)")


def _normalise(text: str) -> str:
    """Lower case, one space between words."""
    return " ".join(text.casefold().split())
