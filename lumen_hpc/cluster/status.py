"""Where a run stands: per step done, running, waiting and failed shards, ETA, and failures by kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from lumen_hpc.cluster import graph, lock, manifest, plan, slurm, submit, triage
from lumen_hpc.cluster.stage import Run, Stage, Step


@dataclass
class StepStatus:
    step: str
    state: str
    """done, running, queued, failed, stuck or waiting."""
    done: int
    shards: int
    running: int = 0
    """Tasks that run now."""
    queued: int = 0
    """Tasks that wait in Slurm's queue."""
    eta_seconds: float | None = None
    gpu_hours: float = 0.0
    """Spent on finished shards."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    logs: str = ""


def of(run: Run, stages: Sequence[Stage]) -> list[StepStatus]:
    """The status of every step that the run's settings include."""
    everything = graph.steps(stages, run.settings)
    jobs = _jobs(run)
    here = run.profile.executor == "local" and lock.is_held(run.folder)
    return [_step(run, step, everything, jobs.get(step.name, []), here) for step in everything]


def _jobs(run: Run) -> dict[str, list[slurm.Job]]:
    """Live jobs of a run by step."""
    records = list(submit.submissions(run.folder))
    if not any(record["jobs"] for record in records) or not slurm.installed():
        return {}
    queued = slurm.queue()
    found: dict[str, list[slurm.Job]] = {}
    for record in records:
        for job in record["jobs"]:
            names = slurm.expand(job["id"], len(job["packs"]))
            found.setdefault(job["step"], []).extend(queued[name] for name in names if name in queued)
    return found


def _step(run: Run, step: Step, everything: list[Step], jobs: list[slurm.Job], here: bool) -> StepStatus:
    """`here`: a command on this machine runs the steps itself, so tasks that have not ended are alive."""
    shards = step.stage.shards(run.settings)
    missing = plan.missing(run, step, everything)
    folder = run.folder / step.name
    running = sum(job.state in ("RUNNING", "COMPLETING") for job in jobs)
    queued = len(jobs) - running
    if here and missing:
        running = len(triage.unended(folder))
    found = StepStatus(step.name, "", shards - len(missing), shards, running, queued, logs=str(folder / "logs"))
    lines = manifest.latest(folder).values()
    found.gpu_hours = sum(line["gpu_seconds"] for line in lines) / 3600
    kinds = triage.clusters(folder, missing, {job.id for job in jobs} | ({""} if here else set()))
    found.failures = [
        {**dataclasses.asdict(kind), "shards": sorted(kind.shards), "nodes": sorted(kind.nodes)} for kind in kinds
    ]
    if not missing:
        found.state = "done"
    elif running:
        found.state = "running"
        seconds = sorted(line["seconds"] for line in lines)
        if seconds:
            found.eta_seconds = seconds[len(seconds) // 2] * len(missing) / running
    elif any("DependencyNeverSatisfied" in job.reason for job in jobs):
        found.state = "stuck"
        fix = f"submit again, which clears them: python launch.py stage=full run={run.folder.name}"
        error = "its dependency failed, and this site keeps such jobs queued"
        found.failures.append({"error": error, "count": len(jobs), "fix": fix})
    elif jobs:
        found.state = "queued"
    else:
        found.state = "failed" if kinds else "waiting"
    return found


def server(run: Run) -> list[str]:
    """Lines about the run's server: address, key, tunnel; none where it does not run."""
    from lumen_hpc.serving.supervisor import alive, read_address

    address = read_address(run.folder / "serve")
    if address is None:
        return []
    if address.job and slurm.installed():
        running = any(job.id.split("_")[0] == address.job for job in slurm.queue().values())
    else:
        running = alive(address)
    return address.lines() if running else []


def table(run: Run, found: list[StepStatus], console: Console) -> None:
    """Prints a run's status for people."""
    view = Table(
        "step", "state", "shards", "running", "queued", "ETA", "GPU-h", title=str(run.folder), title_justify="left"
    )
    for item in found:
        counts = (f"{item.done}/{item.shards}", str(item.running or ""), str(item.queued or ""))
        spent = f"{item.gpu_hours:.2f}" if item.gpu_hours else ""
        view.add_row(item.step, item.state, *counts, spell(item.eta_seconds), spent)
    console.print(view)
    for item in found:
        for kind in item.failures:
            where = f" on {', '.join(kind['nodes'])}" if kind.get("nodes") else ""
            console.print(f"{item.step}: {kind['count']}x {kind['error']}{where}", markup=False)
            console.print(f"   fix: {kind['fix']}", markup=False)
            if kind.get("log"):
                console.print(f"   log:  {kind['log']}", markup=False, soft_wrap=True)


def spell(seconds: float | None) -> str:
    """A duration for people: 45 s, 12 min, 3.5 h."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
