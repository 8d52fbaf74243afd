"""The same stages without Slurm: steps side by side as far as the cores reach, through submitit's local executor."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lumen_hpc.cluster import live, manifest, orphans, snapshot, submit, triage
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.stage import Pipeline, Run, Step
from lumen_hpc.config.request import Request
from lumen_hpc.config.schema import Settings

COLUMNS = (
    SpinnerColumn(), TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
)  # fmt: skip

MEMORY_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Has glibc keep what a task frees. By default it gives large blocks back to the system, and clearing each tensor's
pages once more costs a step of the demo a tenth of its time. Blocks of more than 32 MiB still go back."""


class Failed(Exception):
    """A step did not finish; the message says which, why and where to look."""


@dataclass
class _Running:
    """A running step: its tasks, and the line counts of its files at their start."""

    item: StepPlan
    jobs: list[Any]
    written: int
    failures: int
    code: Path
    attempt: int
    begun: float = field(default_factory=time.monotonic)


def run_all(request: Request, pipeline: Pipeline, run: Run, plans: list[StepPlan], console: Console) -> None:
    """Runs the plans' steps, each once those it reads are done; Failed at the first that does not finish.

    All of them run the code as it is now, whatever is edited meanwhile.
    """
    orphans.require_no_tasks(run.folder, console)
    code = snapshot.take(run.folder)
    waiting_plans = list(plans)
    running_steps: list[_Running] = []
    free = len(os.sched_getaffinity(0))
    with Progress(*COLUMNS, console=console, disable=not console.is_terminal) as bars:
        tasks = {item.step.name: bars.add_task(item.step.name, total=item.shards, start=False) for item in plans}
        try:
            while waiting_plans or running_steps:
                unfinished = {item.step.name for item in waiting_plans} | {one.item.step.name for one in running_steps}
                for item in [item for item in waiting_plans if not unfinished & set(item.step.after)]:
                    if not _may_start(item, [one.item for one in running_steps], free):
                        break
                    waiting_plans.remove(item)
                    current_plan = _current_plan(request, pipeline, run, item.step)
                    position = f"[{plans.index(item) + 1}/{len(plans)}] {item.step.name}"
                    if current_plan.packs:
                        console.print(f"{position}: {item.step.stage.about}")
                        bars.start_task(tasks[item.step.name])
                        with submit.uninterrupted():
                            running_steps.append(_start(request, pipeline, run, current_plan, code))
                    else:
                        console.print(f"{position}: already done")
                        bars.update(tasks[item.step.name], completed=item.shards)
                for one in list(running_steps):
                    bars.update(tasks[one.item.step.name], completed=_finished_shards(run, one))
                    if all(job.done() for job in one.jobs):
                        running_steps.remove(one)
                        with submit.uninterrupted():
                            next_attempt = _finish(request, pipeline, run, one)
                            if next_attempt:
                                running_steps.append(next_attempt)
                                continue
                        bars.update(tasks[one.item.step.name], completed=one.item.shards)
                        console.print(f"{one.item.step.name}: {time.monotonic() - one.begun:.0f} s")
                        for line in _printed_lines(one, request.settings):
                            console.print(f"  {line}", markup=False, highlight=False)
                time.sleep(0.1)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and running_steps:
                with suppress(OSError):  # the terminal may be closed
                    console.print("stopping: tasks save what they have and end; Ctrl-C again does not wait for them")
            _stop([job for one in running_steps for job in one.jobs])
            raise


def _may_start(item: StepPlan, running: list[StepPlan], cores: int) -> bool:
    """Whether a step may start beside the running ones on this machine's `cores`.

    Two steps of `cpu` resources share cores if they must: neither keeps all of them busy all the time (the demo's
    prepare is one process, and pretrain begins and ends as one).
    """
    if _cores(item) <= cores - sum(map(_cores, running)) or not running:
        return True
    return len(running) == 1 and all(one.step.stage.resources == "cpu" for one in (item, *running))


def _cores(item: StepPlan) -> int:
    return item.resources.cpus * item.resources.tasks_per_node * max(1, len(item.packs))


def _current_plan(request: Request, pipeline: Pipeline, run: Run, step: Step) -> StepPlan:
    request = Request(stage=step.name, run=request.run, runs=request.runs, recipe=request.recipe,
                      settings=request.settings, profile=request.profile)  # fmt: skip
    return submit.make_plans(request, pipeline.stages, run)[0][0]


def _start(request: Request, pipeline: Pipeline, run: Run, item: StepPlan, code: Path, attempt: int = 0) -> _Running:
    """Starts a task for each of a step's packs."""
    import submitit

    name, folder = item.step.name, run.folder / item.step.name
    submission = submit.create(request, run, [item], code)
    submit.record(request, run, submission)
    for variable in [variable for variable in os.environ if variable.startswith("PYTHON")]:
        del os.environ[variable]  # as jobs of Slurm do: PYTHONWARNINGS=error would end a task at its first import
    os.environ |= {
        "PYTHONPATH": str(submission.code),
        "PYTHONUTF8": "1",
        "PYTHONSAFEPATH": "1",  # else the working directory comes first
        "LUMEN_SUBMISSION": submission.name,
        "OMP_NUM_THREADS": str(item.resources.cpus),
        # Threads that wait spin by default: beside anything else on these cores, a step then takes four times as long.
        "OMP_WAIT_POLICY": "passive",
        **MEMORY_SETTINGS,
        orphans.LAUNCHER: str(os.getpid()),
        **{name: os.path.expandvars(value) for name, value in run.profile.environment.items()},
    }
    if run.profile.scratch:
        os.environ["LUMEN_SCRATCH"] = os.path.expandvars(run.profile.scratch)
    executor = submitit.LocalExecutor(folder=folder / "logs")
    executor.update_parameters(timeout_min=100_000, tasks_per_node=item.resources.tasks_per_node)
    written, failures = len(manifest.read(folder / manifest.NAME)), len(manifest.read(folder / "failures.jsonl"))
    arguments = (str(run.folder), str(submission.folder), name)
    with orphans.terminal_signals_blocked():
        jobs = [executor.submit(pipeline.run_pack, *arguments, pack) for pack in range(len(item.packs))]
    return _Running(item, jobs, written, failures, code, attempt)


def _finished_shards(run: Run, one: _Running) -> int:
    """Shards of the step that are done by now."""
    lines = len(manifest.read(run.folder / one.item.step.name / manifest.NAME))
    return one.item.shards - len(one.item.missing_shards) + lines - one.written


def _printed_lines(one: _Running, settings: Settings) -> list[str]:
    """What a CPU job that reads files from outside the run printed of them, such as prepare's counts."""
    stage = one.item.step.stage
    if stage.resources != "cpu" or not stage.external(settings):
        return []
    lines = one.jobs[0].paths.stdout.read_text("utf-8", "replace").splitlines()
    return [line for line in lines if not line.startswith("submitit ")]


def _finish(request: Request, pipeline: Pipeline, run: Run, one: _Running) -> _Running | None:
    """After a step's tasks have ended: None if it is done, its next attempt, or Failed.

    An exception would come again; only what was killed or interrupted is worth another try here.
    """
    item = _current_plan(request, pipeline, run, one.item.step)
    if not item.missing_shards:
        return None
    folder = run.folder / item.step.name
    has_failures = len(manifest.read(folder / "failures.jsonl")) > one.failures
    if has_failures or one.attempt == item.resources.successors:
        kinds = triage.failure_kinds(
            folder, item.missing_shards, step_submissions=live.newest_submissions(run.folder).get(item.step.name)
        )
        raise Failed(_describe_failure(item, kinds, str(one.jobs[0].paths.stderr)))
    return _start(request, pipeline, run, item, one.code, one.attempt + 1)


def _stop(jobs: list[Any]) -> None:
    """Asks the tasks to save, and waits for them a while; those that have not ended then end with this process."""
    for job in jobs:
        job._process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(job.done() for job in jobs):
        time.sleep(0.1)


def _describe_failure(item: StepPlan, kinds: list[triage.FailureKind], log: str) -> str:
    lines = [f"{item.step.name}: {len(item.missing_shards)} of {item.shards} shards are missing"]
    for kind in kinds[:5]:
        lines.append(f"  {kind.count}x {kind.error}")
        lines.append(f"     fix: {kind.fix.replace('KIND', item.step.stage.resources)}")
    if not kinds:
        lines.append("  no failure was recorded: a task was killed from outside, or could not start")
    lines.append(f"  log: {log}")
    return "\n".join(lines)
