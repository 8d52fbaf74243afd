"""The jobs of a run's submissions that are in the queue: their owners, their shards, and which can never start."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from lumen_hpc import files
from lumen_hpc.cluster import dependencies, slurm
from lumen_hpc.cluster.stage import Run
from lumen_hpc.errors import UserError
from lumen_hpc.files import user_name

SETTLE_TIMEOUT_S, POLL_INTERVAL_S = 120.0, 0.5
"""How long a submission waits at most for jobs that are about to change the queue, and how often it looks."""
JobRecord = dict[str, Any]
"""A job in plan.json: step, id, name, packs, link, and for a gate `gate`; `after` is what it waits for."""


def submissions(folder: Path) -> list[dict[str, Any]]:
    """The plan.json of every submission of a run, oldest first; UserError for one that cannot be read.

    In a copy of a run they have no jobs: those are the original's. An id that Slurm gave out twice, as it does after
    its controller has lost its state, is the later submission's.
    """
    records = [_read(path) for path in sorted((folder / "submissions").glob("*/plan.json"))]
    owners = {(record.get("cluster"), job["id"]): record for record in records for job in record["jobs"]}
    for record in records:
        record["jobs"] = [job for job in record["jobs"] if owners[record.get("cluster"), job["id"]] is record]
    return records


def _read(plan_file: Path) -> dict[str, Any]:
    """One submission's plan.json."""
    text = files.read_bytes(plan_file)
    try:
        record = {"folder": plan_file.parent, **json.loads(text)}
    except ValueError:
        raise UserError(
            f"{plan_file}: empty or not JSON (a full disk?); its jobs are not known: "
            f"look for them in squeue, cancel them, and remove {plan_file.parent}"
        ) from None
    return record | {"jobs": []} if _is_copy(plan_file, str(record.get("run", ""))) else record


def _is_copy(plan_file: Path, recorded_folder: str) -> bool:
    """Whether a plan.json was written in another run's folder, which is there still; one that was moved is not."""
    original = Path(recorded_folder, "submissions", plan_file.parent.name, plan_file.name)
    try:
        return bool(recorded_folder) and original != plan_file and original.stat().st_ino != plan_file.stat().st_ino
    except OSError:
        return False


def newest_submissions(folder: Path) -> dict[str, dict[int, str]]:
    """The last submission that took on each shard, by step."""
    names: dict[str, dict[int, str]] = {}
    for record in submissions(folder):
        for step, packs in record["packs"].items():
            names.setdefault(step, {}).update({shard: record["folder"].name for pack in packs for shard in pack})
    return names


def queue(run: Run) -> dict[str, slurm.Job]:
    """The queue of those who submitted to this run on this cluster; empty if nobody did.

    A submission to a cluster without jobs counts: it was killed, perhaps after sbatch had accepted its first. A run on
    this machine names no cluster, and Slurm's commands may be here without one.
    """
    records = [record for record in submissions(run.folder) if record["jobs"] or record.get("cluster")]
    if not records or not slurm.installed():
        return {}
    users = (str(record["user"]) for record in records if record.get("user") is not None)
    return _with_recorded_names(run, records, slurm.queue(users))


def _with_recorded_names(
    run: Run, records: Iterable[dict[str, Any]], queued_jobs: dict[str, slurm.Job]
) -> dict[str, slurm.Job]:
    """The queue, in which jobs that somebody has renamed since bear the run's names: their logs are the run's."""
    prefix = f"{os.path.realpath(run.folder)}/"
    names: dict[str, slurm.Job] = {}
    for record in records:
        for job in record["jobs"]:
            job_tasks = _tasks_of_same_id(record, job, queued_jobs).values()
            renamed = [task for task in job_tasks if job.get("name", "") not in task.name]
            if renamed and os.path.realpath(slurm.log_path(job["id"])).startswith(prefix):
                names |= {task.id: dataclasses.replace(task, name=job["name"]) for task in renamed}
    return queued_jobs | names


def settled_queue(run: Run, cancelled_ids: Collection[str] = ()) -> dict[str, slurm.Job]:
    """The queue as a submission may count on it, of a new run too: a removed run's jobs may write to its folder still.

    Waits while a gate of the run is running, which is about to let its dependants start or to cancel them, and for the
    jobs that are ending now, among them `cancelled_ids`: a cancelled job does no more work, but may take half a minute
    to write its last output. Jobs that end later are left out.
    """
    deadline, announced = time.monotonic() + SETTLE_TIMEOUT_S, False
    ending_ids: set[str] | None = None
    while True:
        records = submissions(run.folder)
        queued_jobs = queue(run) if records else slurm.queue()
        run_tasks = {task.id: job for _, job, found in in_queue(records, queued_jobs) for task in found.values()}
        if ending_ids is None:
            ending_ids = {id_ for id_ in run_tasks if queued_jobs[id_].state == "COMPLETING"}
            ending_ids |= {id_ for id_ in queued_jobs if id_.split("_")[0] in cancelled_ids}
        blocking_ids = [
            id_ for id_, job in run_tasks.items() if job.get("gate") and queued_jobs[id_].state == "RUNNING"
        ]
        blocking_ids += sorted(ending_ids & queued_jobs.keys())
        if not blocking_ids or time.monotonic() > deadline:
            return {id_: job for id_, job in queued_jobs.items() if job.state != "COMPLETING"}
        if not announced:
            job = run_tasks.get(blocking_ids[0], {})
            reason = f"which checks whether {job['step']} is whole" if job.get("gate") else "which is ending"
            print(f"waiting for job {blocking_ids[0]}, {reason}", flush=True)
            announced = True
        time.sleep(POLL_INTERVAL_S)


def tasks(record: dict[str, Any], job: JobRecord, queued_jobs: dict[str, slurm.Job]) -> dict[int, slurm.Job]:
    """A job's tasks in the queue, by the position of their pack among the job's.

    Another cluster's, another user's or another job of the same number is none of them.
    """
    same_ids = _tasks_of_same_id(record, job, queued_jobs)
    # A site may lengthen names.
    return {position: task for position, task in same_ids.items() if job.get("name", "") in task.name}


def _tasks_of_same_id(
    record: dict[str, Any], job: JobRecord, queued_jobs: dict[str, slurm.Job]
) -> dict[int, slurm.Job]:
    """As `tasks`, and another job of the same number too."""
    if not queued_jobs or _is_on_other_cluster(record):
        return {}
    task_ids = slurm.task_ids(job["id"], 1 if job.get("gate") else len(job["packs"]))
    same_ids = {position: queued_jobs[name] for position, name in enumerate(task_ids) if name in queued_jobs}
    user = str(record.get("user", ""))
    return {position: task for position, task in same_ids.items() if user in ("", task.user)}


def in_queue(
    records: Iterable[dict[str, Any]], queued_jobs: dict[str, slurm.Job]
) -> Iterator[tuple[dict[str, Any], JobRecord, dict[int, slurm.Job]]]:
    """The jobs of these submissions that are in the queue: submission, job, and its tasks as `tasks` has them."""
    for record in records:
        for job in record["jobs"]:
            if job_tasks := tasks(record, job, queued_jobs):
                yield record, job, job_tasks


def shards(run: Run, queued_jobs: dict[str, slurm.Job]) -> tuple[dict[str, set[int]], dict[str, list[str]]]:
    """Shards that earlier submissions still have queued or running, and the jobs to wait for, by step.

    Jobs that can never start are not among them (`stuck_ids`).
    """
    live_shards: dict[str, set[int]] = {}
    job_ids: dict[str, list[str]] = {}
    dead_ids = set(stuck_ids(run, queued_jobs))
    last_ids: dict[tuple[str, str, tuple[int, ...]], str] = {}
    for record, job, job_tasks in in_queue(submissions(run.folder), queued_jobs):
        if job["id"] in dead_ids:
            continue
        step, array = job["step"], (record["folder"].name, job["step"], tuple(job["packs"]))
        if job.get("gate"):
            last_ids[array] = job["id"]
            continue
        last_ids.setdefault(array, job["id"])  # where somebody cancelled the gate, or there is none
        for position in job_tasks:
            live_shards.setdefault(step, set()).update(record["packs"][step][job["packs"][position]])
    for (_, step, _), id_ in last_ids.items():
        job_ids.setdefault(step, []).append(id_)
    return live_shards, job_ids


def stuck_ids(run: Run, queued_jobs: dict[str, slurm.Job]) -> list[str]:
    """Ids of queued jobs whose dependency has failed, or that wait for such jobs, directly or not.

    Slurm says DependencyNeverSatisfied of the first kind alone, and keeps both forever unless configured otherwise.
    """
    pending_jobs = [
        (job, job_tasks)
        for _, job, job_tasks in in_queue(submissions(run.folder), queued_jobs)
        if all(task.state == "PENDING" for task in job_tasks.values())
    ]
    dead_ids = [job["id"] for job, job_tasks in pending_jobs if any(task.never_starts for task in job_tasks.values())]
    return dead_ids + dependencies.unreachable([job for job, _ in pending_jobs], dead_ids)


def unrecorded_ids(run: Run, queued_jobs: dict[str, slurm.Job]) -> list[str]:
    """Ids of queued jobs of this run that no plan.json has: sbatch's answer was lost, or the run was removed."""
    recorded_ids = {job["id"] for record in submissions(run.folder) for job in record["jobs"]}
    ids = {
        name.split("_")[0] for name, job in queued_jobs.items()
        if job.name.startswith(f"{run.folder.name}.") and job.user == str(os.getuid())
    }  # fmt: skip
    prefix = f"{os.path.realpath(run.folder)}/"
    return sorted(id_ for id_ in ids - recorded_ids if os.path.realpath(slurm.log_path(id_)).startswith(prefix))


def sweep(run: Run, queued_jobs: dict[str, slurm.Job]) -> list[str]:
    """Cancels this user's jobs of the run that can never start or that no submission knows; those that it did."""
    dead_ids = [*stuck_ids(run, queued_jobs)[::-1], *unrecorded_ids(run, queued_jobs)[::-1]]
    remaining_ids = slurm.cancel(dead_ids)
    return [id_ for id_ in dead_ids if id_ not in remaining_ids]


class Elsewhere(slurm.Unreachable):
    """A run's jobs are in a queue that this machine never sees."""

    advice = ""


def require_known_queue(run: Run) -> None:
    """Raises Elsewhere where jobs of a run are another cluster's, or Slurm's commands are not on this machine."""
    for record in _open_submissions(run):
        here = f"this is {slurm.cluster()}" if slurm.installed() else "squeue is not on this machine"
        if not slurm.installed() or _is_on_other_cluster(record):
            ids = _comma_separated([job["id"] for job in record["jobs"]])
            where = f"{run.folder}: submitted on cluster {record.get('cluster') or '?'} (jobs {ids}), {here}"
            raise Elsewhere(f"{where}; go on there, or first: python launch.py cancel {run.arguments}, there")


def require_own(run: Run) -> None:
    """Raises UserError while jobs of another user, or of another cluster, may still write to the run."""
    require_known_queue(run)
    for record in _open_submissions(run):
        if str(record.get("user", os.getuid())) == str(os.getuid()):
            continue
        if queued_ids := [job["id"] for _, job, _ in in_queue([record], queue(run))]:
            raise UserError(
                f"{run.folder}: {owner(record)} has jobs {_comma_separated(queued_ids)} of this run in the queue; "
                "only their owner can go on with it or cancel them"
            )


def _open_submissions(run: Run) -> list[dict[str, Any]]:
    """Submissions to a cluster whose jobs nobody has cancelled."""
    records = submissions(run.folder) if run.profile.executor == "slurm" else ()
    return [record for record in records if record["jobs"] and not record.get("cancelled")]


def require_no_jobs(run: Run) -> None:
    """Raises UserError while jobs of the run are in the queue: a run on this machine would do their work again."""
    if queued_ids := [job["id"] for _, job, _ in in_queue(submissions(run.folder), queue(run))]:
        raise UserError(
            f"{run.folder}: jobs {_comma_separated(queued_ids)} of this run are in Slurm's queue; go on under the "
            f"profile that submitted them, or first: python launch.py cancel {run.arguments}"
        )


def mark_cancelled(records: Iterable[dict[str, Any]]) -> None:
    """Records in those submissions that were to this cluster that none of their jobs is left, for others to see."""
    for record in records:
        if record["jobs"] and record.get("cluster") == slurm.cluster():
            folder = record.pop("folder")
            files.write_text(folder / "plan.json", json.dumps(record | {"cancelled": True}))


def _is_on_other_cluster(record: dict[str, Any]) -> bool:
    """Whether another cluster than this one has a submission's jobs."""
    cluster_name = record.get("cluster", "")
    return bool(cluster_name) and slurm.cluster() not in ("", cluster_name)


def owner(record: dict[str, Any]) -> str:
    """The name of who submitted."""
    user = str(record.get("user", "?"))
    return user_name(int(user)) if user.isdigit() else f"user {user}"


def _comma_separated(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
