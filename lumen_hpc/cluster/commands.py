"""The verbs of the command line; each returns an exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lumen_hpc.cluster import changes, graph, live, lock, preflight, ready, refusals, slurm
from lumen_hpc.cluster import submit as submission
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.stage import Pipeline, Run
from lumen_hpc.config import config_file, reference, run_record
from lumen_hpc.config.request import Request
from lumen_hpc.errors import UserError
from lumen_hpc.files import user_name
from lumen_hpc.plain_text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from lumen_hpc.cluster.status import StepStatus


NARROWEST = 80
"""Columns that a table takes at least: in fewer, rich leaves columns without a character."""


def submit(request: Request, pipeline: Pipeline) -> int:
    """Submits what is missing of a stage, or of all (`stage=full`)."""
    if not request.stage:
        raise UserError("say what to run: stage=NAME or stage=full (python launch.py --help lists everything)")
    if request.stage == "fetch":
        from lumen_hpc.cluster import fetch

        ready.require_set(request.profile, only="profile.cache")
        return fetch.fetch(request.settings, Path(request.profile.cache), _console(), request.dry_run)
    stage = graph.on_request(pipeline.stages, request.stage)
    if stage:
        _take_settings(request)
    changed = changes.of(request, pipeline)
    run = submission.open_run(request)
    if stage:
        stage.require(run)
    refusals.require_valid(request, pipeline)
    print(announcement(request, pipeline), *_doubts(request), *changed.lines(), sep="\n", flush=True)
    if request.dry_run:
        from lumen_hpc.cluster import dry_run

        plans, upstream_job_ids = submission.make(request, pipeline.stages, run)
        refused = [*changes.unconfirmed(request, changed), *refusals.of_plans(request, plans)]
        dry_run.show(request, pipeline, run, plans, upstream_job_ids, _console(), refused)
        return 0
    ready.require_set(request.profile, request.runs)
    changes.require_confirmed(request, changed)
    preflight.require_allowed(request.settings, request.profile, run.folder)
    if request.profile.executor == "local":
        return _run_here(request, pipeline, run)
    if not slurm.installed():
        raise UserError(f"profile {request.profile.name} submits to Slurm, but sbatch is not on this machine")
    with slurm.prefetch():
        return _submit(request, pipeline, run, changed)


def _submit(request: Request, pipeline: Pipeline, run: Run, changed: changes.Changes) -> int:
    """Submits what is missing to Slurm."""
    live.require_own(run)
    with submission.writing(run), submission.ended_as_by_ctrl_c():
        queued = live.settled_queue(run)
        if swept := live.sweep(run, queued):
            print(f"cancelled {len(swept)} job(s) of earlier submissions that could never start, or are on no record")
            queued = live.settled_queue(run, swept)
        plans, upstream_job_ids = submission.make(request, pipeline.stages, run, queued)
        changes.require_still(request, changed, plans)
        _print_live(plans)
        refusals.require_within_budget(request, plans)
        refusals.require_ready(request, plans)
        if not any(item.packs for item in plans):
            how = "under way" if any(item.live_shards for item in plans) else "done"
            print(f"nothing to submit: {request.stage} of run {request.run} is {how}")
            if how == "done" and request.stage in ("full", "evaluate"):
                print(f"report: {run.page}")
            return 0
        refusals.require_fitting_cluster(request, plans)
        done = submission.submit(request, pipeline, run, plans, upstream_job_ids)
    _print_jobs(done.jobs)
    print(f"follow it: python launch.py status {run.arguments}")
    return 0


def announcement(request: Request, pipeline: Pipeline) -> str:
    """What runs where, in a line: a forgotten profile shows here."""
    count = len(refusals.steps_of(request, pipeline))
    data = "phantoms" if request.settings.data.source == "phantom" else "MIMIC-CXR"
    name = Path(request.profile.name).stem
    if request.profile.executor == "slurm":
        where = "would submit to Slurm" if request.dry_run else "submitting to Slurm"
    else:
        where = "would run on this machine" if request.dry_run else "running on this machine"
    return f"{name} profile: {where}, {count} step{'s' * (count != 1)}, {data}, run {request.folder}"


def _doubts(request: Request) -> Iterator[str]:
    """What a user may not have meant: a forgotten profile, or the name of a run with a typo."""
    if not request.profile_named and slurm.installed():
        yield "no profile is named (profile=NAME or LUMEN_PROFILE), so nothing goes to this machine's Slurm"
    if request.recorded_settings is None:
        bare, others = _bare(request.run), run_record.runs_in(request.folder.parent)
        if found := [name for name in others if name != request.run and _bare(name) == bare]:
            yield f"{request.run} is a new run; {', '.join(found)} is another, which exists"


def _bare(name: str) -> str:
    """A run's name without what is easily mistyped."""
    return "".join(character for character in name.casefold() if character.isalnum())


def _take_settings(request: Request) -> None:
    """A stage on request takes its run as it is recorded, but for the settings of its own section."""
    if request.recorded_settings is None:
        if not request.settings.serve.weights:
            existing(request)
        return
    for key, old, _ in run_record.differences(request.recorded_settings, config_file.as_dict(request.settings)):
        if any(word == key or word.startswith(f"{key}.") for word in request.setting_keys):
            raise UserError(
                f"{key}: stage={request.stage} takes run {request.run} as it is ({key}={old}); "
                "only serve.… can be given"
            )
    asked = request.settings.serve
    request.settings = existing(request).settings
    request.settings.serve = asked


def _run_here(request: Request, pipeline: Pipeline, run: Run) -> int:
    from lumen_hpc.cluster import local
    from lumen_hpc.report import terminal

    live.require_none(run)
    lock.require_free(run.folder)  # before what it has not finished yet looks like a stage that is missing
    console = _console()
    plans, _ = submission.make(request, pipeline.stages, run)
    refusals.require_ready(request, plans)
    with submission.writing(run), _announcing(run, request.stage), submission.ended_as_by_ctrl_c():
        try:
            local.run_all(request, pipeline, run, plans, console)
        except local.Failed as error:
            print(f"lumen: {visible(str(error))}")
            return 1
    if request.stage in ("full", "evaluate") and run.page.exists():
        terminal.show(run.folder / "report" / "tables.csv", console)
        print(f"report: {run.page}")
    if request.stage != "full":
        print(*(f"{item.step.name}: {run.folder / item.step.name}" for item in plans), sep="\n")
    return 0


@contextmanager
def _announcing(run: Run, stage: str) -> Iterator[None]:
    """While a server starts on this machine, waits for its address and prints it."""
    if stage != "serve":
        yield
        return
    from lumen_hpc.cluster.status import server

    over = threading.Event()

    def announce() -> None:
        while not over.wait(0.5):
            if lines := server(run):
                print(*lines, "Ctrl-C ends it", sep="\n", flush=True)
                return

    watcher = threading.Thread(target=announce, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _print_jobs(jobs: list[live.JobRecord]) -> None:
    """A line a step: its job, the successors that stand by, and the gate that its readers wait for."""
    for first in jobs:
        if first["link"] or first.get("gate"):
            continue
        own = [job for job in jobs if (job["step"], job["packs"]) == (first["step"], first["packs"])]
        successors = [job["id"] for job in own if job["link"]]
        more = f"; successors {', '.join(successors)}" if successors else ""
        more += "".join(f"; gate {job['id']}" for job in own if job.get("gate"))
        print(f"{first['step']:<16} job {first['id']}, {len(first['packs'])} task(s){more}")


def _print_live(plans: Sequence[StepPlan]) -> None:
    for item in plans:
        if item.live_shards:
            print(
                f"{item.step.name}: {len(item.live_shards)} shards are queued or running already; they are left alone"
            )


def check(request: Request, pipeline: Pipeline) -> int:
    """Prints what would stop a run, or one stage of it, on this site, each with its fix; 2 if something would."""
    steps = refusals.steps_of(request, pipeline)
    stages = {step.stage.name for step in steps} if request.stage not in ("", "full") else None
    found = [*refusals.of_settings(request, pipeline), *preflight.check_all(submission.open_run(request), stages)]
    if request.json:
        print(json.dumps([dataclasses.asdict(item) for item in found]))
    else:
        for item in found:
            print(f"{item.level:<5}{item.message}" + (f"\n     fix: {item.fix}" if item.fix else ""))
    return 2 if any(item.level == "bad" for item in found) else 0


def status(request: Request, pipeline: Pipeline) -> int:
    """Prints where a run, or one stage of it, stands; 1 if a step of it has failed."""
    from lumen_hpc.cluster import status as run_status
    from lumen_hpc.cluster import status_table

    if request.watch and request.json:
        raise UserError("watch=true and json=true: one of the two")
    run = existing(request)

    def look() -> list[StepStatus]:
        return [item for item in run_status.of(run, pipeline.stages) if item.step in names]

    names = _named(run, pipeline, request.stage or "full")
    owner, queue_known = user_name(run.folder.stat().st_uid), True
    if request.watch:
        run = dataclasses.replace(run, verified_lines={})
        found = status_table.watch(run, look, _console())
    else:
        try:
            found = look()
        except slurm.Unreachable as error:
            print(f"lumen: {error}; the queue is unknown: this is what the files say", file=sys.stderr)
            queue_known = False
            found = [item for item in run_status.by_files(run, pipeline.stages) if item.step in names]
    if request.json:
        steps = [dataclasses.asdict(item) for item in found]
        print(json.dumps({"run": str(run.folder), "owner": owner, "queue_known": queue_known, "steps": steps}))
    elif not request.watch:
        status_table.show(run, found, _console())
        if run.folder.stat().st_uid != os.getuid():
            print(f"the jobs of this run are {owner}'s: only {owner} can go on with it or cancel them")
    return int(any(item.state in ("failed", "stuck") for item in found))


def cancel(request: Request, pipeline: Pipeline) -> int:
    """Cancels a run's queued and running jobs, or one stage's with what waits for it; finished shards stay."""
    run = existing(request)
    if (owner := run.folder.stat().st_uid) not in (os.getuid(), 0):  # its plan.json could name jobs of other runs
        raise UserError(f"{run.folder}: the jobs of this run are {user_name(owner)}'s, who alone can cancel them")
    if run.profile.executor == "local":
        raise UserError(f"run {request.run} has no jobs: it runs on this machine, and Ctrl-C where it runs ends it")
    names = _with_dependants(run, pipeline, request.stage)
    if not request.dry_run:
        lock.require_free(run.folder)  # before the queue is asked: what is submitted meanwhile would stay
    records = list(live.submissions(run.folder))
    queued = live.queue(run)
    alive = [job for record in records for job in record["jobs"] if live.tasks(record, job, queued)]
    ids = [job["id"] for job in alive if names is None or job["step"] in names]
    ids += live.unrecorded(run, queued) if names is None else []
    what = f"run {request.run}" + (f", stage={request.stage}" if request.stage else "")
    if request.dry_run:
        for job in alive:
            if job["id"] in ids:
                print(f"{job['step']:<16} job {job['id']}")
        print(f"would cancel {len(ids)} job(s) of {what}; nothing was cancelled")
        return 0
    left = slurm.cancel(ids[::-1])  # gates and dependants first, so that nothing starts in between
    print(f"cancelled {len(ids) - len(left)} job(s) of {what}; what is finished stays")
    if names is not None and (
        others := sorted({job["step"] for job in alive} & (names - _named(run, pipeline, request.stage)))
    ):
        print(f"among them, because they wait for it: {', '.join(others)}")
    if left:
        print(f"lumen: not cancelled, still in the queue: {', '.join(left)}", file=sys.stderr)
        return 1
    if names is None:
        live.mark_cancelled(records)
    return 0


def _named(run: Run, pipeline: Pipeline, stage: str) -> set[str]:
    """The steps that `stage=NAME` means."""
    everything = graph.steps(pipeline.stages, run.settings, stage)
    return {step.name for step in graph.select(everything, pipeline.stages, stage)}


def _with_dependants(run: Run, pipeline: Pipeline, stage: str) -> set[str] | None:
    """The steps that `stage=NAME` means and all that wait for them; None, which is everything, for the whole run."""
    if stage in ("", "full"):
        return None
    names = _named(run, pipeline, stage)
    for step in graph.steps(pipeline.stages, run.settings, stage):
        if names & set(step.after):
            names.add(step.name)
    return names


def logs(request: Request, pipeline: Pipeline) -> int:
    """Prints the end of the log that matters now, of one stage with stage=NAME, and where the others are."""
    from lumen_hpc.cluster import logs as run_logs
    from lumen_hpc.cluster import status as run_status

    run = existing(request)
    names = _named(run, pipeline, request.stage or "full")
    steps = [item for item in run_status.of(run, pipeline.stages) if item.step in names]
    steps += [run_status.StepStatus(name, "", 0, 0) for name in names - {item.step for item in steps}]
    for line in run_logs.lines(run.folder, steps):
        print(line)
    return 0


def compare(request: Request, pipeline: Pipeline) -> int:
    """Prints what two or more runs have different: settings, and the tables with intervals of the differences."""
    from lumen_hpc.cluster import compare as comparison

    runs = comparison.open_runs(list(request.compared_runs), request.folder.parent)
    for line in comparison.stale(runs, pipeline.stages):
        print(f"lumen: {line}", file=sys.stderr)
    comparison.show(runs, _console())
    return 0


def existing(request: Request) -> Run:
    """The named run, with the settings of its last submission; UserError if there is none."""
    run = submission.open_run(request)
    path = run_record.settings_file(run.folder)
    if path is None:
        ready.require_set(request.profile, request.runs, only="profile.runs")
        where = f"{run.folder / 'config.yaml'}{refusals.no_profile(request)}"
        raise UserError(f"run={request.run}: there is no {where}; {run_record.runs_hint(run.folder)}")
    run = Run(run.folder, *config_file.load(path))
    run.keep_private()
    return run


def ask(request: Request, pipeline: Pipeline) -> int:
    """Answers one question about one or two images with a run's model, on this machine."""
    from lumen_hpc.cluster import run_model

    return run_model.ask(request, submission.open_run(request) if request.settings.serve.weights else existing(request))


def help_text(usage: str, verb: str = "") -> None:
    """Prints the usage, then every option, setting and profile key with its default and meaning; a verb's own alone."""
    from rich.table import Table

    console = _console()
    console.print(usage)
    view = Table("key", "default", "meaning", box=None, pad_edge=False)
    for key, default, text in reference.documentation(verb):
        view.add_row(key, default, text)
    console.print(view)
    if verb:
        console.print("every setting: python launch.py --help")


def _console() -> Console:
    """The console for tables. rich is imported only here: it would cost a submission a fifth of its time."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
    if console.width < NARROWEST:  # its lines wrap, which can still be read
        console.width = NARROWEST
    return console
