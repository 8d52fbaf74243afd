"""The jobs of a run's submissions that are in the queue now: whose they are, which shards they hold, what is stuck."""

from __future__ import annotations

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

SETTLES_S, LOOK_S = 120.0, 0.5
"""How long a submission waits at most for jobs that are about to change the queue, and how often it looks."""
JobRecord = dict[str, Any]
"""A job in plan.json: step, id, name, packs, link, and for a gate `gate`; `after` is what it waits for."""


def submissions(folder: Path) -> Iterator[dict[str, Any]]:
    """The plan.json of every submission of a run, oldest first; UserError for one that cannot be read.

    In a copy of a run they have no jobs: those are the original's.
    """
    for path in sorted((folder / "submissions").glob("*/plan.json")):
        text = files.read_bytes(path)
        try:
            record = {"folder": path.parent, **json.loads(text)}
            yield record | {"jobs": []} if _is_copy(path, str(record.get("run", ""))) else record
        except ValueError:
            raise UserError(
                f"{path}: empty or not JSON (a full disk?); its jobs are not known: "
                f"look for them in squeue, cancel them, and remove {path.parent}"
            ) from None


def _is_copy(plan: Path, run: str) -> bool:
    """Whether a plan.json was written in another run's folder, which is there still; one that was moved is not."""
    original = Path(run, "submissions", plan.parent.name, plan.name)
    try:
        return bool(run) and original != plan and original.stat().st_ino != plan.stat().st_ino
    except OSError:
        return False


def newest(folder: Path) -> dict[str, dict[int, str]]:
    """The last submission that took on each shard, by step."""
    found: dict[str, dict[int, str]] = {}
    for record in submissions(folder):
        for step, packs in record["packs"].items():
            found.setdefault(step, {}).update({shard: record["folder"].name for pack in packs for shard in pack})
    return found


def queue(run: Run) -> dict[str, slurm.Job]:
    """The queue of those who submitted to this run on this cluster; empty if nobody did.

    A submission to a cluster without jobs counts: it was killed, perhaps after sbatch had accepted its first. A run on
    this machine names no cluster, and Slurm's commands may be here without one.
    """
    records = [record for record in submissions(run.folder) if record["jobs"] or record.get("cluster")]
    if not records or not slurm.installed():
        return {}
    return slurm.queue(str(record["user"]) for record in records if record.get("user") is not None)


def settled_queue(run: Run, ending: Collection[str] = ()) -> dict[str, slurm.Job]:
    """The queue as a submission may count on it, of a new run too: a removed run's jobs may write to its folder still.

    Waits while a gate of the run is running, which is about to let its dependants start or to cancel them, and for the
    jobs that are ending now, among them `ending`: what was cancelled does no more work, but may take half a minute to
    write its last. Jobs that are ending later are left out.
    """
    deadline, announced = time.monotonic() + SETTLES_S, False
    waited_for: set[str] | None = None
    while True:
        records = list(submissions(run.folder))
        queued = queue(run) if records else slurm.queue()
        own = {
            task.id: (record, job) for record in (records if queued else ()) for job in record["jobs"]
            for task in tasks(record, job, queued).values()
        }  # fmt: skip
        if waited_for is None:
            waited_for = {id_ for id_ in own if queued[id_].state == "COMPLETING"}
            waited_for |= {id_ for id_ in queued if id_.split("_")[0] in ending}
        busy = [id_ for id_, (_, job) in own.items() if job.get("gate") and queued[id_].state == "RUNNING"]
        busy += sorted(waited_for & queued.keys())
        if not busy or time.monotonic() > deadline:
            return {id_: job for id_, job in queued.items() if job.state != "COMPLETING"}
        if not announced:
            gate = busy[0] in own and own[busy[0]][1].get("gate")
            why = f"which checks whether {own[busy[0]][1]['step']} is whole" if gate else "which is ending"
            print(f"waiting for job {busy[0]}, {why}", flush=True)
            announced = True
        time.sleep(LOOK_S)


def tasks(record: dict[str, Any], job: JobRecord, queued: dict[str, slurm.Job]) -> dict[int, slurm.Job]:
    """A job's tasks in the queue, by the position of their pack among the job's.

    Another cluster's, another user's or another job of the same number is none of them.
    """
    if not queued or _elsewhere(record):
        return {}
    names = slurm.task_ids(job["id"], 1 if job.get("gate") else len(job["packs"]))
    found = {position: queued[name] for position, name in enumerate(names) if name in queued}
    owner, title = str(record.get("user", "")), job.get("name", "")
    return {position: task for position, task in found.items() if owner in ("", task.user) and title in ("", task.name)}


def shards(run: Run, queued: dict[str, slurm.Job]) -> tuple[dict[str, set[int]], dict[str, list[str]]]:
    """Shards that earlier submissions still have queued or running, and the jobs to wait for, by step.

    Jobs that can never start are not among them (`stuck`).
    """
    held: dict[str, set[int]] = {}
    ends: dict[str, list[str]] = {}
    lost = set(stuck(run, queued))
    for record in submissions(run.folder) if queued else ():
        end_of: dict[tuple[str, tuple[int, ...]], str] = {}
        for job in record["jobs"]:
            found = {} if job["id"] in lost else tasks(record, job, queued)
            if not found:
                continue
            step, array = job["step"], (job["step"], tuple(job["packs"]))
            if job.get("gate"):
                end_of[array] = job["id"]
                continue
            end_of.setdefault(array, job["id"])  # where somebody cancelled the gate, or there is none
            for position in found:
                held.setdefault(step, set()).update(record["packs"][step][job["packs"][position]])
        for (step, _), id_ in end_of.items():
            ends.setdefault(step, []).append(id_)
    return held, ends


def stuck(run: Run, queued: dict[str, slurm.Job]) -> list[str]:
    """Ids of queued jobs whose dependency has failed, or that wait for such jobs, directly or not.

    Slurm says DependencyNeverSatisfied of the first kind alone, and keeps both for ever unless configured otherwise.
    """
    waiting = [
        (job, found)
        for record in (submissions(run.folder) if queued else ())
        for job in record["jobs"]
        if (found := tasks(record, job, queued)) and all(task.state == "PENDING" for task in found.values())
    ]
    dead = [job["id"] for job, found in waiting if any(task.never_starts for task in found.values())]
    return dead + dependencies.unreachable([job for job, _ in waiting], dead)


def unrecorded(run: Run, queued: dict[str, slurm.Job]) -> list[str]:
    """Ids of queued jobs of this run that no plan.json has: sbatch's answer was lost, or the run was removed."""
    known = {job["id"] for record in submissions(run.folder) for job in record["jobs"]}
    ids = {
        name.split("_")[0] for name, job in queued.items()
        if job.name.startswith(f"{run.folder.name}.") and job.user == str(os.getuid())
    }  # fmt: skip
    top = f"{os.path.realpath(run.folder)}/"
    return sorted(id_ for id_ in ids - known if os.path.realpath(slurm.log_path(id_)).startswith(top))


def sweep(run: Run, queued: dict[str, slurm.Job]) -> list[str]:
    """Cancels this user's jobs of the run that can never start or that no submission knows; those that it did."""
    dead = [*stuck(run, queued)[::-1], *unrecorded(run, queued)[::-1]]
    left = slurm.cancel(dead)
    return [id_ for id_ in dead if id_ not in left]


def _alive(record: dict[str, Any], queued: dict[str, slurm.Job]) -> list[str]:
    """Ids of a submission's jobs that are in the queue."""
    return [job["id"] for job in record["jobs"] if tasks(record, job, queued)]


def require_own(run: Run) -> None:
    """Raises UserError while jobs of another user, or of another cluster, may still write to the run."""
    queued: dict[str, slurm.Job] | None = None
    for record in submissions(run.folder):
        jobs = [job["id"] for job in record["jobs"]]
        if not jobs or record.get("cancelled") or run.profile.executor != "slurm" or not slurm.installed():
            continue
        if _elsewhere(record):
            raise UserError(
                f"{run.folder}: submitted on cluster {record['cluster']} (jobs {_listed(jobs)}), this is "
                f"{slurm.cluster()}; go on there, or first: python launch.py cancel {run.arguments}, there"
            )
        if str(record.get("user", os.getuid())) != str(os.getuid()):
            queued = queue(run) if queued is None else queued
            if alive := _alive(record, queued):
                raise UserError(
                    f"{run.folder}: {owner(record)} has jobs {_listed(alive)} of this run in the queue; "
                    "only their owner can go on with it or cancel them"
                )


def require_none(run: Run) -> None:
    """Raises UserError while jobs of the run are in the queue: a run on this machine would do their work again."""
    queued = queue(run)
    if alive := [job for record in submissions(run.folder) for job in _alive(record, queued)]:
        raise UserError(
            f"{run.folder}: jobs {_listed(alive)} of this run are in Slurm's queue; go on under the profile that "
            f"submitted them, or first: python launch.py cancel {run.arguments}"
        )


def mark_cancelled(records: Iterable[dict[str, Any]]) -> None:
    """Records in those submissions that were to this cluster that none of their jobs is left, for others to see."""
    for record in records:
        if record["jobs"] and record.get("cluster") == slurm.cluster():
            folder = record.pop("folder")
            files.write_text(folder / "plan.json", json.dumps(record | {"cancelled": True}))


def _elsewhere(record: dict[str, Any]) -> bool:
    """Whether another cluster than this one has a submission's jobs."""
    named = record.get("cluster", "")
    return bool(named) and slurm.cluster() not in ("", named)


def owner(record: dict[str, Any]) -> str:
    """The name of who submitted."""
    user = str(record.get("user", "?"))
    return user_name(int(user)) if user.isdigit() else f"user {user}"


def _listed(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
