"""`python launch.py compare runs=a,b`: settings that differ, tables side by side, intervals of the differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lumen_hpc.cluster import graph, manifest, plan, submit
from lumen_hpc.cluster.changes import shorten
from lumen_hpc.cluster.stage import Run, Stage
from lumen_hpc.config import config_file, run_record
from lumen_hpc.config.schema import Settings
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.errors import UserError
from lumen_hpc.plain_text import visible
from lumen_hpc.report import run_comparison
from lumen_hpc.report.run_comparison import Differences, Place, RunResults


def open_runs(names: list[str], top: Path) -> list[Run]:
    """The runs of these names in `top`, or of these paths; UserError for one that is not there or not evaluated."""
    if len(names) < 2:
        raise UserError("compare takes two runs or more: compare runs=FIRST,OTHER")
    folders = [Path(name).expanduser().absolute() if "/" in name else top / name for name in names]
    if duplicate := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(f"compare: run {duplicate.name} is named twice; compare runs=FIRST,OTHER takes different ones")
    runs = []
    for folder in folders:
        run_record.require_open(folder)
        path = run_record.settings_file(folder)
        if path is None:
            run_names = ", ".join(run_record.runs_in(folder.parent)) or "(none)"
            raise UserError(f"compare: there is no run {folder}; the runs in {folder.parent} are {run_names}")
        submit.require_layout(folder)
        run = Run(folder, *config_file.load(path))
        if not (folder / "report" / "tables.csv").is_file():
            raise UserError(
                f"compare: run {folder.name} has no report yet: python launch.py stage=full {run.arguments}"
            )
        if not (folder / "instruct" / "lumen-test.jsonl").is_file():
            raise UserError(f"compare: {folder}: no test records; run its stage instruct first")
        runs.append(run)
    return runs


def stale(runs: list[Run], stages: Sequence[Stage]) -> Iterator[str]:
    """A line for each run whose report is not of its settings and answers as they are now."""
    for run in runs:
        everything = graph.steps(stages, run.settings)
        step = next(step for step in everything if step.stage.name == "evaluate")
        if plan.missing_shards(run, step, everything):
            yield (
                f"{_label(run, runs)}: its tables are not those of its present settings and answers, or missed their "
                f"gates: python launch.py status {run.arguments}"
            )


def _label(run: Run, runs: list[Run]) -> str:
    """What a run is called beside the others."""
    names = [other.folder.name for other in runs]
    return visible(run.folder.name if names.count(run.folder.name) == 1 else str(run.folder))


def show(runs: list[Run], console: Console) -> None:
    """Prints the comparison of the other runs with the first."""
    console.print(_settings(runs))
    results = [read(run, _label(run, runs)) for run in runs]
    tables = [run_comparison.values(result) for result in results]
    places = [place for place in tables[0] if any(place in table for table in tables[1:])]
    differences = [
        run_comparison.differences(results[0], other, places, runs[0].settings.evaluate) for other in results[1:]
    ]
    for line in _notes(results, differences, runs[0].settings.evaluate.confidence):
        console.print(line, soft_wrap=True)
    for block in dict.fromkeys(block for block, *_ in places):
        of_block = [place for place in places if place[0] == block]
        console.print(_table(block, of_block, results, tables, differences))


def _settings(runs: list[Run]) -> Table:
    names = [_label(run, runs) for run in runs]
    table = Table("settings that differ", *names, box=None, pad_edge=False)
    plain_settings = [config_file.as_dict(run.settings) for run in runs]
    keys = {
        key: old for other in plain_settings[1:] for key, old, _ in run_record.differences(plain_settings[0], other)
    }
    for key, first in keys.items():
        others = [run_record.value_at(run.settings, key, None) for run in runs[1:]]
        table.add_row(visible(key), shorten(first), *map(shorten, others))
    if not keys:
        table.add_row("(none)")
    return table


def read(run: Run, label: str) -> RunResults:
    """A run's test questions, answers and scores; UserError where a file is not what its manifest records."""
    models = list(run.settings.predict.models)
    judged = [model for model in models if run.path("judge", model).is_dir()]
    predicted = [run.path("predict", model) for model in models]
    steps = (run.path("instruct"), *predicted, *(run.path("judge", model) for model in judged), run.path("evaluate"))
    for folder in steps:
        for line in manifest.latest(folder).values():
            manifest.require_verified(folder, line)
    records = read_jsonl(run.path("instruct") / "lumen-test.jsonl")
    dataset = _dataset(run.settings)
    return RunResults(
        label,
        {
            record["meta"]["question_id"]: {**record["meta"], "images": record["images"], "dataset": dataset}
            for record in records
        },
        [row for model in models for row in run.rows("predict", model) if not row.get("control")],
        [row for model in judged for row in run.rows("judge", model) if not row.get("canary")],
        run.folder / "report" / "tables.csv",
        models,
    )


def _dataset(settings: Settings) -> tuple:
    """What decides which patients the ids of a run name: those of phantoms are other patients in other settings."""
    data = settings.data
    phantoms = (settings.seed, data.phantom.size, data.phantom.studies) if data.source == "phantom" else ()
    return data.source, *phantoms


def _notes(results: list[RunResults], differences: list[Differences], confidence: float) -> Iterator[str]:
    first = results[0]
    for other, gap in zip(results[1:], differences, strict=True):
        if not set(first.models) & set(other.models):
            models = (f"{visible(', '.join(run.models))} of {run.name}" for run in (first, other))
            yield (
                f"no model in common: {', '.join(models)}; python -m lumen_hpc.metrics {first.name}/predict-* "
                f"{other.name}/predict-* {first.name}/instruct/lumen-test.jsonl scores them on the same questions"
            )
            continue
        yield (
            f"{other.name} and {first.name}: {gap.shared} questions in common, of {len(other.questions)} and "
            f"{len(first.questions)}"
            + ("" if gap.shared else "; without any, differences have no interval: their values are of other questions")
        )
    values = "values are those of each run's own report"
    if any(gap.intervals for gap in differences):
        values += (
            f"; in brackets the {confidence:.0%} interval over patients of the difference from {first.name} on the "
            "questions in common, * where it excludes 0"
        )
    yield values


def _table(
    block: str,
    places: list[Place],
    results: list[RunResults],
    tables: list[dict[Place, float]],
    differences: list[Differences],
) -> Table:
    table = Table("measure", "model", title=visible(block), title_justify="left", box=None, pad_edge=False)
    for result in results:
        table.add_column(result.name, justify="left")
    for place in sorted(places, key=lambda place: places.index(next(p for p in places if p[2] == place[2]))):
        cells = [f"{tables[0][place]:.3f}"]
        for values, gap in zip(tables[1:], differences, strict=True):
            cells.append(_cell(values.get(place), gap, place))
        table.add_row(visible(place[1].replace("_", " ")), place[2], *cells)
    return table


def _cell(value: float | None, gap: Differences, place: Place) -> str:
    if value is None:
        return "–"
    interval = gap.intervals.get(place)
    if interval is None or interval.value is None or interval.low is None or interval.high is None:
        return f"{value:.3f}"
    star = "" if interval.low <= 0 <= interval.high else " *"
    return f"{value:.3f}  {interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]{star}"
