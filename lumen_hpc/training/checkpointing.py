"""Checkpoints that are either complete or absent, written while training continues.

`checkpoints/step-000400/` appears by one rename after every rank's files are on disk, and holds `COMPLETE.json`:
the step, the run's fingerprint, each file's length and SHA-256, and its own SHA-256. A folder without the marker, or
with a file that does not match it, is skipped with a warning, and the previous one is used.

DeepSpeed writes its own layout through `StagedWriter`, so its tools (zero_to_fp32, ds_to_universal) read ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lumen_hpc.distributed import Ranks, broadcast_json, gather_json, raise_on_all_ranks
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign, sha256, sync_folder, write_json
from lumen_hpc.training import accelerator
from lumen_hpc.training.folder import MARKER
from lumen_hpc.training.generators import restore_rng, rng_state
from lumen_hpc.watchdog import Beat

CheckpointEngine: Any = accelerator.deepspeed.runtime.checkpoint_engine.checkpoint_engine.CheckpointEngine
log = logging.getLogger(__name__)
TIMEOUT_S, GRACE_S = 1800.0, 60.0
"""How long rank 0 waits for the other ranks' files, and how long once this rank has failed [s]."""
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
    """The caller's own, as given to `save`."""
    files: dict[str, list[Any]]
    """Relative path: [bytes, sha256]."""


def _copied(value: Any) -> Any:
    """The value with every tensor copied to main memory, so that a thread can write it while training continues."""
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
    """DeepSpeed's checkpoint interface: `save` only copies; `take` returns the copies."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "lumen"
        self._staged: list[tuple[Any, Path]] = []

    def create(self, info: Any) -> None:
        self._staged = []

    def save(self, state_dict: Any, path: str) -> None:
        self._staged.append((_copied(state_dict), Path(path)))

    def load(self, path: str, map_location: Any = None) -> Any:
        return torch.load(path, map_location=map_location, weights_only=True)

    def commit(self, info: Any) -> bool:
        return True

    def preserves_storage_sharing(self) -> bool:
        return False  # `save` copies each tensor alone, so no storage is dragged along

    def take(self) -> list[tuple[Any, Path]]:
        staged, self._staged = self._staged, []
        return staged


class _HashingFile:
    """A file that hashes what is written to it, so that no checkpoint is read back just to hash it."""

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


class Checkpoints:
    """The checkpoint folder of one training, as one rank sees it."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int) -> None:
        """`keep`: complete checkpoints that stay."""
        self._folder, self._ranks, self._keep = folder, ranks, keep
        self._thread: threading.Thread | None = None
        self._failure = ""
        self._deadline = 0.0
        self.writer = StagedWriter()
        if ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_incomplete()

    def save(self, step: int, state: dict[str, Any], stage: Callable[[Path], None]) -> float:
        """Saves after `step` steps; `stage(folder)` has DeepSpeed write through `self.writer`. All ranks call it.

        Returns for how long training paused [s]; the writing continues in a thread.
        """
        start = time.perf_counter()
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
        self._deadline = time.monotonic() + TIMEOUT_S
        self._thread = threading.Thread(target=self._write, args=(staging, files, marker), name=f"checkpoint-{step}")
        self._thread.start()
        return time.perf_counter() - start

    @property
    def failed(self) -> bool:
        """Whether this rank failed to write its part of a checkpoint; `finish` raises the reason."""
        return bool(self._failure)

    def finish(self) -> None:
        """Waits for the checkpoint that is being written; all ranks call it, and all raise if one of them failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if failure := next((message for message in gather_json(self._failure) if message), ""):
            if self._ranks.first:  # the disk may be full
                self._remove_incomplete()
            raise write_error(self._folder, failure)

    def _remove_incomplete(self) -> None:
        for partial_folder in self._folder.glob(".step-*"):
            shutil.rmtree(partial_folder, ignore_errors=True)

    def abandon(self) -> None:
        """Called when this rank fails: from now on, rank 0 waits at most GRACE_S for the other ranks' files."""
        self._deadline = time.monotonic() + GRACE_S

    def _write(self, staging: Path, files: list[tuple[Any, Path]], marker: dict[str, Any]) -> None:
        try:
            digests = {}
            for value, path in files:
                file = _HashingFile(path)
                torch.save(value, file)
                digests[str(path.relative_to(staging))] = file.close()
            write_json(staging / f"rank-{self._ranks.rank:05d}.json", digests)
            if self._ranks.first:
                self._complete(staging, marker)
        except BaseException as failure:  # the training thread sees it in `failed` and `finish`
            # torch reports a write that failed as a wrong position in the file.
            cause = failure.__context__ if isinstance(failure.__context__, OSError) else failure
            self._failure = f"{socket.gethostname()}: {cause}"
            for _, path in files:  # makes room for the next file
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # so that rank 0 need not wait
                write_json(staging / f"rank-{self._ranks.rank:05d}.json", {})

    def _complete(self, staging: Path, marker: dict[str, Any]) -> None:
        """Rank 0: once all ranks' files are there, writes the marker and renames the folder: it is a checkpoint."""
        part_files = [staging / f"rank-{rank:05d}.json" for rank in range(self._ranks.world_size)]
        while missing_parts := [part.stem for part in part_files if not part.exists()]:
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"{', '.join(missing_parts)} did not write their part in time")
            time.sleep(0.01)
        parts = [json.loads(part.read_text()) for part in part_files]
        if not all(parts):
            return  # a rank could not write its files, and reports it itself
        marker = {**marker, "files": {name: entry for part in parts for name, entry in part.items()}}
        write_json(staging / MARKER, {**marker, "sha256": _digest(marker)})
        final = self._folder / staging.name.removeprefix(".")
        shutil.rmtree(final, ignore_errors=True)  # of the same step and corrupt, or it would not be saved again
        staging.rename(final)
        sync_folder(self._folder)
        self._prune(final)

    def _prune(self, newest: Path) -> None:
        """Removes all but the last `keep` checkpoints; a later one than `newest` was skipped, so it does not count."""
        folders = _step_folders(self._folder)
        folders = folders[: folders.index(newest) + 1]
        oldest = [folder for folder in folders if (folder / MARKER).is_file()][-self._keep :][0]
        for expired in folders[: folders.index(oldest)]:
            # If this is interrupted, the next start removes what has this name.
            shutil.rmtree(expired.rename(self._folder / f".{expired.name}"))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose every file matches its marker; all ranks call it and get the same one.

        The ranks share the hashing. Rank 0 logs each skipped checkpoint with the reason. Raises UserError for one that
        another user may have written: a fresh start would lose work that a chmod saves.
        """
        # Nodes may see different states of a shared folder.
        names = broadcast_json([path.name for path in reversed(_step_folders(self._folder))])
        for folder in (self._folder / name for name in names):
            with raise_on_all_ranks():
                checkpoint, reason = _read_marker(folder)
                if checkpoint is not None:
                    reason = _mismatch(checkpoint, self._ranks.rank, self._ranks.world_size)
            skip_reason = next((r for r in gather_json(reason) if r), None)
            if not skip_reason:
                return checkpoint
            if self._ranks.first:
                log.warning("checkpoint %s is skipped: %s", folder, skip_reason)
        return None

    @contextlib.contextmanager
    def universal(self, checkpoint: Checkpoint, beat: Beat) -> Iterator[Path]:
        """The checkpoint in DeepSpeed's universal form, for any number of ranks; rank 0 creates and removes it.

        Each start that needs it converts anew: no hash says whether an earlier conversion is complete.
        """
        target = checkpoint.folder / "universal"
        if self._ranks.first:
            shutil.rmtree(target, ignore_errors=True)
            _convert(checkpoint.folder / TAG, target, beat)
        dist.barrier()
        yield target
        dist.barrier()
        if self._ranks.first:
            shutil.rmtree(target, ignore_errors=True)

    def rng(self, checkpoint: Checkpoint) -> None:
        """Restores this rank's generators from a checkpoint of the same number of ranks."""
        restore_rng(torch.load(checkpoint.folder / f"rng-{self._ranks.rank:05d}.pt", weights_only=True))


def _convert(source: Path, target: Path, beat: Beat) -> None:
    """Runs DeepSpeed's converter in a process of its own, since it forks."""
    code = (  # DeepSpeed as `accelerator` sets it up
        "from lumen_hpc.training import accelerator; from deepspeed.checkpoint import ds_to_universal as tool; "
        "tool.main(tool.parse_arguments())"
    )
    command = [sys.executable, "-c", code, "--inject_missing_state"]
    python_path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    process = subprocess.Popen(
        [*command, "--input_folder", str(source), "--output_folder", str(target)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "DS_ACCELERATOR": accelerator.NAME, accelerator.FORCE_WEIGHTS_ONLY: "1",
             "PYTHONPATH": python_path},
    )  # fmt: skip
    while True:
        beat(f"converting {source} for another number of ranks")
        with contextlib.suppress(subprocess.TimeoutExpired):
            errors = process.communicate(timeout=5)[1]
            break
    if process.returncode:
        raise RuntimeError(f"{source} could not be converted for another number of ranks:\n{errors[-2000:]}")


def write_error(checkpoints: Path, reason: object) -> UserError:
    """The error of a training that cannot write."""
    return UserError(
        f"{checkpoints.parent} cannot be written to ({reason}); the last complete checkpoint is "
        f"{newest_checkpoint(checkpoints) or 'none'}, and the same command continues from there"
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint with a marker, unverified, of a folder of them."""
    return next((path for path in reversed(_step_folders(folder)) if (path / MARKER).is_file()), None)


def _step_folders(folder: Path) -> list[Path]:
    """The checkpoint folders, `step-<digits>` and nothing else (a user's `step-000003-backup` is theirs), by step."""
    folders = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def verified_state(folder: Path) -> dict[str, Any]:
    """The caller's own part of a checkpoint's marker. Raises UserError unless every file matches the marker."""
    checkpoint, reason = _read_marker(folder)
    if checkpoint is None or (reason := _mismatch(checkpoint, 0, 1)):
        raise UserError(f"{folder} is not read: {reason}; take another checkpoint")
    return checkpoint.state


def _read_marker(folder: Path) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint that a marker describes, or the reason why there is none."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        if marker.pop("sha256", "") not in ("", _digest(marker)):  # markers before 2026-11-29 have none
            return None, "its marker was changed after it was written (SHA-256 differs)"
        return Checkpoint(folder, marker["step"], marker["world_size"], marker["state"], marker["files"]), None
    except FileNotFoundError:
        return None, "it has no marker, so it is incomplete"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"its marker cannot be read ({error})"


def _digest(marker: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def _mismatch(checkpoint: Checkpoint, rank: int, world_size: int) -> str | None:
    """The first mismatch in this rank's share of the files. Raises UserError for a file that may be another user's."""
    for name in sorted(checkpoint.files)[rank::world_size]:
        path, (size, digest) = checkpoint.folder / name, checkpoint.files[name]
        try:
            if not path.exists():
                return f"{name} is missing"
            if reason := foreign(path):
                raise UserError(
                    f"{checkpoint.folder} is not read: {reason}. fix: give its files to this user alone (cp -rL, chmod "
                    "-R o-w), or remove the folder, and training goes on from an older one"
                )
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if sha256(path) != digest:
                return f"{name} was changed after it was written (SHA-256 differs)"
        except OSError as error:  # a bad block, for one
            return f"{name} cannot be read ({error})"
    return None
