"""Progress in words and bars: on a terminal a bar that redraws, in a log a whole line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

INTERVAL_S = 30.0
"""Seconds between two lines of a bar in a log; shorter work leaves none."""


def spell(seconds: float | None) -> str:
    """A duration for people: 45 s, 12 min, 3.5 h; empty for none."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def spell_count(number: int, noun: str) -> str:
    """A number of things: 1 GPU, 2 GPUs."""
    return f"{number} {noun}{'s' * (number != 1)}"


def with_progress(
    rows: Iterable[Any],
    what: str,
    total: Callable[[], int] = lambda: 0,
    *,
    stream: TextIO | None = None,
    interval_s: float = INTERVAL_S,
) -> Iterator[Any]:
    """The same rows, with a bar on `stream` (stdout).

    `total`: how many are expected, asked once rows come; 0, which is not known, shows nothing in a log.
    """
    from tqdm import tqdm

    stream = stream or sys.stdout
    bar, count, shown_count = None, 0, 0
    began = last_shown = time.monotonic()

    def show(now: float) -> None:
        """A line of a log. Rows count from the first one on, for which a model was loaded."""
        if expected := total():
            line = tqdm.format_meter(
                count, expected, now - began, initial=1, prefix=what, unit=" rows", ascii=True, ncols=100
            )
            print(line, file=stream, flush=True)

    for count, row in enumerate(rows, 1):
        if stream.isatty():
            bar = bar or tqdm(desc=what, total=total() or None, unit=" rows", file=stream, leave=False)
            bar.update()
        elif count == 1:
            began = time.monotonic()
        elif (now := time.monotonic()) - last_shown >= interval_s:
            last_shown, shown_count = now, count
            show(now)
        yield row
    if bar is not None:
        bar.close()
    elif 0 < shown_count < count:
        show(time.monotonic())
