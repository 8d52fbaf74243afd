"""Ranks of a training job and their rendezvous."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lumen_hpc.files import write_json


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process of a training job: a GPU, or a CPU process where there is none."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    """Host of rank 0, as the other nodes resolve it."""
    job: str = ""
    """Name shared by the ranks of this attempt and by no earlier one."""

    @property
    def first(self) -> bool:
        return self.rank == 0


def _port(file: Path, job: str, timeout: float) -> int:
    """The port that rank 0 published for this job; polls, since a shared file system shows it late."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            place = json.loads(file.read_text())
            if place["job"] == job:
                return place["port"]
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.05)
    raise TimeoutError(
        f"rank 0 did not open the rendezvous of job {job} in {timeout:.0f} s (looked in {file}): "
        "its node did not start, or the folder is not shared between the nodes"
    )


def join(ranks: Ranks, folder: Path, *, timeout: float = 300.0, collective_timeout: float = 7200.0) -> None:
    """Starts torch.distributed for these ranks: nccl where there are GPUs, gloo elsewhere.

    Rank 0 serves a store on a port assigned by the system (never a guess) and publishes it in `folder`,
    which all nodes share. After `timeout` seconds a TimeoutError names the missing ranks.
    `collective_timeout` [s] is long, since ranks may wait while one converts a checkpoint; the watchdog
    detects a stuck training step.
    """
    import torch
    import torch.distributed as dist

    limit = timedelta(seconds=timeout)
    if ranks.world_size == 1:
        store = dist.HashStore()
    else:
        file = folder / "rendezvous.json"
        if ranks.first:
            store = dist.TCPStore("0.0.0.0", 0, ranks.world_size, is_master=True, wait_for_workers=False, timeout=limit)
            write_json(file, {"job": ranks.job, "port": store.port})
        else:
            port = _port(file, ranks.job, timeout)
            store = dist.TCPStore(ranks.master_addr, port, ranks.world_size, is_master=False, timeout=limit)
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


def on_any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is on one; all ranks call it."""
    import torch
    import torch.distributed as dist

    flags = torch.tensor([flag], dtype=torch.int32, device="cuda" if torch.cuda.is_available() else "cpu")
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def leave() -> None:
    """Ends torch.distributed; without it, or before DeepSpeed is closed, a process may abort at exit."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()
    # DeepSpeed's hooks keep the process groups alive, and gloo's threads release the last collective a moment after
    # it. If the interpreter exits in that moment, the process aborts with its work done (seen once, under high load).
    time.sleep(0.2)


def _assemble(store: Any, ranks: Ranks, timeout: float) -> None:
    """Waits until every rank has registered; a TimeoutError names the missing ones."""
    store.set(f"here/{ranks.rank}", socket.gethostname())
    deadline = time.monotonic() + timeout
    while True:
        missing = [r for r in range(ranks.world_size) if not store.check([f"here/{r}"])]
        if not missing:
            return
        if time.monotonic() > deadline:
            here = sorted({store.get(f"here/{r}").decode() for r in range(ranks.world_size) if r not in missing})
            raise TimeoutError(
                f"ranks {missing} of {ranks.world_size} did not reach the rendezvous in {timeout:.0f} s; "
                f"those that did are on {', '.join(here)}"
            )
        time.sleep(0.02)
