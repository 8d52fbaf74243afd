"""What a run cost: time, GPU-hours, energy and memory of each step, from the lines of its manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    step: str
    shards: int
    rows: int
    seconds: float
    """Sum over shards."""
    gpu_hours: float
    joules: float | None
    """Energy of the GPUs; None where nothing measured it."""
    peak_bytes: int | None
    """Largest GPU (or, without GPUs, process) memory of any shard."""
    nodes: tuple[str, ...]


def costs(manifests: Mapping[str, Iterable[dict]], training: Mapping[str, Iterable[dict]] | None = None) -> list[Cost]:
    """A line a step; of a shard written more than once every attempt counts, for it was paid.

    Lines may carry `joules` and `peak_bytes`; a training step's memory also comes from its metrics (`training`: model
    → rows of metrics.jsonl, GPUs only).
    """
    made = []
    peaks = {f"train-{model}": _trained(rows) for model, rows in (training or {}).items()}
    for step, lines in manifests.items():
        lines = list(lines)
        if lines:
            last = {line["shard"]: line for line in lines}
            made.append(Cost(
                step=step,
                shards=len(last),
                rows=sum(line["rows"] for line in last.values()),
                seconds=sum(line["seconds"] for line in lines),
                gpu_hours=sum(line["gpu_seconds"] for line in lines) / 3600,
                joules=_known(sum, lines, "joules"),
                peak_bytes=_known(max, lines, "peak_bytes") or peaks.get(step),
                nodes=tuple(dict.fromkeys(str(line["node"]) for line in lines)),
            ))  # fmt: skip
    return made


def _trained(rows: Iterable[dict]) -> int | None:
    peak = max((row.get("timing", {}).get("memory_gb", 0.0) for row in rows), default=0.0)
    return round(peak * 1e9) or None


def _known(fold, lines: list[dict], key: str):
    values = [line[key] for line in lines if line.get(key) is not None]
    return fold(values) if values else None
