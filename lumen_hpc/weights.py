"""Locates a model's weights by one rule for all stages, and verifies that they are those that were fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumen_hpc.errors import UserError
from lumen_hpc.files import read_bytes, sha256

NOTE = "fetched.json"
"""File in the profile's cache: revisions, hashes, sizes and times of the files that stage=fetch staged or found."""
REVISIONS = {
    "Qwen/Qwen2.5-32B-Instruct": "5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd",
    "meta-llama/Llama-3.1-405B-Instruct-FP8": "64a54b704768dfd589a3e4ac05d546052f67f4fd",
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "9eb2daaa8597bf192a8b0e73f848f3a102794df5",
}
"""Hub name → commit that stage=fetch takes, where two independent projects have published it; else the newest."""


FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""The variable that lets torch unpickle only weights and plain values, whatever `torch.load` is asked for."""


def locate(name: str, cache: str | Path) -> Path:
    """A model's folder: `name` where it is an absolute path, else `<cache>/<last part>`.

    `name` is a setting such as `train.base` or `rewrite.engine.model`: a path, which the command line has made
    absolute, or a hub name that stage=fetch has staged in the profile's cache. The folder need not exist. A folder of
    the hub's name in the working directory does not count: somebody else may have put it there.
    """
    path = Path(name).expanduser()
    if path.is_absolute():
        return path
    return Path(cache).expanduser() / name.rsplit("/", 1)[-1]


def own_name(name: str) -> str:
    """A model's own name: the last part of a path or hub name; a snapshot in the hub's cache has its repository's."""
    *before, last = name.rstrip("/").split("/")
    if before[-1:] == ["snapshots"] and before[-2:-1] and before[-2].startswith("models--"):
        return before[-2].rpartition("--")[2]
    return last


def locate_experts(folder: str, cache: str | Path) -> Path:
    """TorchXRayVision's weights: the folder of `experts.weights`, or `<cache>/torchxrayvision` where that is empty."""
    return Path(folder or Path(cache) / "torchxrayvision").expanduser()


def note(folder: Path) -> dict[str, Any]:
    """What `verify` compares a folder with: {"files": {name: sha256}, "status": {name: [bytes, mtime_ns]}}."""
    files = _files(folder)
    return {
        "files": {name: sha256(path) for name, path in files.items()},
        "status": {name: _status(path) for name, path in files.items()},
    }


def verify(folder: Path, cache: str | Path) -> Path:
    """Returns a folder of weights about to be loaded, if it holds what stage=fetch recorded, or nothing was recorded.

    A file with the recorded size and time is not read; any other is hashed. Raises UserError for a file that differs,
    is missing or was added: a new index would lead to other weights.
    """
    note_file = Path(cache).expanduser() / NOTE
    if folder.parent.resolve() != note_file.parent.resolve() or not note_file.exists():
        return folder
    notes = json.loads(note_file.read_text())
    record = next((entry for name, entry in notes.items() if name.rsplit("/", 1)[-1] == folder.name), None)
    if record is None:
        return folder
    files = _files(folder)
    for name in sorted(files.keys() | record["files"].keys()):
        if name not in files:
            reason = "is missing"
        elif name not in record["files"]:
            reason = "was not fetched"
        elif record.get("status", {}).get(name) == _status(files[name]) or sha256(files[name]) == record["files"][name]:
            continue
        else:
            reason = "has another SHA-256"
        raise UserError(
            f"{folder}: {name} {reason}, by {note_file}; fetch the model again into an empty folder, or record it anew "
            f"by deleting its entry there and running stage=fetch"
        )
    return folder


_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")


def require_self_contained(folder: Path) -> None:
    """Raises UserError for a model's folder whose files refer to other weights, or to code on the hub.

    transformers follows an adapter to the base that it names and loads an attention kernel from the hub; vLLM loads the
    model that a speculator's config.json names.
    """
    for part in (folder, folder / "llm"):
        if adapter_file := next((name for name in _ADAPTERS if (part / name).exists()), ""):
            raise UserError(f"{part} holds an adapter ({adapter_file}), which belongs to a base; give the merged model")
    try:
        config = json.loads(read_bytes(folder / "config.json"))
    except (OSError, ValueError, RecursionError):  # the loader reports it
        return
    if isinstance(config, dict) and "speculators_config" in config:
        raise UserError(f"{folder}/config.json is a speculator's, which names another model; give that one's folder")
    if kernel := _hub_kernel(config):
        raise UserError(f"{folder}/config.json takes attention code from the hub ({kernel!r}); remove that key")


def _hub_kernel(value: Any) -> str:
    """The first attention implementation of a configuration that names a repository; empty if none does."""
    if not isinstance(value, dict):
        return ""
    for key, item in value.items():
        if "attn_implementation" in key and (kernel := next((name for name in _texts(item) if "/" in name), "")):
            return kernel
        if kernel := _hub_kernel(item):
            return kernel
    return ""


def _texts(value: Any) -> list[str]:
    """A text, or the texts of a mapping from parts to them."""
    return [text for text in (value.values() if isinstance(value, dict) else [value]) if isinstance(text, str)]


def _files(folder: Path) -> dict[str, Path]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in paths}
    return {name: path for name, path in names.items() if not name.startswith(".cache/")}  # the hub client's own


def _status(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
