"""Checkpoints that are either whole or not there, written while training goes on.

`checkpoints/step-000400/` appears by one rename after every rank's files are on disk, and holds `COMPLETE.json`:
the step, what the run was, and each file's length and SHA-256. A folder without the marker, or with a file that
does not match it, is passed over with a warning and the one before is taken.

DeepSpeed writes its own layout through `StagedWriter`, so its tools (zero_to_fp32, ds_to_universal) read ours.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lumen_hpc.errors import UserError
from lumen_hpc.training import accelerator
from lumen_hpc.training.ranks import Ranks

CheckpointEngine = accelerator.deepspeed.runtime.checkpoint_engine.checkpoint_engine.CheckpointEngine
log = logging.getLogger(__name__)
MARKER = "COMPLETE.json"
TAG = "deepspeed"
"""DeepSpeed's folder inside a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    """Optimizer steps done."""
    world_size: int
    state: dict[str, Any]
    """What the caller gave to `save`."""
    files: dict[str, list[Any]]
    """Relative path: [bytes, sha256]."""


def _copied(value: Any) -> Any:
    """The value with every tensor copied to main memory: what the writing thread may keep while training goes on."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((k, _copied(v)) for k, v in value.items())
    if isinstance(value, list):
        return [_copied(v) for v in value]
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_copied(v) for v in value)
    return value


class StagedWriter(CheckpointEngine):
    """DeepSpeed's checkpoint plug: `save` only copies; the copies are handed over by `take`."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "lumen"
        self._staged: list[tuple[Any, Path]] = []

    def create(self, info: Any) -> None:
        self._staged = []

    def save(self, state_dict: Any, path: str) -> None:
        self._staged.append((_copied(state_dict), Path(path)))

    def load(self, path: str, map_location: Any = None) -> Any:
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: Any) -> bool:
        return True

    def preserves_storage_sharing(self) -> bool:
        return False  # `save` copies each tensor alone, so no storage is dragged along

    def take(self) -> list[tuple[Any, Path]]:
        staged, self._staged = self._staged, []
        return staged


class _Hashed:
    """A file that hashes what is written to it, so that a checkpoint is read back only when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self._bytes += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> list[Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return [self._bytes, self._hash.hexdigest()]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
    staged = path.with_name(path.name + ".tmp")
    with staged.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def rng_state() -> dict[str, Any]:
    """Every generator that training could draw from."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Checkpoints:
    """The checkpoint folder of one training, as one rank sees it."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int, wait: float = 1800.0) -> None:
        """`keep`: complete checkpoints that stay; `wait`: seconds rank 0 waits for the other ranks' files."""
        self._folder, self._ranks, self._keep, self._wait = folder, ranks, keep, wait
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.writer = StagedWriter()
        if ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".step-*"):
                shutil.rmtree(left)

    def save(self, step: int, state: dict[str, Any], stage: Callable[[Path], None]) -> float:
        """Saves after `step` steps; `stage(folder)` has DeepSpeed write through `self.writer`. All ranks call it.

        Returns the seconds for which training stood still; the writing itself goes on in a thread.
        """
        began = time.perf_counter()
        self.finish()
        staging = self._folder / f".step-{step:06d}"
        if self._ranks.first:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
        dist.barrier()
        stage(staging)
        files = self.writer.take()
        files.append((rng_state(), staging / f"rng-{self._ranks.rank:05d}.pt"))
        marker = {"step": step, "world_size": self._ranks.world_size, "state": state}
        self._thread = threading.Thread(target=self._write, args=(staging, files, marker), name=f"checkpoint-{step}")
        self._thread.start()
        return time.perf_counter() - began

    def finish(self) -> None:
        """Waits for the checkpoint that is being written; raises what went wrong in the writing."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            raise UserError(
                f"a checkpoint could not be written to {self._folder}: {self._failure}; "
                f"the last complete one is {self.newest()}"
            ) from self._failure

    def _write(self, staging: Path, files: list[tuple[Any, Path]], marker: dict[str, Any]) -> None:
        try:
            sums = {}
            for value, path in files:
                hashed = _Hashed(path)
                torch.save(value, hashed)
                sums[str(path.relative_to(staging))] = hashed.close()
            _write_json(staging / f"rank-{self._ranks.rank:05d}.json", sums)
            if self._ranks.first:
                self._complete(staging, marker)
        except BaseException as failure:  # handed to the training thread by finish()
            self._failure = failure

    def _complete(self, staging: Path, marker: dict[str, Any]) -> None:
        """Rank 0: when all ranks' files are there, the marker and the rename that makes them a checkpoint."""
        parts = [staging / f"rank-{rank:05d}.json" for rank in range(self._ranks.world_size)]
        deadline = time.monotonic() + self._wait
        while missing := [part.stem for part in parts if not part.exists()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{', '.join(missing)} did not write their part in {self._wait:.0f} s")
            time.sleep(0.01)
        files = {name: entry for part in parts for name, entry in json.loads(part.read_text()).items()}
        _write_json(staging / MARKER, {**marker, "files": files})
        final = self._folder / staging.name.removeprefix(".")
        shutil.rmtree(final, ignore_errors=True)  # a corrupt one of the same step, or it would not be written again
        staging.rename(final)
        complete = _marked(self._folder)
        for old in complete[: -self._keep] if self._keep else []:
            shutil.rmtree(old)

    def newest(self) -> Path | None:
        """The newest folder with a marker, unverified."""
        return next(iter(reversed(_marked(self._folder))), None)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose every file matches its marker; all ranks call it and get the same one.

        The ranks share the hashing. What is passed over is said, by rank 0, with the reason.
        """
        names: list[Any] = [sorted((f.name for f in self._folder.glob("step-*")), reverse=True)]
        dist.broadcast_object_list(names)  # nodes may see a shared folder at different ages
        for folder in (self._folder / name for name in names[0]):
            checkpoint, reason = _read(folder)
            if checkpoint is not None:
                reason = _damage(checkpoint, self._ranks.rank, self._ranks.world_size)
            reasons: list[str | None] = [None] * self._ranks.world_size
            dist.all_gather_object(reasons, reason)
            found = next((r for r in reasons if r), None)
            if not found:
                return checkpoint
            if self._ranks.first:
                log.warning("checkpoint %s is passed over: %s", folder, found)
        return None

    def universal(self, checkpoint: Checkpoint) -> Path:
        """The checkpoint converted for any number of ranks (DeepSpeed's universal form), made once, by rank 0."""
        target = checkpoint.folder / "universal"
        if self._ranks.first and not target.exists():
            staging = checkpoint.folder / ".universal"
            shutil.rmtree(staging, ignore_errors=True)
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "deepspeed.checkpoint.ds_to_universal",
                    "--inject_missing_state",
                    "--input_folder",
                    str(checkpoint.folder / TAG),
                    "--output_folder",
                    str(staging),
                ],
                capture_output=True,
                text=True,
                env={**os.environ, "DS_ACCELERATOR": accelerator.NAME},
            )
            if done.returncode:
                raise RuntimeError(
                    f"{checkpoint.folder} could not be converted for {self._ranks.world_size} ranks:\n"
                    + done.stderr[-2000:]
                )
            staging.rename(target)
        dist.barrier()
        return target

    def rng(self, checkpoint: Checkpoint) -> None:
        """Puts this rank's generators back, where the number of ranks is the checkpoint's."""
        if checkpoint.world_size == self._ranks.world_size:
            restore_rng(torch.load(checkpoint.folder / f"rng-{self._ranks.rank:05d}.pt", weights_only=False))


def _marked(folder: Path) -> list[Path]:
    return sorted(marker.parent for marker in folder.glob(f"step-*/{MARKER}"))


def _read(folder: Path) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint a marker describes, or why there is none."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        return Checkpoint(folder, marker["step"], marker["world_size"], marker["state"], marker["files"]), None
    except FileNotFoundError:
        return None, "it has no marker, so it was not finished"
    except (ValueError, KeyError) as error:
        return None, f"its marker cannot be read ({error})"


def _damage(checkpoint: Checkpoint, rank: int, world_size: int) -> str | None:
    """What is wrong with this rank's share of the files."""
    for name in sorted(checkpoint.files)[rank::world_size]:
        path, (size, digest) = checkpoint.folder / name, checkpoint.files[name]
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if _hash(path) != digest:
            return f"{name} is not what was written (SHA-256 differs)"
    return None
