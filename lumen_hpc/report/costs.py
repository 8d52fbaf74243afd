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
    """Requested cores × time, of every attempt: what a site charges."""
    gpu_hours: float
    """Requested GPUs × time, of every attempt."""
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


def costs(steps: Mapping[str, StepLogs], slurm_usage: Mapping[str, Usage] | None = None) -> list[Cost]:
    """A line for each step that was started, in that order; `slurm_usage` is Slurm's usage by job id, None without."""
    step_costs = [_cost(name, logs, slurm_usage or {}) for name, logs in steps.items() if logs.attempts]
    return sorted(step_costs, key=lambda cost: cost.began)


def wall_seconds(steps: Sequence[Cost]) -> float:
    """Seconds from the first task of all to the last; 0 for none."""
    if not steps:
        return 0.0
    return max(cost.began + cost.wall_seconds for cost in steps) - min(cost.began for cost in steps)


def energy(steps: Sequence[Cost]) -> float | None:
    """Joules of all steps; None if none was measured."""
    measured = [cost.joules for cost in steps if cost.joules is not None]
    return sum(measured) if measured else None


def _cost(step: str, logs: StepLogs, slurm_usage: Mapping[str, Usage]) -> Cost:
    attempts = _attempts(logs, slurm_usage)
    hours = {
        kind: sum(attempt.seconds * attempt.began.get(kind, 0) for attempt in attempts) / 3600
        for kind in ("cpus", "gpus")
    }
    usages = [attempt.usage for attempt in attempts if attempt.usage]
    joules = [usage.joules for usage in usages if usage.joules is not None]
    peaks = [usage.peak_bytes for usage in usages if usage.peak_bytes is not None]
    peaks += [attempt.ended["peak_mb"] * 2**20 for attempt in attempts if attempt.ended and "peak_mb" in attempt.ended]
    gpu_memory_gb = max((row.get("timing", {}).get("memory_gb", 0.0) for row in logs.metrics), default=0.0)
    return Cost(
        step=step,
        shards=len({line["shard"] for line in logs.manifest}),
        began=(began := min(attempt.began["time"] for attempt in attempts)),
        wall_seconds=max(attempt.began["time"] + attempt.seconds for attempt in attempts) - began,
        cpu_hours=hours["cpus"],
        gpu_hours=hours["gpus"],
        joules=sum(joules) if joules else None,
        peak_bytes=max(peaks, default=None),
        gpu_peak_bytes=round(gpu_memory_gb * 1e9) or None,
        attempts=len(attempts),
        interrupted=sum(attempt.interrupted for attempt in attempts),
        wasted_seconds=_wasted_seconds(attempts, logs),
        nodes=tuple(dict.fromkeys(str(attempt.began["node"]) for attempt in attempts)),
    )


def _attempts(logs: StepLogs, slurm_usage: Mapping[str, Usage]) -> list[_Attempt]:
    """A step's attempts with their lengths.

    One that was killed could not note its end: it is Slurm's, where there is an account, and lasts no longer than to
    the next attempt of its pack.
    """
    attempts = {(row["pack"], row["attempt"]): _Attempt(row) for row in logs.attempts if row["event"] == "began"}
    for row in logs.attempts:
        if row["event"] not in ("began", "asked") and (row["pack"], row["attempt"]) in attempts:
            attempts[row["pack"], row["attempt"]].ended = row
    for line in logs.manifest:
        if (line.get("pack"), line["attempt"]) in attempts:
            attempts[line["pack"], line["attempt"]].lines.append(line)
    for (pack, number), attempt in attempts.items():
        attempt.usage = slurm_usage.get(attempt.began.get("job", ""))
        successor = attempts.get((pack, number + 1))
        ends = [attempt.usage.seconds] if attempt.usage else []
        if successor and (gap_s := successor.began["time"] - attempt.began["time"]) > 0:  # else their clocks differ
            ends.append(gap_s)
        attempt.seconds = (
            max(0.0, attempt.ended["time"] - attempt.began["time"]) if attempt.ended else min(ends, default=0.0)
        )
    return list(attempts.values())


def _wasted_seconds(attempts: Sequence[_Attempt], logs: StepLogs) -> float:
    interrupted = [attempt for attempt in attempts if attempt.interrupted]
    wasted = sum(attempt.seconds for attempt in interrupted) - sum(
        line["seconds"] for attempt in interrupted for line in attempt.lines
    )
    if logs.restarts:  # the steps that a restart went on from were not lost with the attempt that took them
        resumed_step = logs.restarts[-1]["step"]
        wasted -= sum(row["timing"]["seconds"] for row in logs.metrics if row["step"] <= resumed_step)
    newest_lines = {line["shard"]: line for line in logs.manifest}
    wasted += sum(line["seconds"] for line in logs.manifest if _written_again(line, newest_lines[line["shard"]]))
    return max(0.0, wasted) + sum(attempt.ended.get("waited", 0.0) for attempt in attempts if attempt.ended)


def _written_again(line: Row, newest: Row) -> bool:
    """True for a line of a shard that was lost after it was finished: the newest is of the same inputs and settings."""
    return line is not newest and all(line.get(key) == newest.get(key) for key in ("of", "inputs", "config"))
