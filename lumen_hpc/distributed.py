"""The ranks of a training job: rendezvous, and exchange of small values."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign, write_json

COLLECTIVE_TIMEOUT_S = 7200.0
"""How long a rank waits for the others in a collective [s]: one may convert a checkpoint meanwhile. The watchdog
detects a stuck training step."""
MIN_STORE_TIMEOUT_S = 60.0
"""Shortest timeout of a request to the store [s], even if the ranks have less time to join."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process of a training job: a GPU, or a CPU process where there is none."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    """Host of rank 0, as the other nodes resolve it."""
    nodes: int = 1
    """Nodes of the job."""
    job: str = ""
    """Name of this attempt: all its ranks have it, and no earlier attempt had it."""

    @property
    def first(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class _Rendezvous:
    """The rendezvous that rank 0 publishes for the ranks of one attempt, in a file that only this user can read."""

    job: str
    address: str
    port: int
    nonce: str
    """Secret of this attempt: the names of all keys in the store start with it, and ranks sign in with it."""

    def signature(self, rank: int) -> str:
        """What a rank writes to register: only a reader of the file can know it."""
        return hmac.new(self.nonce.encode(), f"{self.job}/{rank}".encode(), "sha256").hexdigest()

    @property
    def prefix(self) -> str:
        return hashlib.sha256(self.nonce.encode()).hexdigest()[:32]


def _read_rendezvous(file: Path, job: str, timeout: float) -> _Rendezvous:
    """The rendezvous that rank 0 published for this job; polls, since a shared file system shows it late."""
    deadline = time.monotonic() + timeout
    refusal = ""
    while True:
        late = time.monotonic() > deadline  # before the read: a late process, too, reads once
        try:
            rendezvous = _Rendezvous(**json.loads(file.read_text()))
            refusal = foreign(file)
            if rendezvous.job == job and not refusal:
                return rendezvous
        except (OSError, ValueError, TypeError):
            pass
        if late:
            raise TimeoutError(
                f"rank 0 did not open the rendezvous of job {job} in {timeout:.0f} s (looked in {file}): "
                + (refusal or "its node did not start, or the folder is not shared between the nodes")
            )
        time.sleep(0.05)


def _open_store(ranks: Ranks, file: Path, limit: timedelta) -> tuple[Any, _Rendezvous]:
    """Opens rank 0's store on one interface and publishes it; returns the store and the rendezvous."""
    import torch.distributed as dist

    address = _own_address(ranks)
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.bind((address, 0))
    listener.listen(2 * ranks.world_size + 16)
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        address, port, ranks.world_size, is_master=True, wait_for_workers=False, timeout=limit,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    rendezvous = _Rendezvous(ranks.job, address, port, secrets.token_hex(16))
    write_json(file, asdict(rendezvous), private=True)
    return store, rendezvous


def _own_address(ranks: Ranks) -> str:
    """The address of this host at which the other ranks reach rank 0: loopback if all run on one node."""
    if ranks.nodes == 1:
        return "127.0.0.1"
    addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(ranks.master_addr, None, type=socket.SOCK_STREAM)]
    if outer_addresses := [
        address for address in addresses if not ipaddress.ip_address(address.partition("%")[0]).is_loopback
    ]:
        return outer_addresses[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # /etc/hosts maps the name to loopback
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, and selects the interface of the default route
            return probe.getsockname()[0]
        except OSError:
            return addresses[0]


def join(ranks: Ranks, folder: Path, *, timeout: float = 300.0) -> None:
    """Starts torch.distributed for these ranks: nccl on GPUs, gloo elsewhere.

    Rank 0 serves a store on one interface (loopback on one node), on a port assigned by the system, and publishes it in
    a private file of `folder`, which all nodes share, with a nonce, without which no process counts as a rank. Each job
    has a file of its own, until its ranks have met: two that start at once do not hide each other's.
    After `timeout` seconds a TimeoutError names the missing ranks.
    """
    import torch
    import torch.distributed as dist

    if ranks.nodes == 1:  # otherwise both listen on the node's outer interfaces
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    store = dist.HashStore() if ranks.world_size == 1 else _meet(ranks, folder, timeout)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(ranks.local_rank)
    dist.init_process_group(
        backend,
        store=store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
    )


def _meet(ranks: Ranks, folder: Path, timeout: float) -> Any:
    """The store of these ranks, once all of them have registered in it."""
    import torch.distributed as dist

    limit, file = timedelta(seconds=max(timeout, MIN_STORE_TIMEOUT_S)), folder / f"rendezvous-{ranks.job}.json"
    if ranks.first:
        tcp_store, rendezvous = _open_store(ranks, file, limit)
    else:
        rendezvous = _read_rendezvous(file, ranks.job, timeout)
        tcp_store = dist.TCPStore(rendezvous.address, rendezvous.port, ranks.world_size, is_master=False, timeout=limit)
    store = dist.PrefixStore(rendezvous.prefix, tcp_store)
    try:
        _await_ranks(store, ranks, rendezvous, timeout)
    finally:
        if ranks.first:
            file.unlink(missing_ok=True)
    return store


def gather_json(value: Any, group: Any = None) -> list[Any]:
    """Every rank's value, in order; all ranks of the group call it.

    The values travel as JSON: torch's own `all_gather_object` unpickles what arrives, and a pickle can run code. Tuples
    arrive as lists.
    """
    import torch
    import torch.distributed as dist

    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, torch.tensor([len(content)], device=device), group=group)
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(content)] = content
    contents = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(contents, padded, group=group)
    return [json.loads(part[: int(length)].cpu().numpy().tobytes()) for part, length in zip(contents, lengths)]


def broadcast_json(value: Any) -> Any:
    """Rank 0's value on every rank, as JSON; all ranks call it."""
    return gather_json(value if _rank() == 0 else None)[0]


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank()


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Raises a UserError of any rank's block on all ranks; all ranks enter it.

    Otherwise the other ranks would wait for the failed one in their next collective.
    """
    message = ""
    try:
        yield
    except UserError as error:
        message = str(error)
    if message := next((received for received in gather_json(message) if received), ""):
        raise UserError(message)


def on_any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank; all ranks call it."""
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
    # DeepSpeed's hooks keep the process groups alive, and gloo's threads release the last collective a moment later.
    # If the interpreter exits before that, the process aborts after its work is done (seen once, under high load).
    time.sleep(0.2)


def _await_ranks(store: Any, ranks: Ranks, rendezvous: _Rendezvous, timeout: float) -> None:
    """Waits until every rank has registered; a TimeoutError names the missing ones."""
    store.set(f"here/{ranks.rank}", f"{rendezvous.signature(ranks.rank)} {socket.gethostname()}")
    keys = [f"here/{rank}" for rank in range(ranks.world_size)]
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        if complete := store.check(keys):  # one request per round for any number of ranks
            entries = dict(enumerate(store.multi_get(keys)))
        elif late:
            entries = {rank: store.get(key) for rank, key in enumerate(keys) if store.check([key])}
        if complete or late:
            hosts = _hosts_by_rank(entries, rendezvous)
            if len(hosts) == ranks.world_size:
                return
        if late:
            missing = [rank for rank in range(ranks.world_size) if rank not in hosts]
            raise TimeoutError(
                f"ranks {missing} of {ranks.world_size} did not reach the rendezvous in {timeout:.0f} s; "
                f"those that did are on {', '.join(sorted(set(hosts.values())))}"
            )
        time.sleep(0.02)


def _hosts_by_rank(entries: dict[int, bytes], rendezvous: _Rendezvous) -> dict[int, str]:
    """The host of each rank that has registered with its signature."""
    hosts = {}
    for rank, entry in entries.items():
        signature, _, host = entry.decode(errors="replace").partition(" ")
        if hmac.compare_digest(signature.encode(), rendezvous.signature(rank).encode()):
            hosts[rank] = host
    return hosts
