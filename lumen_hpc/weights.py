"""Where a model's weights lie, by one rule for all stages, and whether they are what was fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumen_hpc.errors import UserError
from lumen_hpc.files import read_bytes, sha256

NOTE = "fetched.json"
"""In the profile's cache: the revision, hashes, sizes and times of what stage=fetch staged or found there."""
REVISIONS = {
    "Qwen/Qwen2.5-32B-Instruct": "5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd",
    "meta-llama/Llama-3.1-405B-Instruct-FP8": "64a54b704768dfd589a3e4ac05d546052f67f4fd",
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "9eb2daaa8597bf192a8b0e73f848f3a102794df5",
}
"""Hub name → commit that stage=fetch takes, where two independent projects have published it; else the newest."""


def locate(name: str, cache: str | Path) -> Path:
    """A model's folder: `name` where it is an absolute path, else `<cache>/<last part>`.

    `name` is a setting such as `train.base` or `rewrite.engine.model`: a path, which the command line has made
    absolute, or a hub name that stage=fetch has staged in the profile's cache. The folder need not exist. A folder of
    the hub's name in the working directory does not count: somebody may have put it there meanwhile.
    """
    given = Path(name).expanduser()
    if given.is_absolute():
        return given
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
    """Returns a folder of weights about to be loaded, if it holds what stage=fetch recorded, or it recorded nothing.

    A file whose size and time are the recorded ones is not read again; any other is hashed. Raises UserError for a file
    that differs, is missing or was added: a new index would lead to other weights.
    """
    file = Path(cache).expanduser() / NOTE
    if folder.parent.resolve() != file.parent.resolve() or not file.exists():
        return folder
    notes = json.loads(file.read_text())
    noted = next((entry for name, entry in notes.items() if name.rsplit("/", 1)[-1] == folder.name), None)
    if noted is None:
        return folder
    found = _files(folder)
    for name in sorted(found.keys() | noted["files"].keys()):
        if name not in found:
            reason = "is missing"
        elif name not in noted["files"]:
            reason = "was not fetched"
        elif noted.get("status", {}).get(name) == _status(found[name]) or sha256(found[name]) == noted["files"][name]:
            continue
        else:
            reason = "has another SHA-256"
        raise UserError(
            f"{folder}: {name} {reason}, by {file}; fetch the model again into an empty folder, or record it anew by "
            f"deleting its entry there and running stage=fetch"
        )
    return folder


_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")


def require_self_contained(folder: Path) -> None:
    """Raises UserError for a model's folder whose files lead to other weights, or to code on the hub.

    transformers follows an adapter to the base that it names and loads an attention kernel from the hub; vLLM loads the
    model that a speculator's config.json names.
    """
    for part in (folder, folder / "llm"):
        if found := next((name for name in _ADAPTERS if (part / name).exists()), ""):
            raise UserError(f"{part} holds an adapter ({found}), which belongs to a base; give the merged model")
    try:
        config = json.loads(read_bytes(folder / "config.json"))
    except (OSError, ValueError, RecursionError):  # whoever loads the folder says so
        return
    if isinstance(config, dict) and "speculators_config" in config:
        raise UserError(f"{folder}/config.json is a speculator's, which names another model; give that one's folder")
    if kernel := _hub_kernel(config):
        raise UserError(f"{folder}/config.json takes attention code from the hub ({kernel!r}); remove that key")


def _hub_kernel(value: Any) -> str:
    """The first attention implementation in a configuration that names a repository; empty if none does."""
    if not isinstance(value, dict):
        return ""
    for key, item in value.items():
        if "attn_implementation" in key and (found := next((name for name in _texts(item) if "/" in name), "")):
            return found
        if found := _hub_kernel(item):
            return found
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
