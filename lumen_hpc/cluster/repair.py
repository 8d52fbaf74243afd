"""Verifies what a task reads when the task begins, and has corrupt shards written again before it goes on.

The corrupt shards are submitted as jobs of their own step, as the user's same command would do, and the task waits for
them. It holds its nodes meanwhile, but no downstream job is lost. What was read before the corruption stays valid.
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


def corrupt(run: Run, step: Step, graph: Sequence[Step], shards: Sequence[int]) -> dict[str, list[int]]:
    """Finished shards that these shards of a step read, and whose files are not those of their manifest lines."""
    found = {}
    for other in graph:
        if other.name not in step.after:
            continue
        folder, count = run.folder / other.name, other.stage.shards(run.settings)
        alone = other.name == step.shardwise_after and count == step.stage.shards(run.settings)
        lines = manifest.latest(folder)
        lost = [
            index for index in (shards if alone else range(count)) if not manifest.is_verified(folder, lines[index])
        ]
        if lost:
            found[other.name] = lost
    return found


def verify_inputs(pipeline: Pipeline, task: Task, graph: list[Step], shards: Sequence[int], submission: Path) -> float:
    """Returns once everything that these shards of a task's step read matches its manifest lines.

    Returns the seconds that it waited; 0 where nothing was corrupt. A controller that does not answer is asked again.
    Raises Interrupted if the task is asked to stop meanwhile, and UserError if the shards cannot be written again.
    """
    submitted: set[str] = set()
    began, last_asked = time.monotonic(), -QUEUE_INTERVAL_S
    waited = 0.0
    while bad := corrupt(task.run, task.step, graph, shards):
        task.beat()
        if task.should_stop():
            raise Interrupted("while what it reads was written again")
        if task.ranks.first and time.monotonic() - last_asked >= QUEUE_INTERVAL_S:
            last_asked = time.monotonic()
            try:
                _resubmit(pipeline, task.run, graph, bad, submission, submitted)
            except slurm.Unreachable as error:  # no reason to give the nodes back: the next answer may come
                print(f"{error}; asking again in {QUEUE_INTERVAL_S:.0f} s", flush=True)
        time.sleep(POLL_INTERVAL_S)
        waited = time.monotonic() - began
    return waited


def _resubmit(
    pipeline: Pipeline, run: Run, graph: list[Step], bad: dict[str, list[int]], submission: Path, submitted: set[str]
) -> None:
    """Submits corrupt shards that are not queued or running, each step once."""
    if run.profile.executor != "slurm" or not slurm.installed():
        raise UserError(_describe(run, bad) + "; the same command from where jobs are submitted writes it again")
    with environment.outside_the_job():
        under_way, _ = live.shards(run, live.queue(run))
        for name, shards in bad.items():
            if set(shards) <= under_way.get(name, set()):
                continue
            step = next(step for step in graph if step.name == name)
            if name in submitted:
                if set(shards) & set(plan.missing_shards(run, step, graph)):  # it may have ended well since we looked
                    raise UserError(f"{_describe(run, bad)}, and {name} failed to write it again; see its logs")
                continue
            print(f"{_describe(run, {name: shards})}; submitting {name} again for it", flush=True)
            try:
                _submit(pipeline, run, step, graph, submission)
            except lock.Busy as busy:  # another task submits it already
                print(busy, flush=True)
                continue
            submitted.add(name)


def _submit(pipeline: Pipeline, run: Run, step: Step, graph: list[Step], submission: Path) -> None:
    """Submits what is missing of a step, and of what it reads itself, with the settings and code of this job."""
    request = config_file.load_request(submission / "config.yaml", run.folder)
    with submit.writing(run):
        under_way, upstream_job_ids = live.shards(run, live.queue(run))
        needed = {step.name}
        for other in reversed(graph):
            if other.name in needed:
                needed |= set(other.after)
        unfinished = [other for other in graph if other.name in needed and plan.missing_shards(run, other, graph)]
        plans = plan.make(run, unfinished, graph, under_way)
        if any(item.packs for item in plans):
            submit.submit(request, pipeline, run, plans, upstream_job_ids)


def _describe(run: Run, bad: dict[str, list[int]]) -> str:
    name, shards = next(iter(bad.items()))
    folder = run.folder / name
    wrong = manifest.first_mismatch(folder, manifest.latest(folder)[shards[0]])
    return f"{folder / wrong}: not the file that {folder / manifest.NAME} records (corrupt or deleted)"
