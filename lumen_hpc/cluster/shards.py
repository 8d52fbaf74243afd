"""How work is divided: shard k of n is a contiguous, deterministic part, whatever Slurm's own variables say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shard:
    index: int
    count: int

    def span(self, total: int) -> range:
        """This shard's contiguous part of `total` items; the parts differ by one item at most."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)

    def of(self, items: Iterable[Any], total: int) -> Iterator[Any]:
        """This shard's items out of a stream of `total`, without holding the stream."""
        span = self.span(total)
        for position, item in enumerate(items):
            if position >= span.stop:
                return
            if position >= span.start:
                yield item

    @property
    def file(self) -> str:
        return f"shard-{self.index:05d}-of-{self.count:05d}.jsonl"
