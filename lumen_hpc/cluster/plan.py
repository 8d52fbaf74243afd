"""What a submission would do, computed before anything is submitted: missing shards, packs, time and GPU-hours."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lumen_hpc.cluster import manifest
from lumen_hpc.cluster.stage import Run, Step
from lumen_hpc.config import config_file
from lumen_hpc.config.profile import Resources, on_nodes_only
from lumen_hpc.errors import UserError
from lumen_hpc.training.speed import Progress

PACK_SECONDS = 1800
"""Work a task is given once a pilot shard's time is known: long against its start-up, short against its loss."""


@dataclass
class StepPlan:
    step: Step
    shards: int
    missing: list[int]
    """Shards to run, with those whose input is unfinished; the node leaves out what proves done."""
    packs: list[list[int]]
    resources: Resources
    live: list[int] = field(default_factory=list)
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
        if not self.gpus or not self.missing:
            return 0.0
        loading = self.load_hours * len(self.packs) * self.gpus
        if self.shard_seconds is not None:
            return self.shard_seconds * len(self.missing) * self.gpus / 3600 + loading
        if self.progress is not None:
            return self.progress.gpu_hours + loading
        return None if self.estimate is None else self.estimate * len(self.missing) / self.shards + loading


def total_gpu_hours(plans: Sequence[StepPlan]) -> float:
    """GPU-hours of what is missing, as far as they are known."""
    return sum(item.gpu_hours or 0.0 for item in plans)


def inputs(run: Run, step: Step, graph: list[Step]) -> list[str | None]:
    """Hash of what each shard of a step reads; None for a shard while something it reads is not there.

    It covers the verified content of earlier steps' shards and the files outside the run that the stage names, but for
    those that only the nodes see: a worker's hash must be that of the machine that submits.
    """
    shards = step.stage.shards(run.settings)
    common = hashlib.sha256()
    for name in step.stage.external(run.settings):
        path = Path(name).expanduser()
        if on_nodes_only(path, run.profile):
            continue
        if not path.exists():
            raise UserError(f"stage {step.name} reads {path}, which is not there")
        stat = path.stat()
        common.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    own: list[str | None] = [""] * shards
    for other in graph:
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
            own = contents
        elif None in contents:
            return [None] * shards
        else:
            common.update("".join(map(str, contents)).encode())
    base = common.hexdigest()
    return [None if part is None else hashlib.sha256((base + part).encode()).hexdigest()[:16] for part in own]


def make(run: Run, chosen: list[Step], graph: list[Step], live: dict[str, set[int]]) -> list[StepPlan]:
    """Plans the chosen steps in order; UserError if one reads a step that is neither finished nor chosen nor live."""
    plans: list[StepPlan] = []
    unfinished: dict[str, set[int]] = {}
    names = {step.name for step in chosen}
    for step in chosen:
        for other in (other for other in graph if other.name in step.after and other.name not in names):
            if not live.get(other.name):
                _require_finished(run, step, other.name, graph)
            elif left := missing(run, other, graph):
                unfinished[other.name] = set(left)
        shards = step.stage.shards(run.settings)
        unfinished_shards = _unfinished(run, step, graph, unfinished)
        resources = run.profile.resources[step.stage.resources]
        if not step.stage.successors(run.settings):
            resources = replace(resources, successors=0)
        plan = StepPlan(step, shards, unfinished_shards, [], resources, shard_seconds=_pilot(run, step))
        plan.estimate = step.stage.gpu_hours(run, step.model) if step.stage.gpu_hours else None
        plan.progress = step.stage.progress(run.settings, run.folder / step.name)
        plan.load_hours = step.stage.load_hours(run.settings)
        plan.live = sorted(live.get(step.name, set()) & set(unfinished_shards))
        plan.missing = [index for index in unfinished_shards if index not in set(plan.live)]
        plan.packs = _packs(plan, plans)
        plans.append(plan)
        if unfinished_shards:
            unfinished[step.name] = set(unfinished_shards)
    return plans


def _unfinished(run: Run, step: Step, graph: list[Step], unfinished: dict[str, set[int]]) -> list[int]:
    """Shards that are missing, or whose input is: all of them while a step is unfinished that each of them reads."""
    shards = step.stage.shards(run.settings)
    waited_for = [name for name in step.after if name in unfinished]
    if not waited_for:
        return missing(run, step, graph)
    other = next(other for other in graph if other.name == waited_for[0])
    if waited_for != [step.shardwise_after] or other.stage.shards(run.settings) != shards:
        return list(range(shards))
    return sorted(unfinished[other.name] | set(missing(run, step, graph)))


def missing(run: Run, step: Step, graph: list[Step]) -> list[int]:
    """Shards of a step that are not done, by what it would read today."""
    count = step.stage.shards(run.settings)
    digest = config_file.digest(run.settings, step.stage.settings)
    seen = None if run.seen is None else run.seen.setdefault(step.name, set())
    return manifest.missing(run.folder / step.name, count, digest, inputs(run, step, graph), seen)


def _require_finished(run: Run, step: Step, name: str, graph: list[Step]) -> None:
    other = next(other for other in graph if other.name == name)
    lacking = missing(run, other, graph)
    if lacking:
        count = other.stage.shards(run.settings)
        raise UserError(
            f"stage {step.name} reads {name}, of which run {run.folder.name} has {count - len(lacking)} of {count} "
            f"shards done with these settings; run stage={other.stage.name} first, or stage=full for all of it"
        )


def _pilot(run: Run, step: Step) -> float | None:
    seconds = [line["seconds"] for line in manifest.latest(run.folder / step.name).values()]
    return statistics.median(seconds) if seconds else None


def _packs(plan: StepPlan, earlier: list[StepPlan]) -> list[list[int]]:
    """Deals shards to tasks.

    Where shards correspond, the packs follow the earlier step's so that aftercorr holds, unless this step may have
    fewer tasks: a model that takes long to load (the judge) is loaded few times rather than early.
    """
    if not plan.missing:
        return []
    base = next((other for other in earlier if other.step.name == plan.step.shardwise_after and other.packs), None)
    if base is not None and base.shards == plan.shards and len(base.packs) <= plan.resources.tasks:
        remaining = set(plan.missing)
        packs = [[index for index in pack if index in remaining] for pack in base.packs]
        rest = sorted(remaining - {index for pack in packs for index in pack})
        for position, index in enumerate(rest):
            packs[position % len(packs)].append(index)
        if all(packs):
            return packs
    tasks = min(plan.resources.tasks, len(plan.missing))
    if plan.shard_seconds:
        tasks = max(1, min(tasks, math.ceil(plan.shard_seconds * len(plan.missing) / PACK_SECONDS)))
    return [plan.missing[offset::tasks] for offset in range(tasks)]
