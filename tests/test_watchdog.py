"""One watchdog for every task, alone or one of many ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lumen_hpc import watchdog
from lumen_hpc.watchdog import Watchdog

PATIENCE = 300
"""Seconds until a test gives up on what must come, on a machine however slow."""
READINGS = 12
"""Of its clock, in which any watchdog here has checked at least once from beginning to end."""


class Task:
    """A task under a watchdog whose time passes only where a test says so; it may be one rank of several."""

    def __init__(self, limit: float = 60, *, began: float = 0.0, **place: Any) -> None:
        self.now, self.reason, self._readings, self._ended = began, "", 0, threading.Event()
        self.dog = Watchdog(limit, self._end, interval=0.002, clock=self._read, **place)
        self.beat = self.dog.beat

    def _read(self) -> float:
        self._readings += 1
        return self.now

    def _end(self, reason: str) -> None:
        self.reason = reason
        self._ended.set()

    def after(self, seconds: float) -> str:
        """Why it has ended once so much more time has passed and the watchdog has checked; empty where it has not."""
        self.now += seconds
        enough = self._readings + READINGS
        until(lambda: self._readings >= enough or self._ended.is_set())
        return self.reason

    def ended(self) -> str:
        until(self._ended.is_set)
        return self.reason


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def rank(tmp_path: Path) -> Callable[..., Task]:
    """Starts a rank of a job."""
    return lambda rank, world_size=2, **more: Task(rank=rank, world_size=world_size, folder=tmp_path, job="7", **more)


def test_a_task_that_stands_still_is_ended_with_its_stacks(capfd):
    task = Task(60)
    task.beat("reads shard 7", within=600)  # never longer than the limit
    assert not task.after(59)
    assert task.after(1) == "no progress for 60 s (reads shard 7)"
    assert "test_a_task_that_stands_still" in capfd.readouterr().err


def test_a_task_that_makes_progress_is_left_alone():
    task = Task(60)
    for step in range(5):
        task.beat(f"step {step}")
        assert not task.after(59)
    assert task.after(1) == "no progress for 60 s (step 4)"


def test_the_time_in_which_a_task_was_suspended_does_not_count(monkeypatch):
    """Its watchdog stood still as well; on resume it may be the first thread to look."""
    task = Task(60)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: task.now))
    task.beat("step 7")
    for seconds in (3, 3600, 3, 3600):  # it computes, is suspended, computes, …
        assert not task.after(seconds)
    for _ in range(10):
        assert not task.after(5)
    assert task.after(5).endswith("s (step 7)"), "what it does not do once it runs again counts"


def test_a_task_that_is_over_is_left_alone():
    others = set(threading.enumerate())
    task = Task(60)
    [watch] = set(threading.enumerate()) - others
    assert not task.after(59)
    task.dog.stop()
    until(lambda: not watch.is_alive())
    assert not task.reason


def test_without_another_clock_it_goes_by_the_machines():
    ended = threading.Event()
    Watchdog(0.1, lambda reason: ended.set())
    assert ended.wait(PATIENCE)


def test_the_rank_that_stopped_first_is_named(tmp_path, rank):
    (tmp_path / "rank-00002.json").write_text(json.dumps({"job": "6", "rank": 2}))  # of an earlier attempt
    stuck, waiting = rank(1, 3), rank(0, 3)
    stuck.beat("computes step 7")
    assert not stuck.after(30)
    waiting.beat("waits for the others in step 7")
    stuck.now += 60
    waiting.now += 60
    reason = waiting.ended()
    assert "ranks [2] never started" in reason
    assert "the first to stop was rank 1" in reason and "(computes step 7, 90 s ago)" in reason


def test_a_rank_that_waits_for_others_is_not_named_though_it_stopped_first(rank):
    waiting, stuck = rank(0), rank(1)
    waiting.beat("waits for the others in step 7", waits=True)
    assert not waiting.after(30)
    stuck.beat("computes step 7")
    stuck.now += 60
    waiting.now += 60
    assert "the first to stop was rank 1" in waiting.ended()


EXCHANGE = """
import os, sys, time, torch, torch.distributed as dist
from pathlib import Path
from lumen_hpc.watchdog import Watchdog
rank = 1 if os.fork() else 0
dist.init_process_group("gloo", init_method="file://" + sys.argv[1] + "/store", rank=rank, world_size=2)
if rank == 1:
    time.sleep(600)  # it does not come
dog = Watchdog(600, print, folder=Path(sys.argv[1]), job="7", rank=0, world_size=2, interval=0.02)
dog.beat("computes step 7")
dist.all_reduce(torch.ones(1))
"""


def test_a_rank_in_an_exchange_waits_whatever_it_said(tmp_path):
    ranks = subprocess.Popen([sys.executable, "-c", EXCHANGE, tmp_path], start_new_session=True)

    def waits() -> bool:
        assert ranks.poll() is None
        file = tmp_path / "rank-00000.json"
        beat = json.loads(file.read_text()) if file.exists() else {"waits": False}
        return beat["waits"] and beat["doing"] == "computes step 7"

    try:
        until(waits)
    finally:
        os.killpg(ranks.pid, signal.SIGKILL)
        ranks.wait()


def test_a_rank_waits_for_another_that_still_has_time(rank):
    converting, waiting = rank(0), rank(1)
    assert not converting.after(0)
    waiting.beat("waits for rank 0", within=10)
    assert not waiting.after(40)
    converting.beat("computes step 1", within=10)
    assert not converting.after(9) and not waiting.after(0)
    converting.now += 1
    assert "rank 1 on" in waiting.ended()


@pytest.mark.parametrize("began", [-3600, 3600])
def test_a_node_whose_clock_differs_is_neither_silent_nor_alive_for_ever(rank, began):
    working, waiting = rank(1, began=began), rank(0)
    waiting.beat("waits for rank 1", within=10, waits=True)
    for step in range(5):
        working.beat(f"computes step {step}")
        assert not working.after(0) and not waiting.after(30), "rank 1 works"
    working.dog.stop()
    waiting.now += 60
    assert "the first to stop was rank 1" in waiting.ended()


def test_beats_are_read_by_late_ranks_alone(monkeypatch, rank):
    readers: list[int] = []
    monkeypatch.setattr(Watchdog, "_others", lambda self: readers.append(self._rank) or [])
    tasks = [rank(number, 8) for number in range(8)]
    for task in tasks:
        assert not task.after(30)
    assert readers == []
    tasks[3].beat("computes step 1", within=10)
    assert tasks[3].after(10)
    for task in tasks[:3] + tasks[4:]:
        assert not task.after(10)
        task.dog.stop()
    assert set(readers) == {3}
