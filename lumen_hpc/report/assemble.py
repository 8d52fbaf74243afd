"""From a run's rows to its report: index.html, tables.{md,csv,tex}, controls.md, gates.json, samples, figures/."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.files import atomic
from lumen_hpc.language.judge import agreement
from lumen_hpc.plain_text import visible
from lumen_hpc.report import (
    baselines,
    budgets,
    cases,
    ceilings,
    composed,
    costs,
    findings,
    images_left_out,
    language_checks,
    page,
    seeds,
    slices,
    tables,
)
from lumen_hpc.report.case_figure import case_figure
from lumen_hpc.report.comparison import comparison
from lumen_hpc.report.controls import controls
from lumen_hpc.report.controls import markdown as controls_markdown
from lumen_hpc.report.criteria import Criterion, phantom_criteria
from lumen_hpc.report.identity import COMPOSED, Identity
from lumen_hpc.report.results import Results, questions
from lumen_hpc.report.self_check import self_check

Rows = Iterable[dict]


@dataclass(kw_only=True)
class Inputs:
    """The inputs of a report; where one is missing, its section is empty and says so."""

    records: Rows
    """Test records (instruct/lumen-test.jsonl)."""
    answers: Mapping[str, Rows]
    """Model → its answer rows, with those of controls (they carry `control`)."""
    repeats: Mapping[str, Rows] = field(default_factory=dict)
    """Further training of a model (`lumen@1`) → its answer rows."""
    scores: Mapping[str, Rows] = field(default_factory=dict)
    """Model → the judge's rows, with the canaries (they carry `canary`)."""
    studies: Rows = ()
    """Study rows (prepare/studies.jsonl)."""
    rewrites: Rows = ()
    """Rewrite rows of all splits."""
    counts: Mapping = field(default_factory=dict)
    """prepare/counts.json."""
    training: Mapping[str, Rows] = field(default_factory=dict)
    """Model → its metrics.jsonl."""
    steps: Mapping[str, costs.StepLogs] = field(default_factory=dict)
    """Step → the logs of its tasks."""
    slurm_usage: Mapping[str, costs.Usage] | None = None
    """Slurm's usage by job id; None where it keeps no account."""
    image: Callable[[str], np.ndarray | None] = lambda path: None
    """Grey levels of a record's image, uint8 [H, W]; None for one that cannot be shown."""
    findings: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    """study_id → its findings, where known (all_diseases.json): the truth of the pairs that controls compose."""
    truth: Path | None = None
    """The phantoms' truth.jsonl, where the data are phantoms: the oracles and gates read it."""
    training_meta: Iterable[dict] = ()
    """`meta` of training records (instruct/lumen-train.jsonl), which baselines learn from; none leaves those out."""
    experts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """study_id → its expert row (`pathologies`, and `age` and `race` where those experts ran)."""
    identity: Identity = field(default_factory=Identity)
    """The run's own names, and where it departs from the paper."""
    criteria: Sequence[Criterion] = ()
    """Results of the gates that another page's numbers are held to; they join this page's and gates.json."""
    exposure: str = ""
    """What the experts have seen of the test images before."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings that differ from their defaults, by dotted key."""
    run: Mapping[str, str] = field(default_factory=dict)
    """Name, commit, seed, …: shown at the foot of the page."""

    @property
    def pathologies(self) -> dict[str, Mapping[str, float]]:
        """study_id → the experts' calibrated probability of each finding."""
        return {study: row["pathologies"] for study, row in self.experts.items()}


def report(inputs: Inputs, settings: Evaluate, seed: int, folder: Path) -> tuple[list[Path], list[Criterion]]:
    """Writes the report into `folder`; returns its files and the gates with their results.

    Raises UserError where a model has no answers or no question was answered by every model.
    """
    measurements = _Measurements(inputs, replace(settings, images=settings.images is not False), seed)
    content = measurements.content()
    files = _write(folder, content)
    files.append(folder / "samples.jsonl")
    write_jsonl(files[-1], measurements.results.rows())
    return files, list(content.gates)


class _Measurements:
    """Measurements that several sections of the report share; the arguments are those of `report`."""

    def __init__(self, inputs: Inputs, settings: Evaluate, seed: int) -> None:
        self.inputs, self.settings, self.seed = inputs, settings, seed
        test_questions = questions(inputs.records)
        self.question_count = len(test_questions)
        self.scores = _judge_rows(inputs.scores, test_questions)
        self.answers = _Answers(inputs.answers)
        self.results = Results(
            test_questions,
            self.answers.plain(),
            (row | {"model": model} for model, rows in self.scores.items() for row in rows if not row.get("canary")),
            settings,
            seed,
            models=list(inputs.answers),
            identity=inputs.identity,
        )
        references = [row.get("long_answer") or "" for row in self.results.questions]
        self.self_check = self_check(self.results.joined.answers, references, settings.self_check, seed)
        self.training_meta = baselines.narrow(inputs.training_meta) if settings.baselines or settings.gates else []
        _add_baselines(self.results, inputs, self.training_meta, self.answers.control_answers)
        self.controls = controls(self.results, self.answers.control_answers, inputs.findings)
        self.oracles = ceilings.oracles(self.results, inputs.truth) if inputs.truth else {}
        self.ceilings = ceilings.scores(self.results, self.oracles)
        self.comparison = comparison(self.results, self.ceilings.pop(ceilings.TWO_READINGS, None))
        self.training = {model: list(rows) for model, rows in inputs.training.items()}
        self.budgets = budgets.budgets(self.training)
        self.language = _language_checks(self.scores, inputs.rewrites, bool(settings.images))
        self.tables = tables.tables(self.results)
        self.studies = list(inputs.studies)
        self.slices = slices.slices(self.results, self.studies, inputs.experts)
        self.slices += slices.experts(self.results, self.answers.control_answers)

    def content(self) -> page.Content:
        """Everything that the page shows."""
        inputs, results, settings = self.inputs, self.results, self.settings
        return page.Content(
            tables=self.tables,
            seeds=seeds.spreads(results, {name: list(rows) for name, rows in inputs.repeats.items()}),
            notes=self.notes(),
            identity=inputs.identity,
            labels=results.labels(),
            self_check=str(self.self_check),
            comparison=str(self.comparison) if self.comparison else "",
            exposure=inputs.exposure,
            budgets=self.budgets,
            figures=self.figures(),
            gates=self.gates(),
            ceilings=self.ceilings,
            controls=self.controls,
            slices=self.slices,
            **self.language,
            costs=costs.costs(inputs.steps, inputs.slurm_usage),
            accounted=inputs.slurm_usage is not None,
            counts=inputs.counts,
            detections=findings.detections(results, least=1 if settings.images else settings.small),
            confusions=findings.confusions(results),
            cases=cases.cases(results, inputs.image, settings, self.seed, self.studies),
            small=settings.small,
            settings=inputs.settings,
            problems=results.problems.lines(),
            run=inputs.run,
            restricted=not settings.images,
        )

    def gates(self) -> list[Criterion]:
        """The gates of phantoms, where the settings ask for them, and those of other pages."""
        if not self.settings.gates:
            return list(self.inputs.criteria)
        undecided = ceilings.undecided(self.results, self.inputs.truth) if self.inputs.truth else None
        phantom_gates = phantom_criteria(self.results, self.controls, self.oracles, undecided, self.training_meta)
        return [*phantom_gates, *self.inputs.criteria]

    def notes(self) -> list[str]:
        """The lines under the tables; what a reader must know before any number comes first."""
        identity = self.inputs.identity
        return [
            *identity.banner,
            *self.language["unfit"],
            *([str(self.comparison)] if self.comparison else []),
            *tables.notes(self.results),
            *tables.permutation_notes(self.tables, self.settings),
            *images_left_out.note(self.answers.fewer_images, self.question_count),
            str(self.self_check),
            *budgets.notes(self.budgets, self.results.labels(), self.results.principal),
            *(f"Departs from the paper: {line}" for line in identity.deviations),
        ]

    def figures(self) -> dict[str, str]:
        """Name → SVG."""
        canaries, acceptance = self.language["canaries"], self.language["acceptance"]
        svgs = page.draw_figures(self.tables, self.slices, self.controls, canaries, acceptance, self.training)
        case_svg = case_figure(self.results, self.inputs.image) if self.settings.images else None
        return svgs | ({"figure-1": case_svg} if case_svg else {})


class _Answers:
    """Every model's answer rows, read once: the plain ones are passed on, those of controls are kept."""

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self._rows = rows
        self.control_answers: dict[str, list[dict]] = {model: [] for model in rows}
        """Model → its answers under controls."""
        self.fewer_images: list[dict] = []
        """Answers to questions that were too long to show all their images."""

    def plain(self) -> Iterator[dict]:
        """The answers to the questions as they are."""
        for model, rows in self._rows.items():
            for row in rows:
                if row.get("images_left_out"):
                    self.fewer_images.append(row)
                if row.get("control"):
                    self.control_answers[model].append(row)
                else:
                    yield row | {"model": model}


def _judge_rows(scores: Mapping[str, Rows], test_questions: Iterable[dict]) -> dict[str, list[dict]]:
    """Model → the judge's rows, canaries among them; ids are those of the questions, not copies of them."""
    interned = {row["question_id"]: row["question_id"] for row in test_questions}
    return {model: [_intern(row, interned) for row in rows] for model, rows in scores.items()}


def _add_baselines(
    results: Results,
    inputs: Inputs,
    training_meta: Sequence[Mapping[str, Any]],
    control_answers: Mapping[str, list[dict]],
) -> None:
    """Adds the rows that need no model, and each model's own single-image readings compared by rule."""
    if results.settings.baselines:
        rows = baselines.answers(results.questions, training_meta, inputs.findings, inputs.pathologies)
        for name, texts in rows.items():
            results.add_model(name, texts)
    for model, probes in control_answers.items():
        if texts := composed.answers(probes, results.reader):
            results.add_model(model + COMPOSED, texts)


def _language_checks(scores: Mapping[str, list[dict]], rewrites: Rows, show_texts: bool) -> dict[str, Any]:
    """The page's parts about the language models; `show_texts`: sentences of records may be shown."""
    return {
        "canaries": language_checks.canaries(scores),
        "unfit": language_checks.unfit(scores),
        "agreement": agreement(row for rows in scores.values() for row in rows),
        "acceptance": language_checks.acceptance(rewrites, show_texts),
    }


def _intern(row: dict, interned: dict[str, str]) -> dict:
    """The row with equal ids and names replaced by one object each: many rows share few of them."""
    for key in ("question_id", "model", "judge"):
        if isinstance(row.get(key), str):
            row[key] = interned.setdefault(row[key], row[key])
    return row


def _write(folder: Path, content: page.Content) -> list[Path]:
    """The report's files, each written whole or not at all."""
    files = {
        "index.html": page.render(content),
        "tables.md": tables.markdown(content.tables, content.notes, seeds.markdown(content.seeds, content.labels)),
        "controls.md": controls_markdown(content.controls),
        "tables.csv": tables.comma_separated(content.tables),
        **({"seeds.csv": seeds.comma_separated(content.seeds)} if content.seeds else {}),
        "tables.tex": tables.latex(content.tables),
        "gates.json": json.dumps([vars(gate) | {"passed": gate.passed} for gate in content.gates], indent=2),
        **{f"figures/{name}.svg": svg for name, svg in content.figures.items()},
    }
    for name, text in files.items():
        with atomic(folder / name) as out:
            out.write(visible(text).encode())
    return [folder / name for name in files]
