"""What a run cost, and how much of it was wasted: time, CPU- and GPU-hours, energy and memory of each step.

From the logs of the tasks (attempts.jsonl, manifest.jsonl, a training's metrics and restarts), and from
Slurm's accounting of their jobs where the site keeps one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]


class Usage(Protocol):
    """Slurm's usage of a job (`cluster.accounting.Usage`)."""

    seconds: float
    peak_bytes: int | None
    joules: float | None


@dataclass(frozen=True)
class Cost:
    step: str
    shards: int
    began: float
    """When its first task began [Unix time]."""
    wall_seconds: float
    """From the beginning of the step's first task to the end of its last."""
    cpu_hours: float
    """Cores asked for × time, of every attempt: what a site charges."""
    gpu_hours: float
    """GPUs asked for × time, of every attempt."""
    joules: float | None
    """Energy of the nodes by Slurm's accounting; None where it was not measured."""
    peak_bytes: int | None
    """Largest memory of any of its processes; None where it was not recorded."""
    gpu_peak_bytes: int | None
    """Largest GPU memory of a training's rank 0; None without GPUs."""
    attempts: int
    """Tasks started, whatever their end."""
    interrupted: int
    """Attempts that were killed, interrupted or failed."""
    wasted_seconds: float
    """Time of interrupted attempts that produced no shard or training step, of shards written again because they were
    corrupt, and of tasks that waited for those."""
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class StepLogs:
    """The logs in one step's folder that its cost is computed from, each a JSONL file of the field's name."""

    manifest: Sequence[Row] = ()
    attempts: Sequence[Row] = ()
    metrics: Sequence[Row] = ()
    """A training's steps, those that a restart undid left out."""
    restarts: Sequence[Row] = ()

    @classmethod
    def open(cls, folder: Path, read: Callable[[Path], list[Row]]) -> StepLogs:
        """The logs of a step's folder; `read` gives the whole lines of a file, none if it is not there."""
        return cls(**{log.name: read(folder / f"{log.name}.jsonl") for log in fields(cls)})


def job_ids(steps: Mapping[str, StepLogs]) -> list[str]:
    """Ids of the jobs that the steps ran in; none where there was no Slurm."""
    return [row["job"] for logs in steps.values() for row in logs.attempts if row["job"]]


@dataclass
class _Attempt:
    began: Row
    ended: Row | None = None
    seconds: float = 0.0
    usage: Usage | None = None
    lines: list[Row] = field(default_factory=list)
    """Manifest lines of the shards that it finished."""

    @property
    def interrupted(self) -> bool:
        return self.ended is None or self.ended["event"] != "done"


def costs(steps: Mapping[str, StepLogs], accounted: Mapping[str, Usage] | None = None) -> list[Cost]:
    """A line for each step that was started, in that order; `accounted` is Slurm's usage by job id, None without."""
    found = [_cost(name, logs, accounted or {}) for name, logs in steps.items() if logs.attempts]
    return sorted(found, key=lambda cost: cost.began)


def wall(steps: Sequence[Cost]) -> float:
    """Seconds from the first task of all to the last; 0 for none."""
    if not steps:
        return 0.0
    return max(cost.began + cost.wall_seconds for cost in steps) - min(cost.began for cost in steps)


def energy(steps: Sequence[Cost]) -> float | None:
    """Joules of all steps; None if none was measured."""
    known = [cost.joules for cost in steps if cost.joules is not None]
    return sum(known) if known else None


def _cost(step: str, logs: StepLogs, accounted: Mapping[str, Usage]) -> Cost:
    tries = _attempts(logs, accounted)
    hours = {kind: sum(one.seconds * one.began.get(kind, 0) for one in tries) / 3600 for kind in ("cpus", "gpus")}
    known = [one.usage for one in tries if one.usage]
    joules = [usage.joules for usage in known if usage.joules is not None]
    peaks = [usage.peak_bytes for usage in known if usage.peak_bytes is not None]
    peaks += [one.ended["peak_mb"] * 2**20 for one in tries if one.ended and "peak_mb" in one.ended]
    on_gpu = max((row.get("timing", {}).get("memory_gb", 0.0) for row in logs.metrics), default=0.0)
    return Cost(
        step=step,
        shards=len({line["shard"] for line in logs.manifest}),
        began=(began := min(one.began["time"] for one in tries)),
        wall_seconds=max(one.began["time"] + one.seconds for one in tries) - began,
        cpu_hours=hours["cpus"],
        gpu_hours=hours["gpus"],
        joules=sum(joules) if joules else None,
        peak_bytes=max(peaks, default=None),
        gpu_peak_bytes=round(on_gpu * 1e9) or None,
        attempts=len(tries),
        interrupted=sum(one.interrupted for one in tries),
        wasted_seconds=_wasted(tries, logs),
        nodes=tuple(dict.fromkeys(str(one.began["node"]) for one in tries)),
    )


def _attempts(logs: StepLogs, accounted: Mapping[str, Usage]) -> list[_Attempt]:
    """A step's attempts with their lengths.

    One that was killed could not note its end: it is Slurm's, where there is an account, and lasts no longer than to
    the next attempt of its pack.
    """
    found = {(row["pack"], row["attempt"]): _Attempt(row) for row in logs.attempts if row["event"] == "began"}
    for row in logs.attempts:
        if row["event"] not in ("began", "asked") and (row["pack"], row["attempt"]) in found:
            found[row["pack"], row["attempt"]].ended = row
    for line in logs.manifest:
        if (line.get("pack"), line["attempt"]) in found:
            found[line["pack"], line["attempt"]].lines.append(line)
    for (pack, number), one in found.items():
        one.usage = accounted.get(one.began.get("job", ""))
        following = found.get((pack, number + 1))
        ends = [one.usage.seconds] if one.usage else []
        if following and (between := following.began["time"] - one.began["time"]) > 0:  # else their clocks differ
            ends.append(between)
        one.seconds = max(0.0, one.ended["time"] - one.began["time"]) if one.ended else min(ends, default=0.0)
    return list(found.values())


def _wasted(tries: Sequence[_Attempt], logs: StepLogs) -> float:
    interrupted = [one for one in tries if one.interrupted]
    wasted = sum(one.seconds for one in interrupted) - sum(line["seconds"] for one in interrupted for line in one.lines)
    if logs.restarts:  # the steps that a restart went on from were not lost with the attempt that took them
        kept = logs.restarts[-1]["step"]
        wasted -= sum(row["timing"]["seconds"] for row in logs.metrics if row["step"] <= kept)
    newest = {line["shard"]: line for line in logs.manifest}
    wasted += sum(line["seconds"] for line in logs.manifest if _written_again(line, newest[line["shard"]]))
    return max(0.0, wasted) + sum(one.ended.get("waited", 0.0) for one in tries if one.ended)


def _written_again(line: Row, newest: Row) -> bool:
    """True for a line of a shard that was lost after it was finished: the newest is of the same inputs and settings."""
    return line is not newest and all(line.get(key) == newest.get(key) for key in ("of", "inputs", "config"))
