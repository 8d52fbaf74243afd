"""What a command changes in a run that exists: settings that differ from its own, and finished work that runs again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lumen_hpc.cluster import graph, live, manifest
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.ready import CheckResult
from lumen_hpc.cluster.stage import Pipeline, Run, Step
from lumen_hpc.config import config_file, run_record
from lumen_hpc.config.request import Request
from lumen_hpc.errors import UserError
from lumen_hpc.plain_text import visible
from lumen_hpc.progress import spell

MAX_VALUE_LENGTH = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class LostStep:
    """A step whose finished shards, or a training whose steps, do not count under the new settings."""

    step: str
    shards: int
    hours: float
    """By the clock, summed over its shards."""
    gpu_hours: float
    now: bool
    """Part of what this command runs."""
    unfinished: str = ""
    """How far its one shard had come, if that is all that is lost."""


@dataclass(frozen=True)
class Changes:
    run: str
    settings: list[tuple[str, Any, Any]]
    """(key, old, new)."""
    redone: list[LostStep] = field(default_factory=list)
    stale: frozenset[str] = frozenset()
    """Steps whose shards, finished or not, are other ones under the new settings."""

    def lines(self) -> Iterator[str]:
        """The changes, for people; nothing where there are none."""
        if self.settings:
            yield f"run {self.run} goes on with its own settings, but for:"
        elif self.redone:
            yield f"run {self.run}: by an update of lumen_hpc, or an earlier change, finished work counts no more"
        else:
            return
        yield from (f"  {key}: {shorten(old)} -> {shorten(new)}" for key, old, new in self.settings)
        now = [item.step for item in self.redone if item.now and not item.unfinished]
        later = [item.step for item in self.redone if not item.now and not item.unfinished]
        unfinished = [f"{item.step} ({item.unfinished})" for item in self.redone if item.unfinished]
        if now:
            yield f"finished steps that run again: {', '.join(now)}"
        if later:
            yield f"finished steps that go out of date: {', '.join(later)}"
        if unfinished:
            yield f"unfinished steps that begin anew: {', '.join(unfinished)}"
        yield f"finished work lost: {self.cost()}" if self.redone else "no finished work is lost"

    def cost(self) -> str:
        """Time of the work that is lost."""
        hours, gpu_hours = sum(item.hours for item in self.redone), sum(item.gpu_hours for item in self.redone)
        return spell(hours * 3600) + (f", {gpu_hours:.2g} GPU-hours" if gpu_hours else "")


def of(request: Request, pipeline: Pipeline) -> Changes:
    """The changes that a request makes; none for a new run.

    Without other settings finished work is lost too where a version of this package hashes settings in another way
    than the one that submitted it, or has a step read others, and where an earlier request left it out of date.
    """
    if request.recorded_settings is None:
        return Changes(request.run, [])
    old = new = Run(request.folder, request.settings, request.profile)
    differences = run_record.differences(request.recorded_settings, config_file.as_dict(request.settings))
    if differences:
        path = run_record.settings_file(request.folder)
        assert path is not None, "what is recorded was read there"
        old = Run(request.folder, *config_file.load(path))
    submissions = live.submissions(request.folder)
    digests: dict[str, str] = _submitted(submissions, "digests")
    former_inputs = {step.name: step.after for step in graph.steps(pipeline.stages, old.settings, request.stage)}
    former_inputs |= _submitted(submissions, "reads")
    all_steps = graph.steps(pipeline.stages, new.settings, request.stage)
    selected_names = {step.name for step in graph.select(all_steps, pipeline.stages, request.stage)}
    lost_steps: list[LostStep] = []
    stale_steps: set[str] = set()
    for step in all_steps:
        if step.stage.on_request:
            continue
        digest = digests.get(step.name) or config_file.digest(old.settings, step.stage.settings)
        reads_others = set(former_inputs.get(step.name, step.after)) != set(step.after)
        has_new_inputs = reads_others or bool(stale_steps & set(step.after))
        if not has_new_inputs and not _differs(step, old, digest, new):
            continue
        lost_step = _lost_step(step, old, digest, None if has_new_inputs else new, step.name in selected_names)
        if has_new_inputs or differences or lost_step:
            stale_steps.add(step.name)
        if lost_step and (differences or lost_step.now):
            lost_steps.append(lost_step)
    return Changes(request.run, differences, lost_steps, frozenset(stale_steps))


def unconfirmed(request: Request, run_changes: Changes) -> Iterator[CheckResult]:
    """Finished work that would be lost without confirm=true."""
    if not run_changes.redone or request.confirm:
        return
    if run_changes.settings:
        cause, way_back = "these settings redo", "leave the settings out to go on as before"
    else:
        provenance = request.folder / "provenance.json"
        cause, way_back = "this version redoes", f"go on with the one that did it ({provenance})"
    yield CheckResult(
        "bad",
        f"run={request.run}: {cause} finished work ({run_changes.cost()})",
        f"add confirm=true to do so, {way_back}, or choose another run=NAME to keep both",
    )


def require_no_conflict(request: Request, run_changes: Changes, plans: Sequence[StepPlan]) -> None:
    """Raises UserError while steps are queued or running with settings that the request changes."""
    run = Run(request.folder, request.settings, request.profile)
    if busy_steps := sorted(
        item.step.name for item in plans if item.live_shards and item.step.name in run_changes.stale
    ):
        raise UserError(
            f"run={request.run}: {', '.join(busy_steps)} queued or running with the run's earlier settings, or an "
            f"earlier version of lumen_hpc; wait for the end, or first: python launch.py cancel {run.arguments}"
        )


def _submitted(submissions: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Step → what plan.json had of it when it was last submitted: the hash of its settings, or what it reads.

    Nothing of steps that earlier versions submitted.
    """
    values: dict[str, Any] = {}
    for record in submissions:
        values |= record.get(name, {})
    return values


def _differs(step: Step, old: Run, digest: str, new: Run) -> bool:
    """Whether the step has other shards, or its settings another hash than `digest`."""
    stage = step.stage
    same_shards = stage.shards(old.settings) == stage.shards(new.settings)
    return not same_shards or digest != config_file.digest(new.settings, stage.settings)


def _lost_step(step: Step, old: Run, digest: str, new: Run | None, now: bool) -> LostStep | None:
    """What a stale step loses; `new`: the run as changed, if the step's inputs are the same."""
    count = step.stage.shards(old.settings)
    lines = [
        line
        for line in manifest.latest(old.folder / step.name).values()
        if line["config"] == digest and line["of"] == count
    ]
    if not lines:
        return _lost_progress(step, old, new, now)
    seconds, gpu_seconds = sum(line["seconds"] for line in lines), sum(line["gpu_seconds"] for line in lines)
    return LostStep(step.name, len(lines), seconds / 3600, gpu_seconds / 3600, now)


def _lost_progress(step: Step, old: Run, new: Run | None, now: bool) -> LostStep | None:
    """The steps of a training that has stopped, or runs; None if it has not begun, or goes on with the new settings."""
    folder = old.folder / step.name
    progress = step.stage.progress(old.settings, folder)
    if progress is None or (new is not None and step.stage.progress(new.settings, folder) is not None):
        return None
    hours = progress.step * progress.seconds / 3600
    gpus = progress.gpus if old.profile.resources[step.stage.resources].gpus else 0
    unfinished = f"step {progress.step} of {progress.steps}" if progress.step < progress.steps else ""
    return LostStep(step.name, 0, hours, hours * gpus, now, unfinished)


def shorten(value: Any) -> str:
    """A setting's value in a line of its own."""
    text = "none" if value is None else "(empty)" if value == "" else str(value)
    return visible(text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 1] + "…")
