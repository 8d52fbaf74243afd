"""A task that lives but achieves nothing ends itself, and says where it stood and which rank it waited for."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Watchdog:
    """Calls `ended` with the reason when no `beat` has come for `limit` seconds.

    The ranks of one job leave their last beats in a folder that they share. A rank waits as long as any of them still
    has time, since the others wait for the one that works; when the time is up for all, each names the rank that stood
    still first, which is the one that the others wait for.
    """

    def __init__(
        self,
        limit: float,
        ended: Callable[[str], None],
        *,
        folder: Path | None = None,
        job: str = "",
        rank: int = 0,
        world_size: int = 1,
        interval: float = 5.0,
    ) -> None:
        """`limit`: seconds, 0 watches nothing. `folder`: of the ranks' beats, which they read where there are several;
        `job`: what they share and no earlier job had. `interval`: most seconds between two looks."""
        self._limit, self._ended, self._folder = limit, ended, folder
        self._job, self._rank, self._world_size = job, rank, world_size
        self._interval = interval
        self._over = threading.Event()
        self.beat("starts")
        if limit:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str = "works", within: float = 0.0) -> None:
        """Says that this task goes on, and with what; `within`: seconds to the next beat, if fewer than the limit."""
        limit = min(within or self._limit, self._limit)
        self._beat = (time.time(), limit, doing)

    def stop(self) -> None:
        """Watches no longer."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(self._interval, self._beat[1] / 8)):
            at, limit, doing = self._beat
            beats = [{"job": self._job, "rank": self._rank, "host": socket.gethostname(), "doing": doing,
                      "at": at, "limit": limit}]  # fmt: skip
            if self._folder and self._world_size > 1:
                with contextlib.suppress(OSError):  # a full disk is no reason to stop watching
                    self._write(beats[0])
                beats += self._others()
            now = time.time()
            if any(now < beat["at"] + beat["limit"] for beat in beats):
                continue
            print(f"{socket.gethostname()}, rank {self._rank}: where it stood:", file=sys.stderr)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            told = f"no progress for {now - at:.0f} s ({doing}){self._slowest(beats)}"
            print(f"{told}: the task ends itself", file=sys.stderr, flush=True)
            self._ended(told)
            return

    def _write(self, beat: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"rank-{self._rank:05d}.json"
        staged = file.with_suffix(".tmp")  # not files.atomic: a beat is worth no fsync
        staged.write_text(json.dumps(beat))
        staged.replace(file)

    def _others(self) -> list[dict[str, Any]]:
        """The last beats of this job's other ranks."""
        found = []
        for rank in range(self._world_size):
            with contextlib.suppress(OSError, ValueError):
                beat = json.loads((self._folder / f"rank-{rank:05d}.json").read_text())
                if rank != self._rank and beat["job"] == self._job:
                    found.append(beat)
        return found

    def _slowest(self, beats: list[dict[str, Any]]) -> str:
        """Which rank the job waits for, in words; nothing where there is only one."""
        if self._world_size == 1:
            return ""
        silent = sorted(set(range(self._world_size)) - {beat["rank"] for beat in beats})
        told = f"; ranks {silent} never began" if silent else ""
        first = min(beats, key=lambda beat: beat["at"])
        ago = time.time() - first["at"]
        return f"{told}; the first to stand still was rank {first['rank']} on {first['host']} ({first['doing']}, {ago:.0f} s ago)"  # noqa: E501
