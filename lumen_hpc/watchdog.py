"""Ends a task that makes no progress, with its stacks and the rank that the job waits for."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Beat(Protocol):
    """Reports that a task makes progress: `Watchdog.beat`, or `unwatched`."""

    def __call__(self, doing: str = ..., within: float = ..., waits: bool = ...) -> None:
        """`doing`: what comes now. `within`: seconds to the next beat, if fewer than the watchdog's limit. `waits`:
        what comes is to wait for other ranks."""


def unwatched(doing: str = "", within: float = 0.0, waits: bool = False) -> None:
    """A beat that no watchdog reads."""


class Watchdog:
    """Calls `on_stuck` with the reason when no `beat` has come for `limit` seconds, those not counted in which the task
    was suspended (SIGSTOP, as where Slurm preempts by SUSPEND).

    The ranks of one job write their last beats to a shared folder. A rank waits while any of them is within its limit,
    since the others wait for the one that works; when all are beyond it, each names the rank that the others wait for:
    of those that are not waiting themselves, the one that stopped first.
    """

    def __init__(
        self,
        limit: float,
        on_stuck: Callable[[str], None],
        *,
        folder: Path | None = None,
        job: str = "",
        rank: int = 0,
        world_size: int = 1,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit`: seconds, 0 disables. `folder`: the ranks' beats, read where there are several ranks; `job`: name
        shared by the ranks and by no earlier job. `interval`: longest time between two checks [s]. `clock`: seconds
        since any moment, another one on each node."""
        self._limit, self._on_stuck, self._folder = limit, on_stuck, folder
        self._job, self._rank, self._world_size = job, rank, world_size
        self._interval, self._clock = interval, clock
        self._other_beats: dict[int, tuple[str, float]] = {}
        """What other ranks wrote last, and since when it has been so by this node's clock."""
        self._over = threading.Event()
        self.beat("starts")
        if limit:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str = "works", within: float = 0.0, waits: bool = False) -> None:
        """Records progress and the current action, as `Beat` says."""
        limit = min(within or self._limit, self._limit)
        self._beat = (self._clock(), limit, doing, waits)

    def stop(self) -> None:
        """Stops watching."""
        self._over.set()

    def _watch(self) -> None:
        beat, suspended_s, checked_at = self._beat, 0.0, time.monotonic()
        while not self._over.wait(pause := min(self._interval, self._beat[1] / 8)):
            now, previous_check, checked_at = self._clock(), checked_at, time.monotonic()
            suspended_s = 0.0 if beat is not self._beat else suspended_s
            beat = at, limit, doing, waits = self._beat
            if (
                delay_s := checked_at - previous_check - pause
            ) > limit / 8:  # this thread stood still too: the task was suspended
                suspended_s = min(suspended_s + delay_s, self._clock() - at)
            own: dict[str, Any] = {
                "job": self._job,
                "rank": self._rank,
                "host": socket.gethostname(),
                "doing": doing,
                "age": now - at - suspended_s,  # seconds, not a time of day: the nodes' clocks may differ
                "limit": limit,
                "waits": waits or _in_an_exchange(),
            }
            shared = bool(self._folder) and self._world_size > 1
            if shared:
                with contextlib.suppress(OSError):  # a full disk is no reason to stop watching
                    self._write(own)
            if own["age"] < limit:
                continue
            # Only a late rank reads the others' beats: all ranks reading all would be quadratic in their number.
            beats = [own, *(self._others() if shared else [])]
            if any(beat["age"] < beat["limit"] for beat in beats):
                continue
            print(f"{socket.gethostname()}, rank {self._rank}: stacks:", file=sys.stderr)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            reason = f"no progress for {own['age']:.0f} s ({doing}){self._slowest(beats)}"
            print(f"{reason}: the task ends itself", file=sys.stderr, flush=True)
            self._on_stuck(reason)
            return

    def _write(self, beat: dict[str, Any]) -> None:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"rank-{self._rank:05d}.json"
        staged = file.with_suffix(".tmp")  # not files.atomic: a beat is worth no fsync
        staged.write_text(json.dumps(beat))
        staged.replace(file)

    def _others(self) -> list[dict[str, Any]]:
        """The last beats of this job's other ranks; a beat that is not written again ages by this node's clock."""
        assert self._folder is not None
        beats = []
        for rank in range(self._world_size):
            with contextlib.suppress(OSError, ValueError):
                text = (self._folder / f"rank-{rank:05d}.json").read_text()
                beat = json.loads(text)
                if rank == self._rank or beat["job"] != self._job:
                    continue
                if self._other_beats.get(rank, ("", 0.0))[0] != text:
                    self._other_beats[rank] = (text, self._clock())
                beats.append(beat | {"age": beat["age"] + self._clock() - self._other_beats[rank][1]})
        return beats

    def _slowest(self, beats: list[dict[str, Any]]) -> str:
        """The rank that the job waits for, human-readable; empty where there is only one."""
        if self._world_size == 1:
            return ""
        silent = sorted(set(range(self._world_size)) - {beat["rank"] for beat in beats})
        never_started = f"; ranks {silent} never started" if silent else ""
        # Ages alone do not tell: an age that was read is up to an interval short, and a rank that computes may already
        # be waiting in a gradient's exchange.
        stopped = max(beats, key=lambda beat: (not beat["waits"], beat["age"]))
        description = f"rank {stopped['rank']} on {stopped['host']} ({stopped['doing']}, {stopped['age']:.0f} s ago)"
        return f"{never_started}; the first to stop was {description}"


def _in_an_exchange() -> bool:
    """Whether a thread of this process is inside a collective of torch.distributed."""
    collectives = "torch.distributed.distributed_c10d"  # by name: a task without torch has nothing to import
    if collectives not in sys.modules:
        return False
    return any(
        frame.f_globals.get("__name__") == collectives
        for top in sys._current_frames().values()
        for frame, _ in traceback.walk_stack(top)
    )
