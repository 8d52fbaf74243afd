"""The same stages without Slurm: one step after another through submitit's local executor, with a progress bar."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lumen_hpc.cluster import manifest, submit, triage
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.stage import Run, Stage, Step
from lumen_hpc.config import Request
from lumen_hpc.errors import UserError


class Failed(Exception):
    """A step did not finish; the message says which, why and where to look."""


def run_all(request: Request, stages: list[Stage], run: Run, plans: list[StepPlan], console: Console) -> None:
    """Runs the plans' steps in order; Failed at the first that does not finish."""
    graph = [item.step for item in plans]
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for position, item in enumerate(plans):
            fresh = _plan_now(request, stages, run, item.step)
            bar = bars.add_task(item.step.name, total=fresh.shards, completed=fresh.shards - len(fresh.missing))
            if not fresh.packs:
                console.print(f"[{position + 1}/{len(graph)}] {item.step.name}: done already")
                continue
            console.print(f"[{position + 1}/{len(graph)}] {item.step.name}: {item.step.stage.about}")
            begin = time.monotonic()
            _run_step(request, stages, run, fresh, lambda done, bar=bar: bars.update(bar, completed=done))  # type: ignore[misc]
            console.print(f"      {time.monotonic() - begin:.0f} s")


def _plan_now(request: Request, stages: list[Stage], run: Run, step: Step) -> StepPlan:
    request = Request(stage=step.name, run=request.run, runs=request.runs, recipe=request.recipe,
                      settings=request.settings, profile=request.profile)  # fmt: skip
    return submit.make(request, stages, run)[0][0]


def _run_step(request: Request, stages: list[Stage], run: Run, item: StepPlan, progress: Callable[[int], None]) -> None:
    name = item.step.name
    for attempt in range(1 + item.resources.successors):
        noted = len(manifest.read(run.folder / name / "failures.jsonl"))
        submission = submit.begin(request, run, [item])
        submit.record(request, run, submission)
        log = _attempt(run, item, submission, progress)
        item = _plan_now(request, stages, run, item.step)
        if not item.missing:
            progress(item.shards)
            return
        # an exception would come again; only what was killed or interrupted is worth another try here
        failed = len(manifest.read(run.folder / name / "failures.jsonl")) > noted
        if failed or attempt == item.resources.successors:
            raise Failed(_why(item, triage.clusters(run.folder / name, item.missing), log))


def _attempt(run: Run, item: StepPlan, submission: submit.Submission, progress: Callable[[int], None]) -> str:
    """Runs a step's packs once and waits for them; returns the path of a log."""
    import submitit

    from jobs import run_pack

    name = item.step.name
    os.environ |= {"PYTHONPATH": str(submission.code), "LUMEN_SUBMISSION": submission.name, **run.profile.environment}
    executor = submitit.LocalExecutor(folder=run.folder / name / "logs")
    executor.update_parameters(timeout_min=100_000, tasks_per_node=item.resources.tasks_per_node)
    arguments = (str(run.folder), str(submission.folder), name)
    before = len(manifest.read(run.folder / name / manifest.NAME))
    jobs = [executor.submit(run_pack, *arguments, pack) for pack in range(len(item.packs))]
    try:
        while not all(job.done() for job in jobs):
            written = len(manifest.read(run.folder / name / manifest.NAME)) - before
            progress(item.shards - len(item.missing) + written)
            time.sleep(0.2)
    except KeyboardInterrupt:
        _stop(jobs)
        raise
    return str(jobs[0].paths.stderr)


def _stop(jobs: Sequence[Any]) -> None:
    """Asks the tasks to save, and waits for them a while."""
    for job in jobs:
        job._process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(job.done() for job in jobs):
        time.sleep(0.1)


def _why(item: StepPlan, kinds: list[triage.Cluster], log: str) -> str:
    lines = [f"{item.step.name}: {len(item.missing)} of {item.shards} shards are missing"]
    for kind in kinds[:5]:
        lines.append(f"  {kind.count}x {kind.error}")
        lines.append(f"     cure: {kind.cure}")
    if not kinds:
        lines.append("  no failure was noted: a task was killed from outside, or could not start")
    lines.append(f"  log: {log}")
    return "\n".join(lines)


def require_possible(request: Request) -> None:
    """Refuses what only Slurm can do."""
    for kind, wanted in request.profile.resources.items():
        if wanted.nodes > 1:
            raise UserError(
                f"profile.resources.{kind}.nodes={wanted.nodes}: the local executor has one node; use a Slurm profile"
            )
