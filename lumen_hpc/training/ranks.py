"""Who takes part in a training job, and how they find each other."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lumen_hpc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process of a training job: a GPU, or a CPU process where there is none."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    """Host of rank 0, as the other nodes resolve it."""
    master_port: int = 0
    """Port to try first; 0, or one that is taken, lets the system choose."""
    meeting: str = ""
    """A name that all ranks of this attempt share and no earlier attempt had; empty: from Slurm's job id."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def meeting_name(self) -> str:
        slurm = f"{os.environ.get('SLURM_JOB_ID', 'local')}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        return self.meeting or f"{slurm}-{self.master_port}"


def _serve(ranks: Ranks, timeout: timedelta) -> Any:
    """The store that rank 0 serves, on the wanted port if it is free."""
    from torch.distributed import TCPStore

    ports = [ranks.master_port, 0] if ranks.master_port else [0]
    for port in ports:
        try:
            return TCPStore("0.0.0.0", port, ranks.world_size, is_master=True, wait_for_workers=False, timeout=timeout)
        except (RuntimeError, OSError):
            if port == 0:
                raise
    raise AssertionError("unreachable: port 0 either serves or raises")


def _published(file: Path, meeting: str, timeout: float) -> dict[str, Any]:
    """What rank 0 wrote about this meeting; polls, since a shared file system shows it late."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            place = json.loads(file.read_text())
            if place["meeting"] == meeting:
                return place
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.05)
    raise UserError(
        f"rank 0 did not open the rendezvous {meeting} in {timeout:.0f} s (looked in {file}): "
        "its node did not start, or the folder is not shared between the nodes"
    )


def join(ranks: Ranks, folder: Path, *, timeout: float = 300.0, collective_timeout: float = 7200.0) -> None:
    """Starts torch.distributed for these ranks: nccl where there are GPUs, gloo elsewhere.

    Rank 0 serves a store on a port it has bound (never merely guessed free) and publishes it in `folder`,
    which all nodes share. After `timeout` seconds the ranks that did not come are named in a UserError.
    `collective_timeout` [s] is long, since ranks may wait while one converts a checkpoint; a stuck training step is
    the watchdog's to notice.
    """
    import torch
    import torch.distributed as dist

    limit = timedelta(seconds=timeout)
    if ranks.world_size == 1:
        store = dist.HashStore()
    else:
        file = folder / "rendezvous.json"
        if ranks.first:
            store = _serve(ranks, limit)
            staged = file.with_suffix(".tmp")
            staged.write_text(json.dumps({"meeting": ranks.meeting_name(), "port": store.port}))
            staged.replace(file)
        else:
            place = _published(file, ranks.meeting_name(), timeout)
            store = dist.TCPStore(ranks.master_addr, place["port"], ranks.world_size, is_master=False, timeout=limit)
        _assemble(store, ranks, timeout)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(ranks.local_rank)
    dist.init_process_group(
        backend,
        store=store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=collective_timeout),
    )


def leave() -> None:
    """Ends torch.distributed; without it, or before DeepSpeed is closed, a process may abort at its end."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def _assemble(store: Any, ranks: Ranks, timeout: float) -> None:
    """Waits until every rank has signed in; the missing ones are named."""
    store.set(f"here/{ranks.rank}", socket.gethostname())
    deadline = time.monotonic() + timeout
    while True:
        missing = [r for r in range(ranks.world_size) if not store.check([f"here/{r}"])]
        if not missing:
            return
        if time.monotonic() > deadline:
            here = sorted({store.get(f"here/{r}").decode() for r in range(ranks.world_size) if r not in missing})
            raise UserError(
                f"ranks {missing} of {ranks.world_size} did not reach the rendezvous in {timeout:.0f} s; "
                f"those that did are on {', '.join(here)}"
            )
        time.sleep(0.02)
