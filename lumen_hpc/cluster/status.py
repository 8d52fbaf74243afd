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

RUNNING_STATES = (
    "RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "SUSPENDED", "STOPPED",
)  # fmt: skip
"""States of a job that holds nodes."""

NO_GPU_FIX = "a torch that fits the nodes' CUDA driver (nvidia-smi there shows it), or resources without GPUs"


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
    """Why its tasks are pending, where the reason is more than their turn in the queue."""
    notes: list[str] = field(default_factory=list)
    """Warnings of its tasks, though nothing failed."""
    progress: str = ""
    """How far and how fast the shard under way is, by its own measurement."""
    logs: str = ""

    @property
    def first_fix(self) -> str:
        """The first fix of a step that does not continue by itself; empty for any other."""
        if self.state not in ("failed", "stuck"):
            return ""
        return str(self.failures[0]["fix"]) if self.failures else (self.waits or [""])[0].partition("fix: ")[2]


def read(run: Run, stages: Sequence[Stage], stage: str = "") -> list[StepStatus]:
    """The status of every step that the run's settings include. Raises Unreachable where the queue is unknown.

    Those of stages on request come last: of `stage`, if it is one, and of others while their tasks are under way.
    """
    live.require_known_queue(run)
    all_steps = graph.steps(stages, run.settings, stage)
    runs_here = run.profile.executor == "local" and lock.is_held(run.folder)
    jobs = _Jobs(*_queued_tasks(run), runs_here, live.newest_submissions(run.folder), Accounting())
    for other in stages:
        if other.on_request and not graph.on_request([other], stage):
            steps = graph.steps(stages, run.settings, other.name)
            all_steps += [step for step in steps if step.stage is other and _is_live(run, step, jobs)]
    return [_step_status(run, step, all_steps, jobs) for step in all_steps]


def _is_live(run: Run, step: Step, jobs: _Jobs) -> bool:
    """Whether a step has tasks in the queue, or a command on this machine runs them."""
    return step.name in jobs.tasks or (jobs.runs_here and bool(triage.unended_attempts(run.folder / step.name)))


def read_files(run: Run, stages: Sequence[Stage], stage: str = "") -> list[StepStatus]:
    """The status by the files alone, while the queue is unknown: finished shards, and failures of the others."""
    all_steps = graph.steps(stages, run.settings, stage)
    newest_submissions = live.newest_submissions(run.folder)
    steps = []
    for step in all_steps:
        folder = run.folder / step.name
        step_status, missing = _count_shards(run, step, all_steps)
        live_ids = {row["job"] for row in triage.unended_attempts(folder)}  # for all that is known
        step_submissions = newest_submissions.get(step.name)
        find_kinds = partial(triage.failure_kinds, folder, live_ids=live_ids, step_submissions=step_submissions)
        step_status.failures = _as_dicts(step, _explain(run, step, all_steps, missing, step_submissions, find_kinds))
        step_status.state = "done" if not missing else "unknown"
        steps.append(step_status)
    return steps


def _count_shards(run: Run, step: Step, all_steps: list[Step]) -> tuple[StepStatus, list[int]]:
    """A step's status without its state, and its missing shards."""
    shards, folder = step.stage.shards(run.settings), run.folder / step.name
    missing = plan.missing_shards(run, step, all_steps)
    step_status = StepStatus(step.name, "", shards - len(missing), shards, logs=str(folder / "logs"))
    step_status.gpu_hours = sum(line["gpu_seconds"] for line in manifest.latest(folder).values()) / 3600
    step_status.notes = [f"{warning}; fix: {NO_GPU_FIX}" for warning in triage.missing_gpu_warnings(folder)]
    return step_status, missing


def _unexplained_shards(missing: list[int], kinds: Sequence[triage.FailureKind]) -> list[int]:
    """The missing shards that these kinds of failure do not explain."""
    return [index for index in missing if not any(index in kind.shards for kind in kinds)]


def _as_dicts(step: Step, kinds: list[triage.FailureKind]) -> list[dict[str, Any]]:
    return [
        dataclasses.asdict(kind)
        | {"shards": sorted(kind.shards), "nodes": sorted(kind.nodes)}
        | {"fix": kind.fix.replace("KIND", step.stage.resources)}
        for kind in kinds
    ]


@dataclass
class _PackTask:
    """A task in the queue and the pack that it would work on."""

    pack: tuple[str, int]
    """Submission and number."""
    shards: set[int]
    link: int
    job: slurm.Job


def _queued_tasks(run: Run) -> tuple[dict[str, list[_PackTask]], dict[str, list[slurm.Job]]]:
    """Tasks of a run in the queue, by step, and likewise its gates."""
    queued_jobs = live.queue(run)
    pack_tasks: dict[str, list[_PackTask]] = {}
    gates: dict[str, list[slurm.Job]] = {}
    for record, job, job_tasks in live.in_queue(live.submissions(run.folder), queued_jobs):
        step = job["step"]
        if job.get("gate"):
            gates.setdefault(step, []).extend(job_tasks.values())
            continue
        for position, task in job_tasks.items():
            number = job["packs"][position]
            pack, shards = (record["folder"].name, number), set(record["packs"][step][number])
            pack_tasks.setdefault(step, []).append(_PackTask(pack, shards, job["link"], task))
    return pack_tasks, gates


def _resubmitted_shards(folder: Path, tasks: list[_PackTask]) -> set[int]:
    """Shards whose first tasks never started; a finished one among them may change because its input does.

    A task that began and was queued again has its input: what it finished counts.
    """
    pending_tasks = [task for task in tasks if task.link == 0 and task.job.state == "PENDING"]
    if not pending_tasks:
        return set()
    begun_packs = {(row["chain"], row["pack"]) for row in manifest.read(folder / "attempts.jsonl")}
    return {shard for task in pending_tasks if task.pack not in begun_packs for shard in task.shards}


def _active_jobs(tasks: list[_PackTask], missing: Collection[int]) -> list[slurm.Job]:
    """The tasks that run, or wait to work on missing shards; any other is a successor that stands by."""
    first_tasks: dict[tuple[str, int], _PackTask] = {}
    for task in sorted(tasks, key=lambda task: task.link):
        if task.shards & set(missing):
            first_tasks.setdefault(task.pack, task)
    return [task.job for task in tasks if task.job.state in RUNNING_STATES or first_tasks.get(task.pack) is task]


@dataclass(frozen=True)
class _Jobs:
    """The state of a run's jobs, apart from the files that they write."""

    tasks: dict[str, list[_PackTask]]
    """Tasks in the queue, by step."""
    gates: dict[str, list[slurm.Job]]
    """Gates in the queue, by the step whose readers wait for them."""
    runs_here: bool
    """A command on this machine runs the steps itself, so tasks that have not ended are alive."""
    newest_submissions: dict[str, dict[int, str]]
    """By step, the last submission of each shard; earlier failures do not count."""
    accounting: Accounting


def _step_status(run: Run, step: Step, all_steps: list[Step], run_jobs: _Jobs) -> StepStatus:
    step_status, missing = _count_shards(run, step, all_steps)
    folder, tasks = run.folder / step.name, run_jobs.tasks.get(step.name, [])
    if resubmitted := _resubmitted_shards(folder, tasks) - set(missing):
        missing = sorted({*missing, *resubmitted})
        step_status.done -= len(resubmitted)
    active_jobs = _active_jobs(tasks, missing)
    step_status.running = sum(job.state in RUNNING_STATES for job in active_jobs)
    step_status.queued, step_status.successors = len(active_jobs) - step_status.running, len(tasks) - len(active_jobs)
    if run_jobs.runs_here and missing:
        step_status.running = len(triage.unended_attempts(folder))
    step_status.failures = _as_dicts(step, _failures(run, step, all_steps, missing, active_jobs, run_jobs))
    progress = step.stage.progress(run.settings, folder) if missing else None
    step_status.progress = str(progress or "")
    if not missing:
        step_status.state = "done"
    elif step_status.running:
        step_status.state = "running"
        step_status.eta_seconds = _eta_seconds(folder, len(missing) / step_status.running, progress)
        step_status.waits = _pending_reasons(run, step, [job for job in active_jobs if job.state not in RUNNING_STATES])
        if suspended_ids := [job.id for job in active_jobs if job.state in ("SUSPENDED", "STOPPED")]:
            step_status.waits.append(
                f"{len(suspended_ids)} task(s) suspended, as for jobs of others; fix: wait, or an administrator's "
                f"scontrol resume {_comma_separated_jobs(suspended_ids)}"
            )
    elif active_jobs and all(job.never_starts for job in active_jobs):
        step_status.state = "stuck"
        fix = f"submit again, which clears them: python launch.py stage=full {run.arguments}"
        error = "its dependency failed, and this site keeps such jobs queued"
        step_status.failures.append({"error": error, "count": len(active_jobs), "fix": fix})
    elif active_jobs:
        step_status.state = "queued"
        step_status.waits = _pending_reasons(run, step, active_jobs)
        if step_status.waits and all(
            (reason := reasons.explain(job.reason)) and not reason.starts for job in active_jobs
        ):
            step_status.state = "stuck"
    else:
        step_status.state = "failed" if step_status.failures else "waiting"
    step_status.waits += [
        f"what reads it waits for its gate: {line}"
        for line in _pending_reasons(run, step, run_jobs.gates.get(step.name, []), "cpu")
    ]
    return step_status


def _failures(
    run: Run, step: Step, all_steps: list[Step], missing: list[int], active_jobs: list[slurm.Job], run_jobs: _Jobs
) -> list[triage.FailureKind]:
    """The failures of a step's missing shards; `active_jobs` work on them, or will."""
    live_ids = {job.id for job in active_jobs} | ({""} if run_jobs.runs_here else set())
    usage, step_submissions = run_jobs.accounting.usage, run_jobs.newest_submissions.get(step.name)

    def find_kinds(shards: list[int]) -> list[triage.FailureKind]:
        kinds = triage.failure_kinds(run.folder / step.name, shards, live_ids, usage, step_submissions)
        if not kinds and shards and not run_jobs.tasks.get(step.name):
            kinds = triage.early_failures(run, step, shards, _inputs_done(run, step, all_steps), usage)
        return kinds

    return (
        find_kinds(missing)
        if active_jobs or run_jobs.runs_here
        else _explain(run, step, all_steps, missing, step_submissions, find_kinds)
    )


def _explain(
    run: Run,
    step: Step,
    all_steps: list[Step],
    missing: list[int],
    step_submissions: Mapping[int, str] | None,
    find_kinds: Callable[[list[int]], list[triage.FailureKind]],
) -> list[triage.FailureKind]:
    """Why shards are missing: lost after they were finished, or what `find_kinds` knows of their tasks.

    For a lost shard that was resubmitted, the new failure comes first: the same command did not help.
    """
    corruption = triage.corruption(run, step, all_steps, missing)
    resubmitted = triage.resubmitted_shards(run.folder / step.name, step_submissions or {}) if corruption else set()
    kinds = find_kinds(sorted({*_unexplained_shards(missing, corruption), *(resubmitted & set(missing))}))
    return kinds + corruption if resubmitted and kinds else corruption + kinds


def _eta_seconds(folder: Path, rounds: float, progress: Progress | None) -> float | None:
    """Seconds until the missing shards are done, `rounds` per running task: by finished shards, or by `progress`."""
    if seconds := sorted(line["seconds"] for line in manifest.latest(folder).values()):
        return seconds[len(seconds) // 2] * rounds
    return progress.eta_seconds if progress else None


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
        running = any(job.state == "RUNNING" for job in jobs)  # a requeued job listens nowhere
    except slurm.Unreachable:  # the queue is unknown, and the address is on record
        running = True
    return address.lines() if running else []


def _inputs_done(run: Run, step: Step, all_steps: list[Step]) -> bool:
    return not any(plan.missing_shards(run, other, all_steps) for other in all_steps if other.name in step.after)


def _pending_reasons(run: Run, step: Step, jobs: list[slurm.Job], kind: str = "") -> list[str]:
    """One line per reason that is more than a turn in the queue; `kind`: the resources of jobs that are no tasks."""
    kind = kind or step.stage.resources
    lines = []
    for reason in dict.fromkeys(job.reason for job in jobs):
        if explanation := reasons.explain(reason):
            ids = [job.id for job in jobs if job.reason == reason]
            fix = explanation.fix.replace("JOB", _comma_separated_jobs(ids)).replace("KIND", kind)
            consequence = ""
            if not explanation.starts:
                consequence = ", and cannot start as submitted"
                fix = f"python launch.py cancel stage={step.name} {run.arguments}, then submit again with: {fix}"
            lines.append(f"{len(ids)} task(s) pending ({reason}): {explanation.meaning}{consequence}; fix: {fix}")
    return lines


def _comma_separated_jobs(task_ids: list[str]) -> str:
    """The jobs and arrays of these tasks, each once."""
    return ",".join(dict.fromkeys(id_.split("_")[0] for id_ in task_ids))
