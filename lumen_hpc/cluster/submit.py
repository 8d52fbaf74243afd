"""Submits a request as one dependency-chained set of arrays; a submission that fails leaves nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumen_hpc import files
from lumen_hpc.cluster import (
    dependencies,
    graph,
    live,
    lock,
    manifest,
    plan,
    preflight,
    ready,
    reasons,
    sbatch,
    slurm,
    snapshot,
    triage,
)
from lumen_hpc.cluster.dependencies import Gate, Link
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.stage import Pipeline, Run, Stage, Step
from lumen_hpc.config import config_file, run_record
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.request import Request
from lumen_hpc.errors import UserError

UNEXPLAINED = (
    "launch.py check finds no fault in the profile: compare these names with what sinfo -o '%P %f %G' and "
    "scontrol show reservation say, or ask the site's administrators"
)
LAYOUT = 2
"""Version of the run folder; a run written by another is refused rather than misread."""


@dataclass
class Submission:
    """One call's own folder in the run: the settings and packs that its jobs read, and their ids."""

    folder: Path
    code: Path
    cluster: str = ""
    """Slurm's name of the cluster; empty where there is none."""
    digests: dict[str, str] = field(default_factory=dict)
    """Step → the hash of its settings, by which its shards count; a later version may hash other settings."""
    reads: dict[str, list[str]] = field(default_factory=dict)
    """Step → the steps that it reads; a later version may have it read others."""
    jobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    def save_plan(self, plans: list[StepPlan]) -> None:
        """Writes plan.json whole: jobs may be reading it."""
        packs = {item.step.name: item.packs for item in plans}
        run_folder = os.path.realpath(self.folder.parents[1])
        fields = {
            "code": self.code.name,
            "user": os.getuid(),
            "cluster": self.cluster,
            "run": run_folder,
            "packs": packs,
            "digests": self.digests,
            "reads": self.reads,
        }
        text = json.dumps(fields | {"jobs": self.jobs})
        files.write_text(self.folder / "plan.json", text, sync_name=False)  # `record` syncs, after the last job


def open_run(request: Request) -> Run:
    """The run as the request sees it; nothing is created. UserError if it is another user's and closed to this one."""
    folder = request.folder
    run_record.require_open(folder)
    require_layout(folder)
    return Run(folder, request.settings, request.profile)


def require_layout(folder: Path) -> None:
    """Raises UserError for a run that another version of this package wrote, in another layout."""
    if (version := layout(folder)) not in ("", str(LAYOUT)):
        raise UserError(
            f"{folder}: written by another version of lumen_hpc (layout {version}, this one writes {LAYOUT}); go on "
            "with that version, or choose another run=NAME"
        )


def layout(folder: Path) -> str:
    """The layout that a run's folder records; empty where it records none."""
    path = folder / "layout"
    return files.read_bytes(path)[:20].decode(errors="replace").strip() if path.exists() else ""


def prepare_folder(run: Run) -> None:
    """Creates the run's folder, private to its owner where the data are restricted, and never writable for everyone.

    Raises UserError where it cannot be written, or another user could change what lies there.
    """
    os.umask(os.umask(0o077) & 0o077 | 0o002)  # Slurm passes it on to the jobs
    try:
        ready.refuse(preflight.foreign_run(run))
        run.folder.mkdir(parents=True, exist_ok=True)
        ready.refuse(preflight.foreign_run(run))  # another user may have been faster
        run.keep_private()
        if run.restricted:
            run.folder.chmod(0o700)
        (run.folder / "layout").write_text(f"{LAYOUT}\n")
    except OSError as error:
        raise UserError(
            f"{run.folder}: cannot write the run's folder: {error.strerror}; choose another with runs=FOLDER"
        ) from None


def create(request: Request, run: Run, plans: list[StepPlan], code: Path) -> Submission:
    """Freezes settings and packs; `code` is the folder of its snapshot."""
    top = run.folder / "submissions"
    top.mkdir(exist_ok=True)
    number = 1 + max((int(path.name) for path in top.iterdir() if path.name.isdigit()), default=0)
    cluster = slurm.cluster() if run.profile.executor == "slurm" else ""
    digests = {item.step.name: config_file.digest(run.settings, item.step.stage.settings) for item in plans}
    reads = {item.step.name: list(item.step.after) for item in plans}
    submission = Submission(top / f"{number:04d}", code, cluster, digests, reads)
    submission.folder.mkdir(mode=0o700)
    config_file.save(request, submission.folder / "config.yaml", sync_name=False)
    submission.save_plan(plans)
    return submission


def submit(
    request: Request, pipeline: Pipeline, run: Run, plans: list[StepPlan], upstream_job_ids: dict[str, list[str]]
) -> Submission:
    """Submits the plans' packs to Slurm as one dependency chain; on a refusal, removes all of it, files included."""
    earlier_logs = _logs(run, plans)
    submission = create(request, run, plans, snapshot.take(run.folder))
    limit = request.profile.max_array_size or slurm.largest_array()
    job_ids: dict[str, str] = {}
    step = plans[0].step
    try:
        for job in dependencies.jobs(
            plans, request.profile, limit, upstream_job_ids, graph.read_steps(pipeline.stages, run.settings)
        ):
            step = job.step
            with uninterrupted():
                job_ids[job.label] = _submit_job(run, request.profile, submission, job, job_ids)
                submission.jobs.append(_job_record(run, job, job_ids, submission.digests))
                submission.save_plan(plans)  # after each job, so that a killed command leaves no unknown job
        record(request, run, submission)
    except BaseException as error:
        with uninterrupted():
            remaining_ids = _cancel_submission(run, submission)
            outcome = (
                f"jobs {', '.join(remaining_ids)} stay in the queue: scancel them"
                if remaining_ids
                else "nothing was submitted"
            )
            if not remaining_ids:
                shutil.rmtree(submission.folder)
                for path in _logs(run, plans) - earlier_logs:
                    path.unlink(missing_ok=True)
            if not isinstance(error, UserError):
                print(f"lumen: {outcome}", file=sys.stderr)
        if not isinstance(error, UserError):
            raise
        raise _refusal(request.profile, step, error, outcome) from None
    return submission


def _refusal(profile: Profile, step: Step, error: UserError, outcome: str) -> UserError:
    """Why a step's job could not be submitted, and what would do; `outcome`: what became of the jobs before it."""
    if not isinstance(error, slurm.Refused):
        if not isinstance(error, slurm.Unreachable):
            return UserError(f"{error}; {outcome}")
        late_job = "a job that Slurm took all the same does no work, and the same command cancels it"
        return type(error)(f"{error}; {outcome}; {late_job}")
    reason = reasons.explain(str(error))  # Slurm's name of a limit, where it begins with one
    if reason and not reason.starts:
        explanation = f"{reason.meaning}: {reason.fix}"
    elif "submit limit" in str(error):
        explanation = "fewer tasks (profile.resources.KIND.tasks) or successors, one stage at a time, or later"
    else:
        explanation = preflight.why_refused(profile) or UNEXPLAINED
    return UserError(
        f"Slurm refused step {step.name} ({sbatch.requested_resources(profile, step)}): {error}; {outcome}; "
        f"{explanation}"
    )


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays ^C and the like to the end of the block: a job that starts meanwhile would be on no record."""
    pending_signals: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in handlers:
        signal.signal(number, lambda number, frame: pending_signals.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received in pending_signals:
            signal.raise_signal(received)


def _cancel_submission(run: Run, submission: Submission) -> list[str]:
    """Cancels what was submitted so far, also what sbatch did not confirm; the ids that stay in the queue."""
    ids = [job["id"] for job in submission.jobs]
    remaining_ids = slurm.cancel(ids[::-1])
    with suppress(UserError):  # a controller that does not answer: the next submission looks again
        remaining_ids += slurm.cancel([id_ for id_ in live.unrecorded_ids(run, slurm.queue()) if id_ not in ids])
    return remaining_ids


def _job_record(run: Run, job: Link | Gate, job_ids: dict[str, str], digests: dict[str, str]) -> dict[str, Any]:
    """A job in plan.json; a gate's says what it has to verify."""
    after = [[kind, job_ids.get(name, name)] for kind, name in job.conditions]
    name = sbatch.job_name(run.folder, job.step)
    row: dict[str, Any] = {"step": job.step.name, "id": job_ids[job.label], "name": name, "packs": list(job.packs)}
    if isinstance(job, Link):
        return row | {"after": after, "link": job.number}
    shards = sorted(index for pack in job.packs for index in job.plan.packs[pack])
    gate = {"name": f"{name}.gate", "after": after, "link": 0, "gate": True}
    return row | gate | {"shards": shards, "of": job.plan.shards, "config": digests[job.step.name]}


def record(request: Request, run: Run, submission: Submission) -> None:
    """Makes a submission the run's current one: its config.yaml, and a line of provenance.

    A run that was once submitted whole stays so, though a single stage came last: `config=` repeats all of it.
    """
    recorded = run_record.read(run.folder)
    if recorded and recorded.stage == "full" != request.stage:
        config_file.save(dataclasses.replace(request, stage="full"), run.folder / "config.yaml")
    else:
        text = (submission.folder / "config.yaml").read_text(encoding="utf-8")
        files.write_text(run.folder / "config.yaml", text, private=True)
    files.sync_folder(submission.folder)
    snapshot.record_provenance(run.folder, submission.code)


def _logs(run: Run, plans: list[StepPlan]) -> set[Path]:
    return {path for item in plans for path in (run.folder / item.step.name / "logs").glob("*")}


def _script(profile: Profile, folders: sbatch.JobFolders, job: Link | Gate, after: str) -> str:
    """A job's sbatch script, as submitted and as a dry run shows it."""
    if isinstance(job, Gate):
        return sbatch.gate_text(profile, job.step, folders, after)
    excluded_nodes = triage.bad_nodes(folders.run / job.step.name)
    return sbatch.text(profile, job.step, folders, job.packs, after, excluded_nodes)


def _submit_job(run: Run, profile: Profile, submission: Submission, job: Link | Gate, job_ids: dict[str, str]) -> str:
    """Submits a job's script, which then bears its id; that id."""
    (run.folder / job.step.name / "logs").mkdir(parents=True, exist_ok=True)
    name = f"{job.step.name}-gate" if isinstance(job, Gate) else job.step.name
    script = submission.folder / f"{name}.sh"
    folders = sbatch.JobFolders(run.folder, submission.code, submission.name)
    script.write_text(_script(profile, folders, job, job.dependency(job_ids)))
    job_id = slurm.submit(script)
    script.rename(submission.folder / f"{name}-{job_id}.sh")
    return job_id


def scripts(
    request: Request, stages: Sequence[Stage], run: Run, plans: list[StepPlan], upstream_job_ids: dict[str, list[str]]
) -> Iterator[tuple[str, str]]:
    """(label, sbatch script) of every job of a submission; labels stand for future job ids."""
    limit = request.profile.max_array_size
    with suppress(UserError):  # a dry run works where no cluster answers; Slurm's own default is used then
        limit = limit or slurm.largest_array()
    limit = limit or 1001
    folders = sbatch.JobFolders(run.folder, run.folder / "code/<hash>", "<next>")
    for job in dependencies.jobs(
        plans, request.profile, limit, upstream_job_ids, graph.read_steps(stages, run.settings)
    ):
        yield job.label, _script(request.profile, folders, job, job.dependency({}))


@contextmanager
def writing(run: Run) -> Iterator[None]:
    """The run's folder, created and locked; if new, it is removed when the command is refused or cannot write.

    It stays while jobs of it are in the queue: they would find neither code nor a place for their logs.
    """
    is_new = not run.folder.exists()
    prepare_folder(run)
    with lock.held(run.folder):  # who is refused because another command has the run leaves that one's folder alone
        try:
            yield
        except (UserError, OSError):
            has_jobs = any(record["jobs"] for record in live.submissions(run.folder))
            if is_new and not has_jobs and not any(run.folder.glob(f"*/{manifest.NAME}")):
                shutil.rmtree(run.folder)
            raise


@contextmanager
def terminations_as_interrupts() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal, end the block as ^C does: what was submitted is withdrawn, and tasks
    on this machine are asked to save."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    replaced_signals = [number for number, handler in handlers.items() if handler == signal.SIG_DFL]  # not under nohup
    for number in replaced_signals:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in replaced_signals:
            signal.signal(number, signal.SIG_DFL)


def make_plans(
    request: Request, stages: Sequence[Stage], run: Run, queued_jobs: dict[str, slurm.Job] | None = None
) -> tuple[list[StepPlan], dict[str, list[str]]]:
    """The plan of a request, and the last live job ids of steps that earlier submissions still run.

    `queued_jobs` is the queue, where the caller has asked for it.
    """
    all_steps = graph.steps(stages, request.settings, request.stage)
    selected_steps = graph.select(all_steps, stages, request.stage)
    live_shards, job_ids = live.shards(run, live.queue(run) if queued_jobs is None else queued_jobs)
    return plan.make(run, selected_steps, all_steps, live_shards), job_ids
