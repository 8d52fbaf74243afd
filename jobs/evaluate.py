"""Section 3: metrics, tests and intervals; tables 1 and 2; the page.

Reads every earlier stage's output and writes report/index.html, report/tables.{md,csv,tex} and report/figures/.
A demo that fails a gate still writes its report, and then fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import accounting, manifest
from lumen_hpc.cluster.stage import Run, Shard, Stage, Task
from lumen_hpc.config.schema import Settings
from lumen_hpc.data.table_files import ENTITIES
from lumen_hpc.errors import UserError
from lumen_hpc.files import read_json
from lumen_hpc.models import models_trained_on, repeats

STAGE = Stage(
    name="evaluate",
    paper="3",
    about="tables, tests, figures and the report",
    resources="cpu",
    settings=("seed", "evaluate", "predict.models"),
    after=("prepare", "outcomes", "experts", "rewrite", "instruct", "train-*", "predict-*", "prognose-*", "judge-*"),
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row with the digest of each file of the report; raises GateFailed after the last of them."""
    from lumen_hpc.report import assemble, criteria

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        settings = task.settings
        folder = task.run.folder / "report"
        show_images = not task.run.restricted if settings.evaluate.images is None else settings.evaluate.images
        evaluate_settings, report_inputs = replace(settings.evaluate, images=show_images), inputs(task)
        outcome_files: list[Path] = []
        if settings.instruct.outcomes:  # its page shows no image
            outcome_files, report_inputs.criteria = outcomes(task, folder, report_inputs.identity.banner)
        if task.run.restricted and show_images:
            report_inputs.identity = replace(report_inputs.identity, shows_patients=True)
        files, gates = assemble.report(report_inputs, evaluate_settings, settings.seed, folder)
        files += outcome_files
        if task.run.restricted:
            for path in files:
                path.chmod(0o600)
        for path in files:
            yield task.artefact(path)
        if gates:
            criteria.require(gates)

    return process


def outcomes(task: Task, folder: Path, banner: Sequence[str]) -> tuple[list[Path], list[Any]]:
    """Writes the page on outcomes under a banner; returns its files and the gates with their results."""
    from lumen_hpc.data.records import read_jsonl
    from lumen_hpc.outcomes import evaluation
    from lumen_hpc.outcomes.questions import TEST
    from lumen_hpc.report import images_left_out, outcomes_page
    from lumen_hpc.report.outcome_criteria import outcome_criteria

    run, settings = task.run, task.settings
    prepare_folder, outcomes_folder = run.path("prepare"), run.path("outcomes")
    tables = evaluation.evaluate(
        outcomes_folder,
        prepare_folder / "studies.jsonl",
        run.rows("experts"),
        {model: run.rows("prognose", model) for model in models_trained_on("outcome", settings.predict.models)},
        settings.instruct.outcomes,
        resamples=settings.evaluate.bootstrap,
        seed=settings.seed,
        confidence=settings.evaluate.confidence,
        oracles=evaluation.oracles(
            prepare_folder / "phantom" / "truth.jsonl", outcomes_folder, settings.data.phantom.effect
        )
        if settings.data.source == "phantom"
        else None,
    )
    answers = {
        model: list(run.rows("prognose", model)) for model in models_trained_on("timeline", settings.predict.models)
    }
    scores = evaluation.timeline_scores(
        read_jsonl(run.path("instruct") / TEST),
        answers,
        resamples=settings.evaluate.bootstrap,
        seed=settings.seed,
        confidence=settings.evaluate.confidence,
    )
    rows = [row for of_model in answers.values() for row in of_model]
    total = len({row["question_id"] for row in rows if not row.get("control")})
    notes = [*banner, *images_left_out.note(rows, total=total)]
    counts = read_json(outcomes_folder / "counts.json", {})
    files = outcomes_page.write(folder, tables, counts, settings, _run_facts(run), scores, notes)
    has_gates = "icu_48h" in tables and settings.evaluate.outcome_gates
    gates = [gate for model in answers for gate in outcome_criteria(tables["icu_48h"], model)] if has_gates else []
    return files, gates


def inputs(task: Task) -> Any:
    """The report's inputs from a run's folder; a step that the run skips is absent, not empty."""
    from lumen_hpc.data.findings_line import read_findings
    from lumen_hpc.data.records import read_jsonl
    from lumen_hpc.report.assemble import Inputs
    from lumen_hpc.report.costs import StepLogs, job_ids
    from lumen_hpc.report.identity import exposure, identify

    run, settings = task.run, task.settings
    models = settings.predict.models
    prepare_folder = run.path("prepare")
    diff_vqa = run.diff_vqa
    has_findings = (diff_vqa / ENTITIES).exists()
    steps = {
        path.name: StepLogs.open(path, manifest.read)
        for path in sorted(run.folder.iterdir())
        if (path / manifest.NAME).exists() and path.name != STAGE.name
    }
    counts = read_json(prepare_folder / "counts.json", {})
    return Inputs(
        records=read_jsonl(run.path("instruct") / "lumen-test.jsonl"),
        answers={model: run.rows("predict", model) for model in models},
        repeats={model: run.rows("predict", model) for model in repeats(models, settings.train.seeds)},
        scores={model: run.rows("judge", model) for model in models if run.path("judge", model).exists()},
        studies=read_jsonl(prepare_folder / "studies.jsonl"),
        rewrites=run.rows("rewrite"),
        counts=counts,
        training={
            model: read_jsonl(file) for model in models if (file := run.path("train", model) / "metrics.jsonl").exists()
        },
        steps=steps,
        slurm_usage=accounting.usage(jobs) if (jobs := job_ids(steps)) else None,
        image=read_grey_levels,
        findings=read_findings(diff_vqa) if has_findings else {},
        training_meta=_training_meta(run),
        experts={str(row["study_id"]): row for row in run.rows("experts")},
        identity=identify(settings, counts),
        exposure=exposure(settings),
        truth=prepare_folder / "phantom" / "truth.jsonl" if settings.data.source == "phantom" else None,
        settings=_changed_settings(settings, run.restricted),
        run=_run_facts(run),
    )


def _training_meta(run: Run) -> Iterator[dict[str, Any]]:
    """The `meta` of the training records, one pass over the file; none if there is no such file."""
    from lumen_hpc.data.records import read_jsonl

    path = run.path("instruct") / "lumen-train.jsonl"
    if path.exists():
        yield from (record["meta"] for record in read_jsonl(path))


def read_grey_levels(path: str) -> Any:
    """Grey levels of an image file, uint8 [H, W]; None, and counted on the page, if it cannot be read."""
    from lumen_hpc.data.images import grey_levels

    try:
        return grey_levels(path)
    except UserError:
        return None


def _run_facts(run: Run) -> dict[str, str]:
    """The run as the page shows it: its name and data, and the last submission's code and packages."""
    submissions = read_json(run.folder / "provenance.json", [{}])
    last = submissions[-1]
    packages = ", ".join(f"{name} {version}" for name, version in last.get("packages", {}).items())
    submission_facts = {key: str(last[key]) for key in ("submitted", "git_commit", "code", "python") if last.get(key)}
    facts = {"name": run.folder.name, "data": run.settings.data.source, "seed": str(run.settings.seed)}
    return facts | submission_facts | ({"packages": packages} if packages else {})


def _changed_settings(settings: Settings, restricted: bool) -> dict[str, str]:
    """Settings that differ from their defaults, by dotted key; of restricted data, without paths."""
    changed: dict[str, str] = {}

    def collect(values: Any, defaults: Any, key: str) -> None:
        for name, value in values.items():
            default = defaults.get(name) if isinstance(defaults, dict) else None
            if isinstance(value, dict) and value:
                collect(value, default, f"{key}{name}.")
            elif value != default and not (restricted and "/" in str(value)):
                changed[key + name] = str(value)

    collect(asdict(settings), asdict(Settings()), "")
    return changed
