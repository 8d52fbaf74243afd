"""`dry_run=true [scripts=true]`: the plan of a submission, printed. Nothing is written or submitted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lumen_hpc.cluster import estimate, plan, question_counts, submit
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.ready import CheckResult
from lumen_hpc.cluster.stage import Pipeline, Run
from lumen_hpc.config.request import Request


def show(
    request: Request,
    pipeline: Pipeline,
    run: Run,
    plans: list[StepPlan],
    upstream_job_ids: dict[str, list[str]],
    console: Console,
    refusals: Sequence[CheckResult] = (),
) -> None:
    """Prints steps, packing, waves, GPU-hours and what would be refused; with scripts=true every sbatch script too."""
    view = Table("step", "section", "shards", "to do", "tasks", "waves", "asks for", "GPU-h", box=None, pad_edge=False)
    for item in plans:
        resources = item.resources
        at_once = min(len(item.packs), request.profile.throttle or len(item.packs))
        waves = math.ceil(len(item.packs) / at_once) if at_once else 0
        counts = (str(item.shards), str(len(item.missing_shards)), str(len(item.packs)), str(waves))
        asks = f"{resources.nodes} x {resources.gpus} GPU, {resources.time_min} min"
        view.add_row(item.step.name, item.step.stage.paper, *counts, asks, _hours(item))
    console.print(view)
    total = plan.total_gpu_hours(plans)
    source = question_counts.of(run).source
    console.print(
        f"GPU-hours: {total:.1f}; ~ is an estimate from {source} (lumen_hpc/cluster/estimate.py), ? is not known",
        soft_wrap=True,
    )
    for item in plans:
        if warning := too_long(item):
            console.print(f"{item.step.name}: {warning}", soft_wrap=True)
        if item.step.stage.resources == "train" and item.step.model and item.missing_shards:
            if found := estimate.training(run, item.step.model, measured_progress=item.progress):
                condition = "" if item.resources.gpus else "the profile asks for no GPU; on one: "
                console.print(f"{item.step.name}: {condition}{found}", soft_wrap=True)
            if warning := estimate.idle_warning(run, item.step.model):
                console.print(f"{item.step.name}: {warning}", soft_wrap=True)
            if item.progress:
                console.print(f"{item.step.name}: {item.progress}", soft_wrap=True)
    for result in refusals:
        console.print(f"a submission would be refused: {result.message}; fix: {result.fix}", soft_wrap=True)
    if request.profile.executor == "slurm" and not request.scripts:
        console.print("scripts=true prints every sbatch script too")
    if request.profile.executor == "slurm" and request.scripts:
        for name, text in submit.scripts(request, pipeline.stages, run, plans, upstream_job_ids):
            console.print(f"--- {name} ---\n{text}", soft_wrap=True)


def too_long(item: StepPlan) -> str:
    """A warning where a task would take longer than the time limit of its jobs; empty where it would not.

    A training goes on from its checkpoints, and a task from its finished shards: a successor has the time limit again.
    """
    if not item.gpu_hours or not item.packs:
        return ""
    name, resources = item.step.stage.resources, item.resources
    hours, limit = item.gpu_hours / len(item.packs) / item.gpus, resources.time_min / 60
    goes_on = name == "train" or len(item.missing_shards) > len(item.packs)
    jobs = 1 + resources.successors * goes_on
    if hours <= jobs * limit:
        return ""
    more = f"profile.resources.{name}.successors={math.ceil(hours / limit) - 1}" if goes_on else "more shards"
    return (
        f"warning: a task takes about {hours:.1f} h by the clock, and its {jobs} job(s) end after {limit:g} h each; "
        f"fix: {more}, a longer profile.resources.{name}.time_min, or submit again then, which continues"
    )


def _hours(item: StepPlan) -> str:
    if item.gpu_hours is None:
        return "?"
    return f"{item.gpu_hours:.1f}" if item.measured or not item.gpu_hours else f"~{item.gpu_hours:.1f}"
