"""One watchdog for every task, alone or one of many ranks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest

from lumen_hpc.watchdog import Watchdog


class Ended:
    """Waits for a watchdog's reason."""

    def __init__(self) -> None:
        self.reason, self._come = "", threading.Event()

    def __call__(self, reason: str) -> None:
        self.reason = reason
        self._come.set()

    def wait(self) -> str:
        assert self._come.wait(30), "the watchdog did not fire"
        return self.reason


def test_a_task_that_stands_still_is_ended_with_its_stacks(capfd):
    ended = Ended()
    Watchdog(0.3, ended).beat("reads shard 7", within=10)  # never longer than the limit
    assert ended.wait().startswith("no progress for 0 s (reads shard 7)")
    assert "test_a_task_that_stands_still" in capfd.readouterr().err


def test_the_rank_that_stopped_first_is_named(tmp_path):
    ended, place = Ended(), {"folder": tmp_path, "job": "7", "world_size": 3, "interval": 0.02}
    (tmp_path / "rank-00002.json").write_text(json.dumps({"job": "6", "rank": 2}))  # of an earlier attempt
    stuck = Watchdog(0.4, lambda reason: None, rank=1, **place)
    stuck.beat("computes step 7")
    time.sleep(0.1)
    Watchdog(0.4, ended, rank=0, **place).beat("waits for the others in step 7")
    reason = ended.wait()
    assert "ranks [2] never started" in reason
    assert "the first to stop was rank 1" in reason and "computes step 7" in reason


def test_a_rank_that_waits_for_others_is_not_named_though_it_stopped_first(tmp_path):
    ended, place = Ended(), {"folder": tmp_path, "job": "7", "world_size": 2, "interval": 0.02}
    Watchdog(0.4, ended, rank=0, **place).beat("waits for the others in step 7", waits=True)
    time.sleep(0.2)
    Watchdog(0.4, lambda reason: None, rank=1, **place).beat("computes step 7")
    assert "the first to stop was rank 1" in ended.wait()


EXCHANGES = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from lumen_hpc.watchdog import Watchdog
dist.init_process_group("gloo", init_method="file://" + sys.argv[1] + "/store", rank=0, world_size=2)
dog = Watchdog(60, print, folder=Path(sys.argv[1]), job="7", rank=0, world_size=2, interval=0.02)
dog.beat("computes step 7")
dist.all_reduce(torch.ones(1))
"""
MEETS = """
import sys, time, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + sys.argv[1] + "/store", rank=1, world_size=2)
time.sleep(600)
"""


def test_a_rank_in_an_exchange_waits_whatever_it_said(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", code, tmp_path]) for code in (EXCHANGES, MEETS)]
    try:
        deadline = time.monotonic() + 60
        beat = {}
        while not beat.get("waits"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
            if (file := tmp_path / "rank-00000.json").exists():
                beat = json.loads(file.read_text())
        assert beat["doing"] == "computes step 7"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_a_rank_waits_for_another_that_still_has_time(tmp_path):
    place = {"folder": tmp_path, "job": "7", "world_size": 2, "interval": 0.02}
    converting = Watchdog(60, lambda reason: None, rank=0, **place)
    deadline = time.monotonic() + 30
    while not (tmp_path / "rank-00000.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ended = Ended()
    waiting = Watchdog(60, ended, rank=1, **place)
    waiting.beat("waits for rank 0", within=0.1)
    time.sleep(1.0)
    assert not ended.reason
    converting.beat("computes step 1", within=0.1)
    assert "rank 1 on" in ended.wait()


AHEAD = """
import sys, time
from pathlib import Path
clock = time.time
time.time = lambda: clock() + float(sys.argv[2])
from lumen_hpc.watchdog import Watchdog
dog = Watchdog(60, print, folder=Path(sys.argv[1]), job="7", rank=1, world_size=2, interval=0.02)
while True:
    dog.beat("computes step 1", within=0.5)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_node_whose_clock_differs_is_neither_silent_nor_alive_for_ever(tmp_path, seconds):
    process = subprocess.Popen([sys.executable, "-c", AHEAD, tmp_path, str(seconds)])
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "rank-00001.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ended = Ended()
        waiting = Watchdog(60, ended, folder=tmp_path, job="7", rank=0, world_size=2, interval=0.02)
        waiting.beat("waits for rank 1", within=0.1)
        time.sleep(1.0)
        assert not ended.reason, "rank 1 works"
        process.kill()
        assert "rank 1 on" in ended.wait() or "rank 0 on" in ended.reason
    finally:
        process.kill()
        process.wait()


def test_a_task_that_makes_progress_is_left_alone():
    dog = Watchdog(0.5, lambda reason: pytest.fail("it ended a task that makes progress"))
    for step in range(20):
        dog.beat(f"step {step}")
        time.sleep(0.05)
    dog.stop()


def test_beats_are_read_by_late_ranks_alone(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(Watchdog, "_others", lambda self: reads.append(self._rank) or [])
    place = {"folder": tmp_path, "job": "7", "world_size": 8, "interval": 0.01}
    dogs = [Watchdog(60, lambda reason: None, rank=rank, **place) for rank in range(8)]
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("rank-*.json"))) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    assert reads == []
    dogs[3].beat("computes step 1", within=0.05)
    while 3 not in reads:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for dog in dogs:
        dog.stop()
    assert set(reads) == {3}
