"""Where a run stands: per step done, running, waiting and failed shards, ETA, and failures by kind."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import graph, live, lock, manifest, plan, reasons, slurm, triage
from lumen_hpc.cluster.accounting import Accounting
from lumen_hpc.cluster.stage import Run, Stage, Step
from lumen_hpc.training.speed import Progress

RUNNING = (
    "RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "SUSPENDED", "STOPPED",
)  # fmt: skip
"""States of a job that holds nodes."""

SEES_NO_GPU = "a torch that fits the nodes' CUDA driver (nvidia-smi there shows it), or resources without GPUs"


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
    notes: list[str] = field(default_factory=list)
    """What its tasks noticed, though nothing failed."""
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
    here = run.profile.executor == "local" and lock.is_held(run.folder)
    jobs = _Jobs(*_tasks(run), here, live.newest(run.folder), Accounting())
    return [_step(run, step, everything, jobs) for step in everything]


def by_files(run: Run, stages: Sequence[Stage]) -> list[StepStatus]:
    """What the files say alone, while the queue is unknown: what is done, and the failures on record of what is not."""
    everything = graph.steps(stages, run.settings)
    newest = live.newest(run.folder)
    steps = []
    for step in everything:
        folder = run.folder / step.name
        found, missing = _counted(run, step, everything)
        alive = {row["job"] for row in triage.unended(folder)}  # for all that is known
        last = newest.get(step.name)
        find = partial(triage.failure_kinds, folder, live=alive, newest=last)
        found.failures = _described(_explained(run, step, everything, missing, last, find))
        found.state = "done" if not missing else "unknown"
        steps.append(found)
    return steps


def _counted(run: Run, step: Step, everything: list[Step]) -> tuple[StepStatus, list[int]]:
    """A step's status without its state, and its missing shards."""
    shards, folder = step.stage.shards(run.settings), run.folder / step.name
    missing = plan.missing_shards(run, step, everything)
    found = StepStatus(step.name, "", shards - len(missing), shards, logs=str(folder / "logs"))
    found.gpu_hours = sum(line["gpu_seconds"] for line in manifest.latest(folder).values()) / 3600
    found.notes = [f"{blind}; fix: {SEES_NO_GPU}" for blind in triage.blind(folder)]
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


def _tasks(run: Run) -> tuple[dict[str, list[_Packed]], dict[str, list[slurm.Job]]]:
    """Tasks of a run in the queue, by step, and likewise its gates."""
    queued = live.queue(run)
    found: dict[str, list[_Packed]] = {}
    gates: dict[str, list[slurm.Job]] = {}
    for record in live.submissions(run.folder) if queued else ():
        for job in record["jobs"]:
            for position, task in live.tasks(record, job, queued).items():
                if job.get("gate"):
                    gates.setdefault(job["step"], []).append(task)
                    continue
                number = job["packs"][position]
                shards = set(record["packs"][job["step"]][number])
                found.setdefault(job["step"], []).append(
                    _Packed((record["folder"].name, number), shards, job["link"], task)
                )
    return found, gates


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


@dataclass(frozen=True)
class _Jobs:
    """What is known of a run's jobs beside the files that they write."""

    tasks: dict[str, list[_Packed]]
    """Tasks in the queue, by step."""
    gates: dict[str, list[slurm.Job]]
    """Gates in the queue, by the step whose readers wait for them."""
    here: bool
    """A command on this machine runs the steps itself, so tasks that have not ended are alive."""
    newest: dict[str, dict[int, str]]
    """By step, the last submission of each shard; what failed before it is past."""
    account: Accounting


def _step(run: Run, step: Step, everything: list[Step], known: _Jobs) -> StepStatus:
    found, missing = _counted(run, step, everything)
    folder, tasks = run.folder / step.name, known.tasks.get(step.name, [])
    if again := _queued_again(tasks) - set(missing):
        missing = sorted({*missing, *again})
        found.done -= len(again)
    jobs = _working(tasks, missing)
    found.running = sum(job.state in RUNNING for job in jobs)
    found.queued, found.successors = len(jobs) - found.running, len(tasks) - len(jobs)
    if known.here and missing:
        found.running = len(triage.unended(folder))
    found.failures = _described(_failures(run, step, everything, missing, jobs, known))
    own = step.stage.progress(run.settings, folder) if missing else None
    found.progress = str(own or "")
    if not missing:
        found.state = "done"
    elif found.running:
        found.state, found.eta_seconds = "running", _eta_seconds(folder, len(missing) / found.running, own)
        if paused := sum(job.state in ("SUSPENDED", "STOPPED") for job in jobs):
            found.waits = [f"{paused} task(s) suspended, as for jobs of others; fix: wait, or scontrol resume JOB"]
    elif jobs and all(job.never_starts for job in jobs):
        found.state = "stuck"
        fix = f"submit again, which clears them: python launch.py stage=full {run.arguments}"
        error = "its dependency failed, and this site keeps such jobs queued"
        found.failures.append({"error": error, "count": len(jobs), "fix": fix})
    elif jobs:
        found.state = "queued"
        found.waits = _waits(run, step, jobs)
        if found.waits and all((why := reasons.explain(job.reason)) and not why.starts for job in jobs):
            found.state = "stuck"
    else:
        found.state = "failed" if found.failures else "waiting"
    found.waits += [
        f"what reads it waits for its gate: {line}" for line in _waits(run, step, known.gates.get(step.name, []))
    ]
    return found


def _failures(
    run: Run, step: Step, everything: list[Step], missing: list[int], jobs: list[slurm.Job], known: _Jobs
) -> list[triage.FailureKind]:
    """The failures of a step's missing shards; `jobs` are those that work on them, or will."""
    alive = {job.id for job in jobs} | ({""} if known.here else set())
    usage, newest = known.account.usage, known.newest.get(step.name)

    def find(shards: list[int]) -> list[triage.FailureKind]:
        kinds = triage.failure_kinds(run.folder / step.name, shards, alive, usage, newest)
        if not kinds and shards and not known.tasks.get(step.name):
            kinds = triage.before_work(run, step, shards, _inputs_done(run, step, everything), usage)
        return kinds

    return find(missing) if jobs or known.here else _explained(run, step, everything, missing, newest, find)


def _explained(
    run: Run,
    step: Step,
    everything: list[Step],
    missing: list[int],
    newest: Mapping[int, str] | None,
    find: Callable[[list[int]], list[triage.FailureKind]],
) -> list[triage.FailureKind]:
    """Why shards are missing: lost after they were finished, or what `find` knows of their tasks.

    Of a lost shard that was submitted again, what became of that comes first: the same command did not help.
    """
    lost = triage.corrupt(run, step, everything, missing)
    again = triage.submitted_again(run.folder / step.name, newest or {}) if lost else set()
    kinds = find(sorted({*_without(missing, lost), *(again & set(missing))}))
    return kinds + lost if again and kinds else lost + kinds


def _eta_seconds(folder: Path, rounds: float, own: Progress | None) -> float | None:
    """Seconds until the missing shards are done, `rounds` for each running task: by those that are done, or its own."""
    if seconds := sorted(line["seconds"] for line in manifest.latest(folder).values()):
        return seconds[len(seconds) // 2] * rounds
    return own.eta_seconds if own else None


def server(run: Run) -> list[str]:
    """Lines about the run's server: address, key, tunnel; none where it does not run."""
    from lumen_hpc.serving.supervisor import is_listening, read_address

    address = read_address(run.folder / "serve")
    if address is None:
        return []
    if not address.job or not slurm.installed():
        here = address.node == socket.gethostname() and is_listening(address.process, address.port)
        return address.lines() if here else []
    try:
        jobs = [job for name, job in slurm.queue().items() if name.split("_")[0] == address.job]
        running = any(job.state == "RUNNING" for job in jobs)  # one that is queued again listens nowhere
    except slurm.Unreachable:  # the queue is unknown, and the address is on record
        running = True
    return address.lines() if running else []


def _inputs_done(run: Run, step: Step, everything: list[Step]) -> bool:
    return not any(plan.missing_shards(run, other, everything) for other in everything if other.name in step.after)


def _waits(run: Run, step: Step, jobs: list[slurm.Job]) -> list[str]:
    """A line for each reason that says more than that others are first."""
    lines = []
    for reason in dict.fromkeys(job.reason for job in jobs):
        if why := reasons.explain(reason):
            ids = [job.id for job in jobs if job.reason == reason]
            fix = why.fix.replace("JOB", ",".join(dict.fromkeys(id_.split("_")[0] for id_ in ids)))
            ever = ""
            if not why.starts:
                ever = ", and cannot start as submitted"
                fix = f"python launch.py cancel stage={step.name} {run.arguments}, then submit again with: {fix}"
            lines.append(f"{len(ids)} task(s) pending ({reason}): {why.meaning}{ever}; fix: {fix}")
    return lines
