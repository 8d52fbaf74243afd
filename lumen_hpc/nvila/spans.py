"""Who attends whom in a batch, as spans of tokens instead of a mask of tokens by tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Tokens start..stop of a row; they attend themselves causally and all of `prefix` (start, stop) of that row."""

    row: int
    start: int
    stop: int
    prefix: tuple[int, int] = (0, 0)
