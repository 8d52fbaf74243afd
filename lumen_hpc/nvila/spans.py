"""The attention of a batch, as spans of tokens instead of a token-by-token mask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Tokens start..stop of a row; they attend their span causally, and all of `prefix` (start, stop) in that row."""

    row: int
    start: int
    stop: int
    prefix: tuple[int, int] = (0, 0)
