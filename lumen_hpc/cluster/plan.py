"""What a submission would do, computed before anything is submitted: missing shards, packs, time and GPU-hours."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lumen_hpc.cluster import external_files, manifest
from lumen_hpc.cluster.stage import Run, Step
from lumen_hpc.config import config_file
from lumen_hpc.config.profile import Resources
from lumen_hpc.errors import UserError
from lumen_hpc.training.speed import Progress

PACK_SECONDS = 1800
"""Work per task once a pilot shard's time is known: long beside its start-up, short enough to lose."""


@dataclass
class StepPlan:
    step: Step
    shards: int
    missing_shards: list[int]
    """Shards to run, and those whose input is unfinished; the node skips the ones that turn out finished."""
    packs: list[list[int]]
    resources: Resources
    live_shards: list[int] = field(default_factory=list)
    """Shards that an earlier submission still has queued or running."""
    shard_seconds: float | None = None
    """Median time of a finished shard of this step [s]."""

    estimate: float | None = None
    """GPU-hours of the whole step's shards by the stage's own arithmetic."""
    load_hours: float = 0.0
    """Hours a task loads before its first shard, by the same."""
    progress: Progress | None = None
    """What the step's one shard has measured so far."""

    @property
    def gpus(self) -> int:
        """GPUs of one of its tasks."""
        return self.resources.gpus * self.resources.nodes

    @property
    def measured(self) -> bool:
        """True if the cost rests on a finished shard, or on the steps of one under way."""
        return self.shard_seconds is not None or self.progress is not None

    @property
    def gpu_hours(self) -> float | None:
        """Of what is missing, and of each task's loading; None if nothing is known."""
        if not self.gpus or not self.missing_shards:
            return 0.0
        loading = self.load_hours * len(self.packs) * self.gpus
        if self.shard_seconds is not None:
            return self.shard_seconds * len(self.missing_shards) * self.gpus / 3600 + loading
        if self.progress is not None:
            return self.progress.gpu_hours + loading
        return None if self.estimate is None else self.estimate * len(self.missing_shards) / self.shards + loading


def total_gpu_hours(plans: Sequence[StepPlan]) -> float:
    """GPU-hours of what is missing, as far as they are known."""
    return sum(item.gpu_hours or 0.0 for item in plans)


def inputs(run: Run, step: Step, all_steps: list[Step]) -> list[str | None]:
    """Hash of what each shard of a step reads; None for a shard while something it reads is not there.

    It covers the verified content of earlier steps' shards and the files outside the run that the stage names.
    """
    shards = step.stage.shards(run.settings)
    common_digest = hashlib.sha256()
    for path, status in external_files.statuses(run, step).items():
        common_digest.update(external_files.fingerprint(run.folder / step.name, path, status).encode())
    shard_contents: list[str | None] = [""] * shards
    for other in all_steps:
        if other.name not in step.after:
            continue
        count = other.stage.shards(run.settings)
        lines = manifest.latest(run.folder / other.name)
        contents = [
            f"{other.name} {index} {lines[index]['content']}\n"
            if index in lines and lines[index]["of"] == count
            else None
            for index in range(count)
        ]
        if other.name == step.shardwise_after and count == shards:
            shard_contents = contents
        elif None in contents:
            return [None] * shards
        else:
            common_digest.update("".join(map(str, contents)).encode())
    common_hash = common_digest.hexdigest()
    return [
        None if content is None else hashlib.sha256((common_hash + content).encode()).hexdigest()[:16]
        for content in shard_contents
    ]


def make(
    run: Run, selected_steps: list[Step], all_steps: list[Step], live_shards: dict[str, set[int]]
) -> list[StepPlan]:
    """Plans the chosen steps in order; UserError if one reads a step that is neither finished nor chosen nor live."""
    plans: list[StepPlan] = []
    unfinished: dict[str, set[int]] = {}
    selected_names = {step.name for step in selected_steps}
    for step in selected_steps:
        for other in (other for other in all_steps if other.name in step.after and other.name not in selected_names):
            if not live_shards.get(other.name):
                _require_finished(run, step, other.name, all_steps)
            elif missing_upstream := missing_shards(run, other, all_steps):
                unfinished[other.name] = set(missing_upstream)
        shards = step.stage.shards(run.settings)
        unfinished_shards = _unfinished_shards(run, step, all_steps, unfinished)
        resources = run.profile.resources[step.stage.resources]
        if not step.stage.successors(run.settings):
            resources = replace(resources, successors=0)
        plan = StepPlan(step, shards, unfinished_shards, [], resources, shard_seconds=_median_seconds(run, step))
        plan.estimate = step.stage.gpu_hours(run, step.model) if step.stage.gpu_hours else None
        plan.progress = step.stage.progress(run.settings, run.folder / step.name)
        plan.load_hours = step.stage.load_hours(run.settings)
        plan.live_shards = sorted(live_shards.get(step.name, set()) & set(unfinished_shards))
        plan.missing_shards = [index for index in unfinished_shards if index not in set(plan.live_shards)]
        plan.packs = _deal_packs(plan, plans)
        plans.append(plan)
        if unfinished_shards:
            unfinished[step.name] = set(unfinished_shards)
    return plans


def _unfinished_shards(run: Run, step: Step, all_steps: list[Step], unfinished: dict[str, set[int]]) -> list[int]:
    """Shards that are missing, or whose input is: all of them while a step is unfinished that each of them reads."""
    shards = step.stage.shards(run.settings)
    unfinished_inputs = [name for name in step.after if name in unfinished]
    if not unfinished_inputs:
        return missing_shards(run, step, all_steps)
    other = next(other for other in all_steps if other.name == unfinished_inputs[0])
    if unfinished_inputs != [step.shardwise_after] or other.stage.shards(run.settings) != shards:
        return list(range(shards))
    return sorted(unfinished[other.name] | set(missing_shards(run, step, all_steps)))


def missing_shards(run: Run, step: Step, all_steps: list[Step]) -> list[int]:
    """Shards of a step that are not done, by what it would read today."""
    count = step.stage.shards(run.settings)
    digest = config_file.digest(run.settings, step.stage.settings)
    verified_lines = None if run.verified_lines is None else run.verified_lines.setdefault(step.name, set())
    return manifest.missing_shards(run.folder / step.name, count, digest, inputs(run, step, all_steps), verified_lines)


def _require_finished(run: Run, step: Step, name: str, all_steps: list[Step]) -> None:
    other = next(other for other in all_steps if other.name == name)
    missing = missing_shards(run, other, all_steps)
    if missing:
        count = other.stage.shards(run.settings)
        raise UserError(
            f"stage {step.name} reads {name}, of which run {run.folder.name} has {count - len(missing)} of {count} "
            f"shards done with these settings; run stage={other.stage.name} first, or stage=full for all of it"
        )


def _median_seconds(run: Run, step: Step) -> float | None:
    seconds = [line["seconds"] for line in manifest.latest(run.folder / step.name).values()]
    return statistics.median(seconds) if seconds else None


def _deal_packs(plan: StepPlan, earlier_plans: list[StepPlan]) -> list[list[int]]:
    """Deals shards to tasks.

    Where shards correspond, the packs follow the earlier step's so that aftercorr holds, unless this step may have
    fewer tasks: a model that takes long to load (the judge) is loaded few times rather than early.
    """
    if not plan.missing_shards:
        return []
    upstream_plan = next(
        (other for other in earlier_plans if other.step.name == plan.step.shardwise_after and other.packs), None
    )
    if (
        upstream_plan is not None
        and upstream_plan.shards == plan.shards
        and len(upstream_plan.packs) <= plan.resources.tasks
    ):
        remaining = set(plan.missing_shards)
        packs = [[index for index in pack if index in remaining] for pack in upstream_plan.packs]
        unassigned = sorted(remaining - {index for pack in packs for index in pack})
        for position, index in enumerate(unassigned):
            packs[position % len(packs)].append(index)
        if all(packs):
            return packs
    tasks = min(plan.resources.tasks, len(plan.missing_shards))
    if plan.shard_seconds:
        tasks = max(1, min(tasks, math.ceil(plan.shard_seconds * len(plan.missing_shards) / PACK_SECONDS)))
    return [plan.missing_shards[offset::tasks] for offset in range(tasks)]
