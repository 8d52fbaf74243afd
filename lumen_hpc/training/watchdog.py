"""A training that no longer steps ends itself, and says which rank it waits for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lumen_hpc.training.ranks import Ranks

EXIT_STUCK = 75
"""Exit status (EX_TEMPFAIL) of a rank that ended itself: the successor may try again."""


class Watchdog:
    """Ends the process when `beat` has not been called for `limit` seconds.

    Every rank leaves its last beat in `folder`; a rank that gives up names the one whose beat is oldest, since the
    others have gone on to wait for it.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, *, limit: float, interval: float = 5.0, end: Callable[[int], None] = os._exit
    ) -> None:
        """`interval`: seconds between two looks, each of which writes the last beat; `end` takes the exit status."""
        self._folder, self._ranks, self._limit = folder, ranks, limit
        self._interval, self._end = min(interval, limit / 8), end
        self._last = 0.0
        self._doing = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.beat("start")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def beat(self, doing: str) -> None:
        """Says that this rank goes on, and with what."""
        self._last, self._doing = time.monotonic(), doing

    def _write(self) -> None:
        file = self._folder / f"rank-{self._ranks.rank:05d}.json"
        staged = file.with_suffix(".tmp")
        at = time.time() - (time.monotonic() - self._last)
        beat = {"rank": self._ranks.rank, "host": socket.gethostname(), "doing": self._doing, "at": at}
        staged.write_text(json.dumps(beat))
        staged.replace(file)

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            with contextlib.suppress(OSError):  # a full disk is no reason to stop watching
                self._write()
            still = time.monotonic() - self._last
            if still < self._limit:
                continue
            print(
                f"rank {self._ranks.rank} stood still for {still:.0f} s ({self._doing}); {self._slowest()}; "
                "the job ends so that its successor can go on",
                file=sys.stderr,
                flush=True,
            )
            self._end(EXIT_STUCK)
            return

    def _slowest(self) -> str:
        beats = []
        for file in sorted(self._folder.glob("rank-*.json")):
            try:
                beats.append(json.loads(file.read_text()))
            except (OSError, ValueError):
                continue
        silent = sorted(set(range(self._ranks.world_size)) - {beat["rank"] for beat in beats})
        oldest = min(beats, key=lambda beat: beat["at"], default=None)
        told = f"ranks {silent} never began; " if silent else ""
        if oldest is None:
            return told + "no rank has left a beat"
        return told + (
            f"the first to stand still was rank {oldest['rank']} on {oldest['host']} ({oldest['doing']}, "
            f"{time.time() - oldest['at']:.0f} s ago)"
        )
