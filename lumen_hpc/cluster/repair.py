"""Verifies what a task reads when the task begins, and has corrupt shards written again before it goes on.

The corrupt shards are submitted as jobs of their own step, as the user's same command would do, and the task waits for
them. It holds its nodes meanwhile, but no downstream job is lost. Results read before the corruption stay valid.
Where a job cannot submit (no sbatch on the nodes, the local executor) it fails and names the file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lumen_hpc.cluster import environment, live, lock, manifest, plan, slurm, submit
from lumen_hpc.cluster.stage import Interrupted, Pipeline, Run, Step, Task
from lumen_hpc.config import config_file
from lumen_hpc.errors import UserError

POLL_INTERVAL_S = 2.0
"""How often a waiting task looks at the files."""
QUEUE_INTERVAL_S = 30.0
"""How often it asks the queue whether the shards are still on their way."""


def corrupt_inputs(run: Run, step: Step, all_steps: Sequence[Step], shards: Sequence[int]) -> dict[str, list[int]]:
    """Finished shards that these shards of a step read, and whose files are not those of their manifest lines."""
    corrupt = {}
    for other in all_steps:
        if other.name not in step.after:
            continue
        folder, count = run.folder / other.name, other.stage.shards(run.settings)
        is_shardwise = other.name == step.shardwise_after and count == step.stage.shards(run.settings)
        lines = manifest.latest(folder)
        corrupt_shards = [
            index
            for index in (shards if is_shardwise else range(count))
            if not manifest.is_verified(folder, lines[index])
        ]
        if corrupt_shards:
            corrupt[other.name] = corrupt_shards
    return corrupt


def verify_inputs(
    pipeline: Pipeline, task: Task, all_steps: list[Step], shards: Sequence[int], submission: Path
) -> float:
    """Returns once everything that these shards of a task's step read matches its manifest lines.

    Returns the seconds that it waited; 0 where nothing was corrupt. A controller that does not answer is asked again.
    Raises Interrupted if the task is asked to stop meanwhile, and UserError if the shards cannot be written again.
    """
    submitted: set[str] = set()
    began, last_asked = time.monotonic(), -QUEUE_INTERVAL_S
    wait_seconds = 0.0
    while corrupt := corrupt_inputs(task.run, task.step, all_steps, shards):
        task.beat()
        if task.should_stop():
            raise Interrupted("while what it reads was written again")
        if task.ranks.first and time.monotonic() - last_asked >= QUEUE_INTERVAL_S:
            last_asked = time.monotonic()
            try:
                _resubmit(pipeline, task.run, all_steps, corrupt, submission, submitted)
            except slurm.Unreachable as error:  # no reason to give the nodes back: the next answer may come
                print(f"{error}; asking again in {QUEUE_INTERVAL_S:.0f} s", flush=True)
        time.sleep(POLL_INTERVAL_S)
        wait_seconds = time.monotonic() - began
    return wait_seconds


def _resubmit(
    pipeline: Pipeline,
    run: Run,
    all_steps: list[Step],
    corrupt: dict[str, list[int]],
    submission: Path,
    submitted: set[str],
) -> None:
    """Submits corrupt shards that are not queued or running, each step once."""
    if run.profile.executor != "slurm" or not slurm.installed():
        raise UserError(_describe(run, corrupt) + "; the same command from where jobs are submitted writes it again")
    with environment.outside_the_job():
        live_shards, _ = live.shards(run, live.queue(run))
        for name, shards in corrupt.items():
            if set(shards) <= live_shards.get(name, set()):
                continue
            step = next(step for step in all_steps if step.name == name)
            if name in submitted:
                # It may have ended well since we looked.
                if set(shards) & set(plan.missing_shards(run, step, all_steps)):
                    raise UserError(f"{_describe(run, corrupt)}, and {name} failed to write it again; see its logs")
                continue
            print(f"{_describe(run, {name: shards})}; submitting {name} again for it", flush=True)
            try:
                _submit(pipeline, run, step, all_steps, submission)
            except lock.Busy as busy:  # another task submits it already
                print(busy, flush=True)
                continue
            submitted.add(name)


def _submit(pipeline: Pipeline, run: Run, step: Step, all_steps: list[Step], submission: Path) -> None:
    """Submits what is missing of a step, and of what it reads itself, with the settings and code of this job."""
    request = config_file.load_request(submission / "config.yaml", run.folder)
    with submit.writing(run):
        live_shards, upstream_job_ids = live.shards(run, live.queue(run))
        needed_names = {step.name}
        for other in reversed(all_steps):
            if other.name in needed_names:
                needed_names |= set(other.after)
        unfinished = [
            other for other in all_steps if other.name in needed_names and plan.missing_shards(run, other, all_steps)
        ]
        plans = plan.make(run, unfinished, all_steps, live_shards)
        if any(item.packs for item in plans):
            submit.submit(request, pipeline, run, plans, upstream_job_ids)


def _describe(run: Run, corrupt: dict[str, list[int]]) -> str:
    name, shards = next(iter(corrupt.items()))
    folder = run.folder / name
    file_name = manifest.first_mismatch(folder, manifest.latest(folder)[shards[0]])
    return f"{folder / file_name}: not the file that {folder / manifest.NAME} records (corrupt or deleted)"
