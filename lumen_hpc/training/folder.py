"""The folder of one training: which training it holds, who may write there, and how an earlier one is set aside."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks, broadcast_json
from lumen_hpc.errors import UserError
from lumen_hpc.files import sha256, write_json
from lumen_hpc.nvila.checkpoint import read_files
from lumen_hpc.nvila.tensors import sampled_digest
from lumen_hpc.training import record_index
from lumen_hpc.training.fingerprint import differences

log = logging.getLogger(__name__)
FOLDER, MARKER = "checkpoints", "COMPLETE.json"
"""The folder of checkpoints, and the file that marks a checkpoint as complete. They are not in checkpointing.py, which
imports DeepSpeed and so takes a second that opening a model does not need."""
RESULTS = (
    record_index.PARTS, record_index.FILE, "rejected.jsonl", FOLDER, "metrics.jsonl", "consumed.jsonl",
    "images_left_out.jsonl", "restarts.jsonl", "tensorboard", "final", "finished.json", "training.json",
)  # fmt: skip
"""Files that belong to one training and are moved with it; the rest of its folder belongs to the current job. The file
that identifies the training comes last, so that the next start completes a move that was interrupted."""


def fingerprint_of(train: schema.Train, records: str, base: Path, seed: int) -> dict[str, Any]:
    """Everything that determines a training's result: settings, hash of the records, identity of the base, seed.

    Raises UserError if `base` is no NVILA.
    """
    return {**_result_settings(train), "seed": seed, "records": records, "base": _identity(base)}


def _result_settings(train: schema.Train) -> dict[str, Any]:
    """The settings that determine the result; those of speed and location do not."""
    values = dataclasses.asdict(train)
    return {
        f"train.{field.name}": values[field.name]
        for field in dataclasses.fields(train)
        if not field.metadata.get("runtime_only")
        and field.name not in ("base", "loss_limit")  # its identity counts; a limit decides only when it stops
        and (field.name != "adapter" or train.adapter.kind != "none")
    }


def records_hash(path: Path) -> str:
    """The hash of a file of records. Raises UserError if it does not exist."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: run stage=instruct first")
    return sha256(path)


def _identity(base: Path) -> str:
    """A hash of the small files that `load` reads, and of the beginning of every tensor (weights may be 15 GB)."""
    if not (base / "config.json").is_file():
        raise UserError(f"{base} has no config.json: give the folder of a pretrained NVILA as train.base")
    digest = hashlib.sha256()
    for path in read_files(base):
        digest.update(f"{path.relative_to(base)} {path.stat().st_size}\n".encode())
        digest.update(sampled_digest(path).encode() if path.suffix == ".safetensors" else path.read_bytes())
    return digest.hexdigest()


def require_writable(out: Path, ranks: Ranks) -> None:
    """Raises UserError unless this rank can write where the results go."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{ranks.rank}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error}): training could not save") from None


@contextmanager
def training_lock(out: Path, ranks: Ranks) -> Iterator[None]:
    """Locks the folder against other jobs; all ranks call it, and all raise UserError if another job trains there."""
    with (out / "training.lock").open("a+") if ranks.first else nullcontext() as lock_file:
        holder = ""
        if lock_file is not None:
            try:
                fcntl.lockf(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock_file.truncate(0)
                lock_file.write(f"process {os.getpid()} on {socket.gethostname()}, job {ranks.job or 'none'}")
                lock_file.flush()
            except BlockingIOError:
                lock_file.seek(0)
                holder = lock_file.read()
            except OSError as error:  # a file system without locks
                log.warning("%s cannot be locked (%s): make sure that no other job trains there", out, error)
        if holder := broadcast_json(holder):
            raise UserError(f"another training is running in {out} ({holder}): wait for its end, or cancel it")
        yield


def finished_steps(out: Path, fingerprint: dict[str, Any]) -> int:
    """The steps of a finished training with exactly these settings; 0 if there is none."""
    try:
        summary = json.loads((out / "finished.json").read_text())
        same, step = not differences(summary["fingerprint"], fingerprint), int(summary["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
    return step if same and (out / "final" / "complete.json").is_file() else 0


def stored_fingerprint(out: Path) -> dict[str, Any] | None:
    """The fingerprint of the training in the folder `out`, None for a new folder. Raises UserError if it is broken."""
    file = out / "training.json"
    try:
        fingerprint = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        fingerprint = None
    if not isinstance(fingerprint, dict):
        raise UserError(
            f"{file} holds no JSON object (a full disk?): remove it, and the training goes on; its checkpoints hold "
            "the same settings"
        )
    return fingerprint


def set_aside(out: Path, fingerprint: dict[str, Any]) -> None:
    """Rank 0: moves another training's results to `earlier/`, and this one's back from there; nothing is deleted."""
    stored = stored_fingerprint(out)
    if stored is not None and differences(stored, fingerprint):
        destination = out / "earlier" / f"{max(_earlier_trainings(out), default=-1) + 1:03d}"
        destination.mkdir(parents=True)
        _move(out, destination)
        log.warning("%s has a training with other settings or records; it is kept in %s", out, destination)
        stored = None
    if stored is None:
        _bring_back(out, fingerprint)
    write_json(out / "training.json", fingerprint)


def _bring_back(out: Path, fingerprint: dict[str, Any]) -> None:
    """Moves the last training with this fingerprint out of `earlier/`, unless results here would be overwritten.

    So a setting that was mistyped, and refused only after the training was set aside, costs no work.
    """
    for _, folder in sorted(_earlier_trainings(out).items(), reverse=True):
        try:
            same = not differences(json.loads((folder / "training.json").read_text()), fingerprint)
        except (OSError, ValueError, AttributeError):  # an interrupted move, or another's file
            continue
        if same and not any((out / name).exists() and (folder / name).exists() for name in RESULTS):
            _move(folder, out)
            if not any(folder.iterdir()):
                folder.rmdir()
            log.warning("the training with these settings goes on: %s was set aside, and is back in %s", folder, out)
            return


def _earlier_trainings(out: Path) -> dict[int, Path]:
    """Number → folder of each training that was set aside."""
    return {int(folder.name): folder for folder in (out / "earlier").glob("[0-9]*") if folder.name.isdigit()}


def _move(source: Path, destination: Path) -> None:
    for name in RESULTS:
        if (source / name).exists():
            (source / name).rename(destination / name)
