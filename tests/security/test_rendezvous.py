"""Attacks of another user of the node on the rendezvous: listening in, counting as a rank, sending a pickle."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from lumen_hpc.distributed import Ranks, _await_ranks, _meet, _open_store, _own_address, _read_rendezvous

ROOT = Path(__file__).parents[2]
RANK = """
import json, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from lumen_hpc.distributed import Ranks, broadcast_json, gather_json, join, leave

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
join(Ranks(rank=rank, world_size=2, local_rank=rank, job="job-1"), folder, timeout=120)
everyone = gather_json({"rank": rank, "text": "x" * (rank * 1000), "number": 0.1, "nothing": None})
first = broadcast_json([rank, "from rank 0"] if rank == 0 else None)
(folder / f"{rank}.json").write_text(json.dumps([everyone, first]))
while not (folder / "end").exists():
    time.sleep(0.05)
leave()
"""


def listening(process: int) -> set[str]:
    """Addresses on which a process listens, hexadecimal, from /proc."""
    inodes = set()
    for handle in Path(f"/proc/{process}/fd").iterdir():
        try:
            if match := re.match(r"socket:\[(\d+)\]", os.readlink(handle)):
                inodes.add(match[1])
        except OSError:
            pass
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(fields[1].partition(":")[0])
    return addresses


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Two ranks of a job on this node, met and waiting; (folder, process ids)."""
    folder = tmp_path_factory.mktemp("job")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    deadline = time.monotonic() + 240
    while not all((folder / f"{rank}.json").exists() for rank in range(2)):
        for rank in ranks:
            assert rank.poll() is None, rank.communicate()[1].decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield folder, [rank.pid for rank in ranks]
    (folder / "end").touch()
    for rank in ranks:
        rank.communicate(timeout=60)


def test_on_one_node_every_listener_is_on_loopback(job):
    _, processes = job
    addresses = set().union(*map(listening, processes))
    assert addresses and addresses <= {"0100007F", "00000000000000000000000001000000"}


def test_the_file_with_the_nonce_is_private(tmp_path):
    file = tmp_path / "rendezvous.json"
    _open_store(Ranks(world_size=2, job="job-4"), file, timedelta(seconds=60))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(json.loads(file.read_text())["nonce"]) == 32


def test_a_job_that_starts_at_the_same_time_does_not_hide_the_rendezvous(tmp_path):
    """The other ranks of both look for theirs after both were published; no file is left."""
    opened = threading.Semaphore(0)

    def rank(job: str, number: int) -> None:
        if number:
            time.sleep(0.5)
        _meet(Ranks(rank=number, world_size=2, job=job), tmp_path, timeout=30)
        opened.release()

    for job, number in (("7-0", 0), ("8-0", 0), ("7-0", 1), ("8-0", 1)):
        threading.Thread(target=rank, args=(job, number), daemon=True).start()
    assert all(opened.acquire(timeout=20) for _ in range(4))
    assert list(tmp_path.iterdir()) == []


def test_ranks_exchange_json_of_different_lengths(job):
    for rank in range(2):
        everyone, first = json.loads((job[0] / f"{rank}.json").read_text())
        assert [(row["rank"], len(row["text"]), row["number"], row["nothing"]) for row in everyone] == [
            (0, 0, 0.1, None),
            (1, 1000, 0.1, None),
        ]
        assert first == [0, "from rank 0"]


def test_nothing_that_ranks_exchange_is_unpickled():
    unpickling = re.compile(r"(all_gather|broadcast|gather|scatter|send|recv)_object")
    files = [*(ROOT / "lumen_hpc").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]
    offenders = [
        f"{path}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if unpickling.search(line) and "`" not in line
    ]
    assert offenders == []


def test_a_stranger_who_signs_in_for_a_rank_does_not_count(tmp_path):
    ranks = Ranks(rank=0, world_size=2, job="job-2")
    store, meeting = _open_store(ranks, tmp_path / "rendezvous.json", timedelta(seconds=60))

    def stranger() -> None:
        """Knows the port, and even the prefix of the keys, but not the nonce."""
        client = dist.TCPStore("127.0.0.1", meeting.port, 2, is_master=False, timeout=timedelta(seconds=60))
        for key in ("here/1", f"{meeting.prefix}/here/1"):
            client.set(key, "0" * 64 + " evil")
            client.set(key, f"{meeting.signature(0)} evil")  # replayed from another rank

    thread = threading.Thread(target=stranger)
    thread.start()
    thread.join()
    with pytest.raises(TimeoutError, match=r"ranks \[1\] of 2") as caught:
        _await_ranks(dist.PrefixStore(meeting.prefix, store), ranks, meeting, timeout=1)
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize("kind", ["world-writable", "link", "stranger"])
def test_a_rendezvous_file_that_another_user_could_write_is_not_followed(tmp_path, kind):
    file = tmp_path / "rendezvous.json"
    file.write_text(json.dumps({"job": "job-3", "address": "127.0.0.1", "port": 1, "nonce": "n"}))
    file.chmod(0o600)
    if kind == "world-writable":
        file.chmod(0o666)
    elif kind == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif os.getuid() == 0:
        os.chown(file, 12345, -1)
    else:
        pytest.skip("only root can give a file away")
    with pytest.raises(TimeoutError, match=r"rendezvous\.json (belongs|is a symbolic link|may be written)"):
        _read_rendezvous(file, "job-3", 0.0)  # a process whose time is up before it has looked looks once


def test_between_nodes_the_store_listens_on_the_address_of_its_name(monkeypatch):
    def resolve(host, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.1.1", "10.1.2.3")]

    monkeypatch.setattr("lumen_hpc.distributed.socket.getaddrinfo", resolve)
    assert _own_address(Ranks(world_size=8, nodes=2, master_addr="n1")) == "10.1.2.3"
    assert _own_address(Ranks(world_size=8, nodes=1, master_addr="n1")) == "127.0.0.1"
