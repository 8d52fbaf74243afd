"""Shards: how work is divided, and how a shard's file and its digest are written.

Shard k of n is a contiguous, deterministic part of the work, whatever Slurm's own variables say. Its file is written
whole or not at all; what is recorded of it is in manifest.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumen_hpc.files import atomic


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


@dataclass(frozen=True)
class Written:
    rows: int
    sha256: str
    content: str
    """Hash of the rows without the stage's volatile fields."""
    bytes: int
    mtime_ns: int


def write_shard(folder: Path, shard: Shard, rows: Iterable[dict[str, Any]], volatile: tuple[str, ...] = ()) -> Written:
    """Writes a shard as .tmp, syncs its bytes and renames it, so that its name always means a whole shard."""
    path = folder / shard.file
    file_digest, content_digest, count = hashlib.sha256(), hashlib.sha256(), 0
    with atomic(path, sync_name=False) as stream:  # `manifest.sync` makes many names durable at once
        for row in rows:
            line = encode(row)
            stream.write(line)
            file_digest.update(line)
            if volatile:
                content_digest.update(encode({key: value for key, value in row.items() if key not in volatile}))
            count += 1
    stat = path.stat()
    digest = file_digest.hexdigest()
    return Written(count, digest, content_digest.hexdigest() if volatile else digest, stat.st_size, stat.st_mtime_ns)


def sweep(folder: Path, shards: Iterable[Shard]) -> None:
    """Removes what a killed writer left of these shards. Whoever calls it is their only writer now."""
    names = {shard.file for shard in shards}
    for leftover in folder.glob("shard-*.tmp"):
        if leftover.name.rsplit(".", 2)[0] in names:
            leftover.unlink(missing_ok=True)


def encode(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
