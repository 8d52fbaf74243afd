"""Where a run stands: per step done, running, waiting and failed shards, ETA, and failures by kind."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from lumen_hpc.cluster import graph, live, lock, manifest, plan, reasons, slurm, triage
from lumen_hpc.cluster.accounting import Accounting
from lumen_hpc.cluster.stage import Run, Stage, Step

RUNNING = (
    "RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "SUSPENDED", "STOPPED",
)  # fmt: skip
"""States of a job that holds nodes."""


@dataclass
class StepStatus:
    step: str
    state: str
    """done, running, queued, failed, stuck or waiting; unknown where only the queue could tell."""
    done: int
    shards: int
    running: int = 0
    """Tasks that run now."""
    queued: int = 0
    """Tasks that wait in Slurm's queue for their turn, or for what they read."""
    successors: int = 0
    """Tasks that stand by in case an earlier one fails; they never start otherwise."""
    eta_seconds: float | None = None
    gpu_hours: float = 0.0
    """Spent on finished shards."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    """Why its tasks are pending, where others being first is not all."""
    progress: str = ""
    """How far and how fast the shard under way is, by its own measurement."""
    logs: str = ""

    @property
    def todo(self) -> str:
        """The first thing to do about a step that does not go on by itself; empty for any other."""
        if self.state not in ("failed", "stuck"):
            return ""
        return str(self.failures[0]["fix"]) if self.failures else (self.waits or [""])[0].partition("fix: ")[2]


def of(run: Run, stages: Sequence[Stage]) -> list[StepStatus]:
    """The status of every step that the run's settings include."""
    everything = graph.steps(stages, run.settings)
    tasks = _tasks(run)
    here = run.profile.executor == "local" and lock.is_held(run.folder)
    newest, account = live.newest(run.folder), Accounting()
    return [
        _step(run, step, everything, tasks.get(step.name, []), here, newest.get(step.name), account)
        for step in everything
    ]


def by_files(run: Run, stages: Sequence[Stage]) -> list[StepStatus]:
    """What the files say alone, while the queue is unknown: what is done, and the failures on record of what is not."""
    everything = graph.steps(stages, run.settings)
    newest = live.newest(run.folder)
    steps = []
    for step in everything:
        folder = run.folder / step.name
        found, missing = _counted(run, step, everything)
        alive = {row["job"] for row in triage.unended(folder)}  # for all that is known
        lost = triage.corrupt(run, step, everything, missing)
        others = _without(missing, lost)
        found.failures = _described(lost + triage.failure_kinds(folder, others, alive, newest=newest.get(step.name)))
        found.state = "done" if not missing else "unknown"
        steps.append(found)
    return steps


def _counted(run: Run, step: Step, everything: list[Step]) -> tuple[StepStatus, list[int]]:
    """A step's status without its state, and its missing shards."""
    shards, folder = step.stage.shards(run.settings), run.folder / step.name
    missing = plan.missing(run, step, everything)
    found = StepStatus(step.name, "", shards - len(missing), shards, logs=str(folder / "logs"))
    found.gpu_hours = sum(line["gpu_seconds"] for line in manifest.latest(folder).values()) / 3600
    return found, missing


def _without(missing: list[int], lost: Sequence[triage.FailureKind]) -> list[int]:
    """The missing shards that these kinds of failure do not explain."""
    return [index for index in missing if not any(index in kind.shards for kind in lost)]


def _described(kinds: list[triage.FailureKind]) -> list[dict[str, Any]]:
    return [{**dataclasses.asdict(kind), "shards": sorted(kind.shards), "nodes": sorted(kind.nodes)} for kind in kinds]


@dataclass
class _Packed:
    """A task in the queue and the pack that it would work on."""

    pack: tuple[str, int]
    """Submission and number."""
    shards: set[int]
    link: int
    job: slurm.Job


def _tasks(run: Run) -> dict[str, list[_Packed]]:
    """Tasks of a run in the queue, by step; gates are not among them."""
    queued = live.queue(run)
    found: dict[str, list[_Packed]] = {}
    for record in live.submissions(run.folder) if queued else ():
        for job in record["jobs"]:
            for position, task in {} if job.get("gate") else live.tasks(record, job, queued).items():
                number = job["packs"][position]
                shards = set(record["packs"][job["step"]][number])
                found.setdefault(job["step"], []).append(
                    _Packed((record["folder"].name, number), shards, job["link"], task)
                )
    return found


def _queued_again(tasks: list[_Packed]) -> set[int]:
    """Shards whose own tasks have not started; a finished one among them may change, because what it reads does."""
    return {shard for task in tasks if task.link == 0 and task.job.state == "PENDING" for shard in task.shards}


def _working(tasks: list[_Packed], missing: Collection[int]) -> list[slurm.Job]:
    """The tasks that run, or wait to work on missing shards; any other is a successor that stands by."""
    first: dict[tuple[str, int], _Packed] = {}
    for task in sorted(tasks, key=lambda task: task.link):
        if task.shards & set(missing):
            first.setdefault(task.pack, task)
    return [task.job for task in tasks if task.job.state in RUNNING or first.get(task.pack) is task]


def _step(
    run: Run, step: Step, everything: list[Step], tasks: list[_Packed], here: bool, newest: dict[int, str] | None,
    account: Accounting,
) -> StepStatus:  # fmt: skip
    """`here`: a command on this machine runs the steps itself, so tasks that have not ended are alive.

    `newest`: the last submission of each shard; what failed before it is past.
    """
    found, missing = _counted(run, step, everything)
    folder = run.folder / step.name
    if again := _queued_again(tasks) - set(missing):
        missing = sorted({*missing, *again})
        found.done -= len(again)
    jobs = _working(tasks, missing)
    running = sum(job.state in RUNNING for job in jobs)
    found.queued = len(jobs) - running
    if here and missing:
        running = len(triage.unended(folder))
    found.running, found.successors = running, len(tasks) - len(jobs)
    lost = [] if jobs or here else triage.corrupt(run, step, everything, missing)
    others = _without(missing, lost)
    alive = {job.id for job in jobs} | ({""} if here else set())
    kinds = triage.failure_kinds(folder, others, alive, account.usage, newest)
    if not kinds and others and not jobs and not tasks:
        kinds = triage.before_work(run, step, others, _inputs_done(run, step, everything), account.usage)
    kinds = lost + kinds
    found.failures = _described(kinds)
    own = step.stage.progress(run.settings, folder) if missing else None
    found.progress = str(own or "")
    if not missing:
        found.state = "done"
    elif running:
        found.state = "running"
        if paused := sum(job.state in ("SUSPENDED", "STOPPED") for job in jobs):
            found.waits = [f"{paused} task(s) suspended, as for jobs of others; fix: wait, or scontrol resume JOB"]
        seconds = sorted(line["seconds"] for line in manifest.latest(folder).values())
        if seconds:
            found.eta_seconds = seconds[len(seconds) // 2] * len(missing) / running
        elif own:
            found.eta_seconds = own.eta_seconds
    elif jobs and all(job.never_starts for job in jobs):
        found.state = "stuck"
        fix = f"submit again, which clears them: python launch.py stage=full {run.words}"
        error = "its dependency failed, and this site keeps such jobs queued"
        found.failures.append({"error": error, "count": len(jobs), "fix": fix})
    elif jobs:
        found.state = "queued"
        found.waits = _waits(jobs)
        if found.waits and all((why := reasons.explain(job.reason)) and not why.starts for job in jobs):
            found.state = "stuck"
    else:
        found.state = "failed" if kinds else "waiting"
    return found


def server(run: Run) -> list[str]:
    """Lines about the run's server: address, key, tunnel; none where it does not run."""
    from lumen_hpc.serving.supervisor import answers, read_address

    address = read_address(run.folder / "serve")
    if address is None:
        return []
    if not address.job or not slurm.installed():
        return address.lines() if answers(address.host, address.port) else []
    try:
        running = any(name.split("_")[0] == address.job for name in slurm.queue())
    except slurm.Unreachable:  # the queue is unknown, and the address is on record
        running = True
    return address.lines() if running else []


def _inputs_done(run: Run, step: Step, everything: list[Step]) -> bool:
    return not any(plan.missing(run, other, everything) for other in everything if other.name in step.after)


def _waits(jobs: list[slurm.Job]) -> list[str]:
    """A line for each reason that says more than that others are first."""
    lines = []
    for reason, count in Counter(job.reason for job in jobs).items():
        if why := reasons.explain(reason):
            ever = "" if why.starts else ", and cannot start as submitted"
            lines.append(f"{count} task(s) pending ({reason}): {why.meaning}{ever}; fix: {why.fix}")
    return lines
