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


MIN_WIDTH = 80
"""Minimal width of a table: in less, rich leaves columns without a character."""


def submit(request: Request, pipeline: Pipeline) -> int:
    """Submits what is missing of a stage, or of all (`stage=full`)."""
    if not request.stage:
        raise UserError("say what to run: stage=NAME or stage=full (python launch.py --help lists everything)")
    if request.stage == "fetch":
        from lumen_hpc.cluster import fetch

        ready.refuse(ready.unset_variables(request.profile, only="profile.cache"))
        return fetch.fetch(request.settings, Path(request.profile.cache), _console(), request.dry_run)
    stage_on_request = graph.on_request(pipeline.stages, request.stage)
    if stage_on_request:
        _take_recorded_settings(request)
    run_changes = changes.of(request, pipeline)
    run = submission.open_run(request)
    if stage_on_request:
        stage_on_request.require(run)
    refusals.require_valid(request, pipeline)
    print(announcement(request, pipeline), *_warnings(request), *run_changes.lines(), sep="\n", flush=True)
    if request.dry_run:
        from lumen_hpc.cluster import dry_run

        plans, upstream_job_ids = submission.make_plans(request, pipeline.stages, run)
        refusal_results = [*changes.unconfirmed(request, run_changes), *refusals.of_plans(request, plans)]
        dry_run.show(request, pipeline, run, plans, upstream_job_ids, _console(), refusal_results)
        return 0
    ready.refuse(ready.unset_variables(request.profile, request.runs))
    ready.refuse(changes.unconfirmed(request, run_changes))
    ready.refuse(preflight.data_use(request.settings, request.profile, run.folder))
    if request.profile.executor == "local":
        return _run_locally(request, pipeline, run)
    if not slurm.installed():
        raise UserError(
            f"profile {request.profile.name} submits to Slurm, but sbatch is not on this machine; submit on a login "
            "node, or run here with profile=local"
        )
    with slurm.prefetch():
        return _submit(request, pipeline, run, run_changes)


def _submit(request: Request, pipeline: Pipeline, run: Run, run_changes: changes.Changes) -> int:
    """Submits what is missing to Slurm."""
    live.require_own(run)
    with submission.writing(run), submission.terminations_as_interrupts():
        queued_jobs = live.settled_queue(run)
        if swept_ids := live.sweep(run, queued_jobs):
            print(
                f"cancelled {len(swept_ids)} job(s) of earlier submissions that could never start, or are on no record"
            )
            queued_jobs = live.settled_queue(run, swept_ids)
        plans, upstream_job_ids = submission.make_plans(request, pipeline.stages, run, queued_jobs)
        changes.require_no_conflict(request, run_changes, plans)
        _print_live(plans)
        ready.refuse(refusals.over_budget(request, plans))
        ready.refuse(refusals.unready(request, plans))
        if not any(item.packs for item in plans):
            state = "under way" if any(item.live_shards for item in plans) else "done"
            print(f"nothing to submit: {request.stage} of run {request.run} is {state}")
            if state == "done" and request.stage in ("full", "evaluate"):
                print(f"report: {run.page}")
            return 0
        ready.refuse(refusals.unfit_steps(request, plans))
        new_submission = submission.submit(request, pipeline, run, plans, upstream_job_ids)
    _print_jobs(new_submission.jobs)
    of_stage = f" stage={request.stage}" if graph.on_request(pipeline.stages, request.stage) else ""
    print(f"follow it: python launch.py status {run.arguments}{of_stage}")
    return 0


def announcement(request: Request, pipeline: Pipeline) -> str:
    """One line that says what runs where, so that a forgotten profile shows."""
    count = len(refusals.steps_of(request, pipeline))
    data = "phantoms" if request.settings.data.source == "phantom" else "MIMIC-CXR"
    name = Path(request.profile.name).stem
    if request.profile.executor == "slurm":
        where = "would submit to Slurm" if request.dry_run else "submitting to Slurm"
    else:
        where = "would run on this machine" if request.dry_run else "running on this machine"
    return f"{name} profile: {where}, {count} step{'s' * (count != 1)}, {data}, run {request.folder}"


def _warnings(request: Request) -> Iterator[str]:
    """Likely mistakes: a forgotten profile, or a typo in a run's name."""
    if not request.profile_named and slurm.installed():
        yield "no profile is named (profile=NAME or LUMEN_PROFILE), so nothing goes to this machine's Slurm"
    if request.recorded_settings is None:
        normalized_name, run_names = _normalize(request.run), run_record.runs_in(request.folder.parent)
        if similar_names := [name for name in run_names if name != request.run and _normalize(name) == normalized_name]:
            yield f"{request.run} is a new run; {', '.join(similar_names)} is another, which exists"


def _normalize(name: str) -> str:
    """A run's name without what is easily mistyped."""
    return "".join(character for character in name.casefold() if character.isalnum())


def _take_recorded_settings(request: Request) -> None:
    """A stage on request takes its run as it is recorded, but for the settings of its own section."""
    if request.recorded_settings is None:
        if not request.settings.serve.weights:
            existing_run(request)
        return
    for key, old, _ in run_record.differences(request.recorded_settings, config_file.as_dict(request.settings)):
        if any(word == key or word.startswith(f"{key}.") for word in request.setting_keys):
            raise UserError(
                f"{key}: stage={request.stage} takes run {request.run} as it is ({key}={old}); "
                "only serve.… can be given"
            )
    server_settings = request.settings.serve
    request.settings = existing_run(request).settings
    request.settings.serve = server_settings


def _run_locally(request: Request, pipeline: Pipeline, run: Run) -> int:
    from lumen_hpc.cluster import local
    from lumen_hpc.report import terminal

    live.require_no_jobs(run)
    lock.require_free(run.folder)  # before what it has not finished yet looks like a stage that is missing
    console = _console()
    plans, _ = submission.make_plans(request, pipeline.stages, run)
    ready.refuse(refusals.unready(request, plans))
    with submission.writing(run), _address_announcement(run, request.stage), submission.terminations_as_interrupts():
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
def _address_announcement(run: Run, stage: str) -> Iterator[None]:
    """While a server starts on this machine, waits for its address and prints it."""
    if stage != "serve":
        yield
        return
    from lumen_hpc.cluster.status import server

    finished = threading.Event()

    def announce() -> None:
        while not finished.wait(0.5):
            if lines := server(run):
                print(*lines, "Ctrl-C ends it", sep="\n", flush=True)
                return

    thread = threading.Thread(target=announce, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _print_jobs(jobs: list[live.JobRecord]) -> None:
    """One line per step: its job, its standby successors, and the gate that its readers wait for."""
    for first in jobs:
        if first["link"] or first.get("gate"):
            continue
        array_jobs = [job for job in jobs if (job["step"], job["packs"]) == (first["step"], first["packs"])]
        successors = [job["id"] for job in array_jobs if job["link"]]
        suffix = f"; successors {', '.join(successors)}" if successors else ""
        suffix += "".join(f"; gate {job['id']}" for job in array_jobs if job.get("gate"))
        print(f"{first['step']:<16} job {first['id']}, {len(first['packs'])} task(s){suffix}")


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
    results = [*refusals.of_settings(request, pipeline), *preflight.check_all(submission.open_run(request), stages)]
    if request.json:
        print(json.dumps([dataclasses.asdict(item) for item in results]))
    else:
        for item in results:
            print(f"{item.level:<5}{item.message}" + (f"\n     fix: {item.fix}" if item.fix else ""))
    return 2 if any(item.level == "bad" for item in results) else 0


def status(request: Request, pipeline: Pipeline) -> int:
    """Prints where a run, or one stage of it, stands; 1 if a step of it has failed."""
    from lumen_hpc.cluster import status as run_status
    from lumen_hpc.cluster import status_table

    if request.watch and request.json:
        raise UserError("watch=true and json=true: one of the two")
    run = existing_run(request)
    owner, queue_known = user_name(run.folder.stat().st_uid), True
    if request.watch:
        run = dataclasses.replace(run, verified_lines={})

        def query() -> list[StepStatus]:
            return _of_stage(run, pipeline, request.stage, run_status.read(run, pipeline.stages, request.stage))

        step_statuses = status_table.watch(run, query, _console())
    else:
        step_statuses, queue_known = _known_status(run, pipeline, request.stage)
    if request.json:
        steps = [dataclasses.asdict(item) for item in step_statuses]
        print(json.dumps({"run": str(run.folder), "owner": owner, "queue_known": queue_known, "steps": steps}))
    elif not request.watch:
        status_table.show(run, step_statuses, _console())
        if run.folder.stat().st_uid != os.getuid():
            print(f"the jobs of this run are {owner}'s: only {owner} can go on with it or cancel them")
    return int(any(item.state in ("failed", "stuck") for item in step_statuses))


def _known_status(run: Run, pipeline: Pipeline, stage: str) -> tuple[list[StepStatus], bool]:
    """The status of a run, or of one stage, by the files alone where the queue is unknown, and whether it is known."""
    from lumen_hpc.cluster import status as run_status

    try:
        step_statuses, queue_known = run_status.read(run, pipeline.stages, stage), True
    except slurm.Unreachable as error:
        print(f"lumen: {error}; the queue is unknown: this is what the files say", file=sys.stderr)
        step_statuses, queue_known = run_status.read_files(run, pipeline.stages, stage), False
    return _of_stage(run, pipeline, stage, step_statuses), queue_known


def _of_stage(run: Run, pipeline: Pipeline, stage: str, step_statuses: list[StepStatus]) -> list[StepStatus]:
    """Those of one stage; all where none is named."""
    names = _step_names(run, pipeline, stage) if stage else {item.step for item in step_statuses}
    return [item for item in step_statuses if item.step in names]


def cancel(request: Request, pipeline: Pipeline) -> int:
    """Cancels a run's queued and running jobs, or one stage's with what waits for it; finished shards stay."""
    run = existing_run(request)
    if (owner := run.folder.stat().st_uid) not in (os.getuid(), 0):  # its plan.json could name jobs of other runs
        raise UserError(f"{run.folder}: the jobs of this run are {user_name(owner)}'s, who alone can cancel them")
    if run.profile.executor == "local":
        raise UserError(f"run {request.run} has no jobs: it runs on this machine, and Ctrl-C where it runs ends it")
    step_names = _with_dependants(run, pipeline, request.stage)
    live.require_known_queue(run)
    if not request.dry_run:
        lock.require_free(run.folder)  # before the queue is asked: what is submitted meanwhile would stay
    records = live.submissions(run.folder)
    queued_jobs = live.queue(run)
    live_jobs = [job for _, job, _ in live.in_queue(records, queued_jobs)]
    ids = [job["id"] for job in live_jobs if step_names is None or job["step"] in step_names]
    ids += live.unrecorded_ids(run, queued_jobs) if step_names is None else []
    target = f"run {request.run}" + (f", stage={request.stage}" if request.stage else "")
    if request.dry_run:
        for job in live_jobs:
            if job["id"] in ids:
                print(f"{job['step']:<16} job {job['id']}")
        print(f"would cancel {len(ids)} job(s) of {target}; nothing was cancelled")
        return 0
    remaining_ids = slurm.cancel(ids[::-1])  # gates and dependants first, so that nothing starts in between
    print(f"cancelled {len(ids) - len(remaining_ids)} job(s) of {target}; what is finished stays")
    if step_names is not None and (
        dependants := sorted(
            {job["step"] for job in live_jobs} & (step_names - _step_names(run, pipeline, request.stage))
        )
    ):
        print(f"among them, because they wait for it: {', '.join(dependants)}")
    if remaining_ids:
        print(f"lumen: not cancelled, still in the queue: {', '.join(remaining_ids)}", file=sys.stderr)
        return 1
    if step_names is None:
        try:
            live.mark_cancelled(records)
        except OSError as error:  # a disk that is full or read-only may be why it is cancelled
            print(f"lumen: {run.folder}: the end of its jobs cannot be noted there: {error.strerror}", file=sys.stderr)
    return 0


def _step_names(run: Run, pipeline: Pipeline, stage: str) -> set[str]:
    """The steps that `stage=NAME` means."""
    everything = graph.steps(pipeline.stages, run.settings, stage)
    return {step.name for step in graph.select(everything, pipeline.stages, stage)}


def _with_dependants(run: Run, pipeline: Pipeline, stage: str) -> set[str] | None:
    """The steps that `stage=NAME` means and all that wait for them; None, which is everything, for the whole run."""
    if stage in ("", "full"):
        return None
    step_names = _step_names(run, pipeline, stage)
    for step in graph.steps(pipeline.stages, run.settings, stage):
        if step_names & set(step.after):
            step_names.add(step.name)
    return step_names


def logs(request: Request, pipeline: Pipeline) -> int:
    """Prints the end of the log that matters now, of one stage with stage=NAME, and where the others are."""
    from lumen_hpc.cluster import logs as run_logs

    run = existing_run(request)
    for line in run_logs.lines(run.folder, _known_status(run, pipeline, request.stage)[0]):
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


def existing_run(request: Request) -> Run:
    """The named run, with the settings of its last submission; UserError if there is none."""
    run = submission.open_run(request)
    path = run_record.settings_file(run.folder)
    if path is None:
        ready.refuse(ready.unset_variables(request.profile, request.runs, only="profile.runs"))
        where = f"{run.folder / 'config.yaml'}{refusals.profile_hint(request)}"
        raise UserError(f"run={request.run}: there is no {where}; {run_record.runs_hint(run.folder)}")
    run = Run(run.folder, *config_file.load(path))
    run.keep_private()
    return run


def ask(request: Request, pipeline: Pipeline) -> int:
    """Answers one question about one or two images with a run's model, on this machine."""
    from lumen_hpc.cluster import run_model

    return run_model.ask(
        request, submission.open_run(request) if request.settings.serve.weights else existing_run(request)
    )


def print_help(usage: str, verb: str = "") -> None:
    """Prints the usage, then every option, setting and profile key with its default and meaning; a verb's own alone."""
    from rich.table import Table

    console = _console()
    console.print(usage)
    table = Table("key", "default", "meaning", box=None, pad_edge=False)
    for key, default, text in reference.documentation(verb):
        table.add_row(key, default, text)
    console.print(table)
    if verb:
        console.print("every setting: python launch.py --help")


def _console() -> Console:
    """The console for tables. rich is imported only here: it would cost a submission a fifth of its time."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
    if console.width < MIN_WIDTH:  # its lines wrap, which can still be read
        console.width = MIN_WIDTH
    return console
