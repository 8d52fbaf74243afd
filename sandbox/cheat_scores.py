"""Answers of a cheating model, scored by the product's own report, gates and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.report import baselines, ceilings, composed, criteria
from lumen_hpc.report.comparison import comparison
from lumen_hpc.report.controls import controls
from lumen_hpc.report.results import COMPOSED, Results, questions

COLUMNS = (("difference", "change_f1"), ("difference", "rouge_l"), ("prediction", "change_f1"), ("prediction", "bleu4"),
           ("prediction", "rouge_l"), ("prediction", "judge"), ("diagnostic", "recall"), ("diagnostic", "precision"),
           ("diagnostic", "accuracy"), ("diagnostic", "accuracy_polarity"), ("diagnostic", "finding_f1"))  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """One answerer under the report's own eyes."""

    name: str
    values: dict[tuple[str, str], float | None]
    failed: tuple[str, ...]
    """Gates that it fails."""
    shown: tuple[str, ...]
    """What the page says that tells it from a model that learned."""
    gates: int
    """Gates that it was held to."""


def score(
    inputs: Any, settings: Evaluate, seed: int, name: str, answers: Sequence[dict], scores: Sequence[dict]
) -> Scored:
    """The report's numbers, gates and statements with `answers` in the place of the principal model's."""
    answers_by_model = {**inputs.answers, "lumen": answers}
    results = Results(
        questions(inputs.records),
        (row | {"model": model} for model, rows in answers_by_model.items() for row in rows if not row.get("control")),
        scores,
        settings,
        seed,
        models=list(answers_by_model),
        identity=inputs.identity,
    )
    for model, rows in answers_by_model.items():
        if texts := composed.answers(rows, results.reader):
            results.add_model(model + COMPOSED, texts)
    rule = results.cell("difference", "change_f1", "lumen" + COMPOSED).value
    baseline_answers = baselines.answers(results.questions, inputs.training_meta, inputs.findings, inputs.pathologies)
    for model, texts in baseline_answers.items():
        results.add_model(model, texts)
    oracles = ceilings.oracles(results, Path(inputs.truth))
    undecided = ceilings.undecided(results, Path(inputs.truth))
    control_results = controls(results, answers_by_model, inputs.findings)
    checks = criteria.phantom_criteria(results, control_results, oracles, undecided, inputs.training_meta)
    values = {column: results.cell(*column, "lumen").value for column in COLUMNS}
    failed = tuple(gate.name for gate in checks if not gate.passed)
    return Scored(name, values, failed, tuple(_statements(results, values, rule)), len(checks))


def _statements(results: Results, values: dict, rule: float | None) -> list[str]:
    """What the page says of the principal model that a reader holds against it."""
    statements = []
    compared_rows = comparison(results)
    if compared_rows and not compared_rows.shown:
        own = values["difference", "change_f1"]
        statements.append(f"row LUMEN + rule: separate readings reach {rule:.3f}, the model {own:.3f}")
    for name in ("persistence", "question", "prior", "experts+rule"):
        equal_blocks = []
        for block in ("difference", "prediction"):
            cell = results.cell(block, "change_f1", name, tested=True) if name in results.samples else None
            if cell is None or cell.difference is None:
                continue
            gap = cell.difference
            highest = gap.value if gap.high is None else gap.high  # no interval: too few patients, or all are alike
            if highest is not None and highest >= 0:
                equal_blocks.append(f"{block} ({cell.value:.3f})")
        if equal_blocks:
            statements.append(f"row {results.label(name)}: as good at {' and '.join(equal_blocks)}")
    recall, precision = values["diagnostic", "recall"], values["diagnostic", "precision"]
    if recall and precision is not None and precision < 0.5:
        statements.append(f"column Precision: {precision:.3f} beside recall {recall:.3f}")
    return statements
