"""Two runs' measures side by side, with the interval of their difference where both answered the same questions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.errors import UserError
from lumen_hpc.files import read_bytes
from lumen_hpc.metrics.significance import Interval
from lumen_hpc.report.results import Results, scale_of

QUESTION_FIELDS = ("question", "short_answer", "long_answer", "type", "dataset")
"""Fields in which a question must be the same in both runs, so that its answers may be compared."""
Place = tuple[str, str, str]
"""Block, measure, model."""


@dataclass(frozen=True)
class RunResults:
    """What a comparison reads of a run."""

    name: str
    questions: Mapping[str, Mapping[str, Any]]
    """`meta` of the test records, by question id, with `images` and `dataset`: which patients its ids name."""
    answers: Sequence[Mapping[str, Any]]
    """Answer rows of all its models, without controls."""
    scores: Sequence[Mapping[str, Any]]
    """Score rows of all its models, without canaries."""
    tables: Path
    """Its report/tables.csv."""
    models: Sequence[str]


@dataclass(frozen=True)
class Differences:
    """`other` minus `first`."""

    shared: int
    """Questions that both runs asked in the same words, with the same reference, and answered by every model."""
    intervals: dict[Place, Interval] = field(default_factory=dict)


def values(run: RunResults) -> dict[Place, float]:
    """The values of a run's own tables. Raises UserError for a file that holds none."""
    rows = csv.DictReader(io.StringIO(read_bytes(run.tables).decode(errors="replace"), newline=""))
    try:
        return {
            (row["block"], row["measure"], row["model"]): float(row["value"])
            for row in rows
            if row["value"] and row["model"] in run.models
        }
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{run.tables}: not the table of a report; run its stage evaluate again") from None


def differences(first: RunResults, other: RunResults, places: Iterable[Place], settings: Evaluate) -> Differences:
    """Intervals over patients, drawn for both runs alike; none where no question is shared."""
    shared = {
        id_: row
        for id_, row in first.questions.items()
        if (other_question := other.questions.get(id_))
        and all(row.get(key) == other_question.get(key) for key in QUESTION_FIELDS)
    }
    models = [model for model in first.models if model in other.models]
    if not shared or not models:
        return Differences(0)
    model_names = [f"{side}/{model}" for side in ("first", "other") for model in models]
    try:
        results = Results(
            [dict(row) for row in shared.values()],
            _with_side(first.answers, "first", shared) + _with_side(other.answers, "other", shared),
            _with_side(_first_judge_rows(first.scores), "first", shared)
            + _with_side(_first_judge_rows(other.scores), "other", shared),
            settings,
            0,
            models=model_names,
        )
    except UserError:  # no question that every model of both has answered
        return Differences(0)
    intervals = {}
    for block, measure, model in places:
        pair = f"other/{model}", f"first/{model}"
        if model in models and all(measure in results.samples[name].columns for name in pair):
            other_column, first_column = (results.column(measure, name) for name in pair)
            intervals[block, measure, model] = results.bootstrap.difference(
                other_column, first_column, results.where(block), scale_of(measure)
            )
    return Differences(len(results.questions), intervals)


def _first_judge_rows(scores: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the run's first judge, which its tables show; a second one may be the other run's first."""
    return [row for row in scores if row.get("judge") == scores[0].get("judge")]


def _with_side(rows: Sequence[Mapping[str, Any]], side: str, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows about shared questions, with the run in the model's name."""
    return [{**row, "model": f"{side}/{row['model']}"} for row in rows if row["question_id"] in shared]
