"""Reads and writes safetensors files, one tensor at a time into its own memory.

The usual reader maps the whole file, so that its pages count in addition to the copies; here the peak is one tensor.
Format: 8 bytes of header length, a json header (dtype, shape, offsets), the data.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file

from lumen_hpc.errors import UserError
from lumen_hpc.files import sync_file

from .config_files import read_json

INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""The format's limit of a header [bytes]."""
SAMPLE = 4096
"""Bytes of each tensor that `sampled_digest` reads."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, from its index if it has one. Raises UserError naming a missing file."""
    index = folder / INDEX
    if index.is_file():
        names = read_json(index).get("weight_map", {})
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise UserError(f"{index}: its weight_map does not give the name of a file for each tensor")
        files = [folder / name for name in sorted(set(names.values()))]
        if outside_files := [file for file in files if file.parent != folder]:
            raise UserError(f"{index} names {outside_files[0]}, which does not lie beside it")
        if not files:
            raise UserError(f"{index} names no files under 'weight_map'")
        if (single_file := folder / "model.safetensors").is_file() and single_file not in files:
            raise UserError(
                f"{single_file} lies beside {index.name}, which does not name it: keep one of the two models"
            )
    elif (folder / "model.safetensors").is_file() or not any(folder.glob("model-*-of-*.safetensors")):
        files = [folder / "model.safetensors"]
    else:
        raise UserError(f"{index} is missing, though the weights beside it are in several files")
    for file in files:
        if not file.is_file():
            others = sorted(path.name for path in folder.glob("*.bin"))
            hint = f"; fix: save {others[0]} beside it as safetensors" if others else ""
            raise UserError(f"{file} is missing{f', though {index.name} names it' if index.is_file() else ''}{hint}")
    return files


def read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor in CPU memory) of everything in a file, in the order of its data.

    Raises UserError naming the file if it is cut short or no safetensors file.
    """
    with file.open("rb") as stream:
        data_start, entries = _read_header(file, stream)
        for name, entry in entries:
            if str(entry.get("dtype")) not in _DTYPES:
                raise UserError(f"{file}: {name} is stored as {entry.get('dtype')}; use one of {sorted(_DTYPES)}")
            try:
                begin, end = entry["data_offsets"]
                raw = torch.empty(end - begin, dtype=torch.uint8)
                stream.seek(data_start + begin)
                stream.readinto(memoryview(raw.numpy()))
                tensor = raw.view(_DTYPES[entry["dtype"]]).view(entry["shape"])
            except (RuntimeError, ValueError, TypeError, KeyError):
                raise UserError(f"{file}: {name} does not fit its header {entry}: copy the file again") from None
            yield name, tensor


def sampled_digest(file: Path) -> str:
    """SHA-256 of a file's header and of the first SAMPLE bytes of every tensor, which tells trained models apart.

    It reads a few MB of 15 GB. Raises UserError as `read_tensors` does.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        data_start, entries = _read_header(file, stream)
        for name, entry in entries:
            begin, end = entry["data_offsets"]
            stream.seek(data_start + begin)
            digest.update(json.dumps([name, entry]).encode())
            digest.update(stream.read(min(SAMPLE, end - begin)))
    return digest.hexdigest()


def _read_header(file: Path, stream: BinaryIO) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
    """Where the data begins, and (name, entry) of every tensor in the order of its data."""
    size = file.stat().st_size
    length = int.from_bytes(stream.read(8), "little")
    try:
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise ValueError("its header does not fit")
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        offset = 0
        for name, entry in entries:
            begin, end = entry["data_offsets"]
            if begin != offset or not begin <= end:  # otherwise a small file could claim terabytes
                raise ValueError(f"{name} does not begin where the tensor before it ends")
            offset = end
        if 8 + length + offset != size:
            raise ValueError(f"{size} bytes where its header says {8 + length + offset}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}): copy it again") from None
    return 8 + length, entries


def write_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file, synced, with the mode of any new file (safetensors itself gives it 0600)."""
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    save_file(dict(tensors), file, metadata={"format": "pt"})
    file.chmod(mode)
    sync_file(file)
