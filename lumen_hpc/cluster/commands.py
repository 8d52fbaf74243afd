"""The verbs of the command line; each returns an exit code."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lumen_hpc import config
from lumen_hpc.cluster import estimate, fetch, graph, local, preflight, slurm
from lumen_hpc.cluster import status as run_status
from lumen_hpc.cluster import submit as submission
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.stage import Run, Stage
from lumen_hpc.config import Request
from lumen_hpc.errors import UserError
from lumen_hpc.report import terminal

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def submit(request: Request, stages: Sequence[Stage]) -> int:
    """Submits what is missing of a stage, or of all (`stage=full`)."""
    if not request.stage:
        raise UserError("say what to run: stage=NAME or stage=full (python launch.py --help lists everything)")
    if request.stage == "fetch":
        return fetch.fetch(request.settings, Path(request.profile.cache), console)
    run = submission.open_run(request)
    _require_fit(request, stages)
    if request.dry_run:
        plans, behind = submission.make(request, stages, run)
        show_plan(request, run, plans, behind)
        return 0
    preflight.require_allowed(request.settings, request.profile, run.folder)
    if request.profile.executor == "local":
        return _run_here(request, stages, run)
    if not slurm.installed():
        raise UserError(f"profile {request.profile.name} submits to Slurm, but sbatch is not on this machine")
    with submission.writing(run):
        if swept := submission.sweep(run, stages):
            console.print(f"cancelled {swept} job(s) of earlier submissions that could never start")
        plans, behind = submission.make(request, stages, run)
        _say_live(plans)
        _within_budget(request, plans)
        if not any(item.packs for item in plans):
            console.print(f"nothing to submit: {request.stage} of run {request.run} is done or under way")
            return 0
        done = submission.submit(request, run, plans, behind)
    for job in done.jobs:
        link = f" (successor {job['link']})" if job["link"] else ""
        console.print(f"{job['step']:<16} job {job['id']}, {len(job['packs'])} task(s){link}")
    console.print(f"follow it: python launch.py status run={request.run}")
    return 0


def _run_here(request: Request, stages: Sequence[Stage], run: Run) -> int:
    local.require_possible(request)
    plans, _ = submission.make(request, stages, run)
    with submission.writing(run):
        try:
            local.run_all(request, list(stages), run, plans, console)
        except local.Failed as error:
            console.print(f"lumen: {error}", markup=False, soft_wrap=True)
            return 1
    page = run.folder / "report" / "index.html"
    if request.stage in ("full", "evaluate") and page.exists():
        terminal.show(run.folder / "report" / "tables.csv", console)
        console.print(f"report: {page}", soft_wrap=True)
    return 0


def _say_live(plans: Sequence[StepPlan]) -> None:
    for item in plans:
        if item.live:
            console.print(
                f"{item.step.name}: {len(item.live)} shards are queued or running already; they are left alone"
            )


def show_plan(request: Request, run: Run, plans: list[StepPlan], behind: dict[str, list[str]]) -> None:
    """Prints steps, packing, waves, GPU-hours and, for Slurm, every sbatch script with its dependencies."""
    view = Table("step", "section", "shards", "to do", "tasks", "waves", "asks for", "GPU-h", box=None, pad_edge=False)
    for item in plans:
        wanted = item.resources
        at_once = min(len(item.packs), request.profile.throttle or len(item.packs))
        waves = math.ceil(len(item.packs) / at_once) if at_once else 0
        counts = (str(item.shards), str(len(item.missing)), str(len(item.packs)), str(waves))
        asks = f"{wanted.nodes} x {wanted.gpus} GPU, {wanted.time_min} min"
        view.add_row(item.step.name, item.step.stage.paper, *counts, asks, _hours(item))
    console.print(f"run {run.folder}", soft_wrap=True)
    console.print(view)
    console.print(f"GPU-hours: {_total(plans):.1f}; ~ is an estimate (lumen_hpc/cluster/estimate.py), ? is not known")
    wanted = request.profile.resources["train"]
    for item in plans:
        found = estimate.training(request.settings, item.step.model, wanted.gpus * wanted.nodes or 1)
        if item.step.stage.resources == "train" and item.step.model and item.missing and found:
            console.print(f"{item.step.name}: {found}", soft_wrap=True)
    if request.profile.executor == "slurm":
        for name, text in submission.scripts(request, run, plans, behind):
            console.print(f"--- {name} ---\n{text}", markup=False, soft_wrap=True)


def _require_fit(request: Request, stages: Sequence[Stage]) -> None:
    chosen = graph.select(graph.steps(stages, request.settings), stages, request.stage)
    models = [step.model for step in chosen if step.stage.name == "train"]
    wanted = request.profile.resources["train"]
    estimate.require_fit(request.settings, models, wanted.gpus * wanted.nodes, request.profile.gpu_memory_gb)


def _hours(item: StepPlan) -> str:
    if item.gpu_hours is None:
        return "?"
    return f"{item.gpu_hours:.1f}" if item.measured or not item.gpu_hours else f"~{item.gpu_hours:.1f}"


def _total(plans: Sequence[StepPlan]) -> float:
    return sum(item.gpu_hours or 0.0 for item in plans)


def _within_budget(request: Request, plans: Sequence[StepPlan]) -> None:
    limit, total = request.profile.gpu_hours_limit, _total(plans)
    if limit and total > limit:
        raise UserError(
            f"this submission would cost about {total:.1f} GPU-hours, profile.gpu_hours_limit is {limit:g}; "
            "dry_run=true shows what costs how much"
        )


def check(request: Request, stages: Sequence[Stage]) -> int:
    """Prints what would stop a run on this site, each with its cure; 2 if something would."""
    found = list(preflight.findings(submission.open_run(request)))
    if request.json:
        print(json.dumps([dataclasses.asdict(item) for item in found]))
    else:
        for item in found:
            console.print(
                f"{item.level:<5}{item.what}" + (f"\n     cure: {item.cure}" if item.cure else ""),
                markup=False,
                soft_wrap=True,
            )
    return 2 if any(item.level == "bad" for item in found) else 0


def status(request: Request, stages: Sequence[Stage]) -> int:
    """Prints where a run stands; 1 if a step of it has failed."""
    run = existing(request)
    while True:
        found = run_status.of(run, stages)
        if request.json:
            print(json.dumps({"run": str(run.folder), "steps": [dataclasses.asdict(item) for item in found]}))
        else:
            run_status.table(run, found, console)
        moving = any(item.running or item.queued for item in found)
        if not request.watch or not moving:
            return int(any(item.state in ("failed", "stuck") for item in found))
        time.sleep(5)


def cancel(request: Request, stages: Sequence[Stage]) -> int:
    """Cancels a run's queued and running jobs; finished shards stay."""
    run = existing(request)
    queued = slurm.queue()
    ids = [job["id"] for record in submission.submissions(run.folder) for job in record["jobs"]
           if any(name in queued for name in slurm.expand(job["id"], len(job["packs"])))]  # fmt: skip
    slurm.cancel(ids)
    console.print(f"cancelled {len(ids)} job(s) of run {request.run}; what is finished stays")
    return 0


def logs(request: Request, stages: Sequence[Stage]) -> int:
    """Prints the paths of a run's logs, newest first; of one stage with stage=NAME."""
    run = existing(request)
    names = [step.name for step in graph.steps(stages, run.settings)]
    if request.stage:
        names = [step.name for step in graph.select(graph.steps(stages, run.settings), stages, request.stage)]
    files = [path for name in names for path in (run.folder / name / "logs").glob("*.out")]
    for path in sorted(files, key=lambda path: -path.stat().st_mtime):
        print(path)
    return 0


def existing(request: Request) -> Run:
    """The run named, with the settings it was last submitted with; UserError if there is none."""
    run = submission.open_run(request)
    saved = run.folder / "config.yaml"
    if not saved.is_file():
        here = sorted(path.parent.name for path in run.folder.parent.glob("*/config.yaml"))
        raise UserError(f"run={request.run}: there is no {saved}; the runs here are {', '.join(here) or '(none)'}")
    settings, profile = config.load(saved)
    return Run(run.folder, settings, profile)


def help_text(usage: str) -> None:
    """Prints the usage, then every option, setting and profile key with its default and meaning."""
    console.print(usage, markup=False)
    view = Table("key", "default", "meaning", box=None, pad_edge=False)
    for key, default, text in config.documentation():
        view.add_row(key, default, text)
    console.print(view, markup=False)
