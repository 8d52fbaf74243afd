"""Submission: from a request to a dependency-chained set of arrays, once, leaving nothing on failure."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumen_hpc import files
from lumen_hpc.cluster import chain, graph, lock, manifest, plan, sbatch, slurm, snapshot, triage
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.stage import Pipeline, Run, Stage, Step
from lumen_hpc.config import saved
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.resolve import Request
from lumen_hpc.errors import UserError

LAYOUT = 2
"""Version of the run folder; a run written by another is refused rather than misread."""


@dataclass
class Submission:
    """One call's own folder in the run: the settings and packs that its jobs read, and their ids."""

    folder: Path
    code: Path
    jobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    def keep(self, plans: list[StepPlan]) -> None:
        """Writes plan.json whole: jobs may be reading it."""
        text = json.dumps({"packs": {item.step.name: item.packs for item in plans}, "jobs": self.jobs})
        files.write_text(self.folder / "plan.json", text)


def open_run(request: Request) -> Run:
    """The run as the request sees it; nothing is created."""
    folder = request.folder
    version = folder / "layout"
    if version.exists() and version.read_text().strip() != str(LAYOUT):
        raise UserError(
            f"{folder}: written by another version of lumen_hpc (layout {version.read_text().strip()}, this one writes "
            f"{LAYOUT}); go on with that version, or choose another run=NAME"
        )
    return Run(folder, request.settings, request.profile)


def live(run: Run, everything: Sequence[Step] = ()) -> tuple[dict[str, set[int]], dict[str, list[str]]]:
    """Shards, and ids of the last links, that earlier submissions still have queued or running, by step.

    Jobs that can never start are not among them (`doomed`).
    """
    shards: dict[str, set[int]] = {}
    ids: dict[str, list[str]] = {}
    queued = _queue(run)
    stuck = set(_doomed(run, everything, queued))
    for record in submissions(run.folder) if queued else ():
        jobs = [job for job in record["jobs"] if job["id"] not in stuck]
        last: dict[str, int] = {}
        for job in jobs:
            last[job["step"]] = max(last.get(job["step"], 0), job["link"])
        for job in jobs:
            alive = [position for position, name in enumerate(_tasks(job)) if name in queued]
            for position in alive:
                packed = record["packs"][job["step"]][job["packs"][position]]
                shards.setdefault(job["step"], set()).update(packed)
            if alive and job["link"] == last[job["step"]]:
                ids.setdefault(job["step"], []).append(job["id"])
    return shards, ids


def sweep(run: Run, stages: Sequence[Stage]) -> int:
    """Cancels the run's jobs that can never start, where the site does not (kill_on_invalid_dep); how many."""
    stuck = _doomed(run, graph.steps(stages, run.settings), _queue(run))
    slurm.cancel(stuck)
    return len(stuck)


def _doomed(run: Run, everything: Sequence[Step], queued: dict[str, slurm.Job]) -> list[str]:
    """Ids of queued jobs whose dependency has failed, or that wait for such jobs, directly or not.

    Slurm says DependencyNeverSatisfied of the first kind alone, and keeps both for ever unless configured otherwise.
    """
    found: list[str] = []
    for record in submissions(run.folder) if queued else ():
        left = [(job, [queued[name] for name in _tasks(job) if name in queued]) for job in record["jobs"]]
        waiting = [(job, tasks) for job, tasks in left if tasks and all(task.state == "PENDING" for task in tasks)]
        dead = {
            job["step"] for job, tasks in waiting if any("DependencyNeverSatisfied" in task.reason for task in tasks)
        }
        for step in everything:  # in order, so that what waits for the dead is found in one pass
            if dead & set(step.after):
                dead.add(step.name)
        found += [job["id"] for job, _ in waiting if job["step"] in dead]
    return found


def _queue(run: Run) -> dict[str, slurm.Job]:
    """The queue, if the run has ever submitted anything to one."""
    submitted = run.profile.executor == "slurm" and any(record["jobs"] for record in submissions(run.folder))
    return slurm.queue() if submitted and slurm.installed() else {}


def _tasks(job: dict[str, Any]) -> list[str]:
    """Slurm's names of a job's tasks."""
    return slurm.expand(job["id"], len(job["packs"]))


def submissions(folder: Path) -> Iterator[dict[str, Any]]:
    """The plan.json of every submission of a run, oldest first."""
    for path in sorted((folder / "submissions").glob("*/plan.json")):
        yield {"folder": path.parent, **json.loads(path.read_text())}


def prepare_folder(run: Run) -> None:
    """Creates the run's folder, private to its owner where the data is restricted."""
    if "$" in str(run.folder):
        raise UserError(f"{run.folder}: the variable in profile.runs is not set here; set it, or give runs=FOLDER")
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.settings.data.source == "mimic" and run.profile.data_use.restricted:
            run.folder.chmod(0o700)
        (run.folder / "layout").write_text(f"{LAYOUT}\n")
    except OSError as error:
        raise UserError(
            f"{run.folder}: cannot write the run's folder: {error.strerror}; choose another with runs=FOLDER"
        ) from None


def begin(request: Request, run: Run, plans: list[StepPlan]) -> Submission:
    """Freezes code, settings and packs."""
    code = snapshot.take(run.folder)
    top = run.folder / "submissions"
    top.mkdir(exist_ok=True)
    number = 1 + max((int(path.name) for path in top.iterdir() if path.name.isdigit()), default=0)
    submission = Submission(top / f"{number:04d}", code)
    submission.folder.mkdir()
    saved.save(request, submission.folder / "config.yaml")
    submission.keep(plans)
    return submission


def submit(
    request: Request, pipeline: Pipeline, run: Run, plans: list[StepPlan], upstream_job_ids: dict[str, list[str]]
) -> Submission:
    """Submits the plans' packs to Slurm as one dependency chain; on a refusal, removes all of it, files included."""
    before = _logs(run, plans)
    submission = begin(request, run, plans)
    limit = request.profile.max_array_size or slurm.largest_array()
    ids: dict[str, str] = {}
    step = plans[0].step
    try:
        for array in chain.arrays(plans, request.profile, limit, upstream_job_ids):
            step = array.plan.step
            ids[array.label] = _submit_array(run, request.profile, pipeline, submission, array, array.dependency(ids))
            submission.jobs.append(
                {"step": step.name, "id": ids[array.label], "packs": list(array.packs), "link": array.link}
            )
            submission.keep(plans)  # after each, so that what is in the queue is known whatever happens to us
    except BaseException as error:
        slurm.cancel(list(ids.values()))
        shutil.rmtree(submission.folder)
        for path in _logs(run, plans) - before:
            path.unlink(missing_ok=True)
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        requested = sbatch.request(request.profile, step)
        raise UserError(
            f"Slurm refused step {step.name} ({requested}): {slurm.plain(error)}; nothing was submitted; "
            f"python launch.py check compares the profile with the cluster"
        ) from None
    record(request, run, submission)
    return submission


def record(request: Request, run: Run, submission: Submission) -> None:
    """Makes a submission the run's current one: its config.yaml, and a line of provenance."""
    saved.save(request, run.folder / "config.yaml")
    snapshot.note(run.folder, submission.code)


def _logs(run: Run, plans: list[StepPlan]) -> set[Path]:
    return {path for item in plans for path in (run.folder / item.step.name / "logs").glob("*")}


def _submit_array(
    run: Run, profile: Profile, pipeline: Pipeline, submission: Submission, array: chain.Array, dependency: str
) -> str:
    import submitit

    step = array.plan.step
    folder = run.folder / step.name
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=logs, python=sbatch.python(profile, step))
    bad = triage.bad_nodes(folder)
    executor.update_parameters(
        **sbatch.parameters(profile, step, run.folder, submission.code, submission.name, dependency, bad)
    )
    with redirect_stderr(io.StringIO()), executor.batch():  # submitit prints what its exception says as well
        jobs = [
            executor.submit(pipeline.run_pack, str(run.folder), str(submission.folder), step.name, p)
            for p in array.packs
        ]
    job = jobs[0].job_id.split("_")[0]
    for link in logs.glob(".submission_file_*.sh"):  # submitit's, to the script that it has renamed
        link.unlink()
    (logs / f"{job}_submission.sh").rename(submission.folder / f"{step.name}-{job}.sh")
    return job


def scripts(
    request: Request, run: Run, plans: list[StepPlan], upstream_job_ids: dict[str, list[str]]
) -> Iterator[tuple[str, str]]:
    """(label, sbatch script) of every array that a submission would submit; labels stand for future job ids."""
    limit = request.profile.max_array_size
    with suppress(UserError):  # a dry run works where no cluster answers; Slurm's own default is used then
        limit = limit or slurm.largest_array()
    limit = limit or 1001
    for array in chain.arrays(plans, request.profile, limit, upstream_job_ids):
        name = array.plan.step.name
        bad = triage.bad_nodes(run.folder / name)
        given = sbatch.parameters(
            request.profile,
            array.plan.step,
            run.folder,
            run.folder / "code/<hash>",
            "<next>",
            array.dependency({}),
            bad,
        )
        yield (
            array.label,
            sbatch.text(request.profile, array.plan.step, run.folder / name / "logs", len(array.packs), **given),
        )


@contextmanager
def writing(run: Run) -> Iterator[None]:
    """The run's folder, created and locked; if new, it is removed when the command is refused or cannot write."""
    fresh = not run.folder.exists()
    prepare_folder(run)
    try:
        with lock.held(run.folder):
            yield
    except (UserError, OSError):
        if fresh and not any(run.folder.glob(f"*/{manifest.NAME}")):
            shutil.rmtree(run.folder)
        raise


def make(request: Request, stages: Sequence[Stage], run: Run) -> tuple[list[StepPlan], dict[str, list[str]]]:
    """The plan of a request, and the last live job ids of steps that earlier submissions still run."""
    everything = graph.steps(stages, request.settings, request.stage)
    chosen = graph.select(everything, stages, request.stage)
    busy, ids = live(run, everything)
    return plan.make(run, chosen, everything, busy), ids
