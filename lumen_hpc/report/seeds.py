"""The spread between trainings of the same model with other seeds (`train.seeds`): what the intervals do not hold.

An interval over patients says how the numbers of this one training would move on other patients. How far another
training with the same recipe would land is another question, which only further trainings answer.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lumen_hpc.metrics.join import answer_text
from lumen_hpc.metrics.significance import Column
from lumen_hpc.models import compared_model, training_number
from lumen_hpc.report import composed
from lumen_hpc.report.identity import COMPOSED
from lumen_hpc.report.results import Results
from lumen_hpc.report.tables import markdown_row

MEASURES = {
    "difference": ("bleu4", "rouge_l", "change_f1"),
    "prediction": ("bleu4", "rouge_l", "change_f1"),
    "diagnostic": ("accuracy_polarity", "finding_f1", "rouge_l"),
}


@dataclass(frozen=True)
class Spread:
    """One measure of one model over its trainings."""

    model: str
    block: str
    measure: str
    by_training: Mapping[int, float]
    """Number of a training (0: the run's own) → its value; without those that have none."""

    @property
    def values(self) -> list[float]:
        return list(self.by_training.values())

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation of a training, n - 1 in the denominator."""
        return stdev(self.values)


def spreads(results: Results, repeats: Mapping[str, Sequence[dict]]) -> list[Spread]:
    """Every headline measure of the models that were trained several times, and of their composed baselines.

    `repeats`: further training (`lumen@1`) → its answer rows; all on the questions of `results`.
    """
    columns: dict[str, dict[int, dict[str, Column]]] = {}
    for name, rows in repeats.items():
        model, training = compared_model(name).name, training_number(name)
        answers = {row["question_id"]: answer_text(row) for row in rows if not row.get("control")}
        columns.setdefault(model, {})[training] = results.score(answers).columns
        if texts := composed.answers(rows, results.reader):
            columns.setdefault(model + COMPOSED, {})[training] = results.score(texts).columns
    result = []
    for model in (model for model in results.models() if model in columns):
        for block, measures in MEASURES.items():
            where = results.where(block)
            for measure in measures:
                trainings = {0: results.column(measure, model)}
                trainings |= {k: scored[measure] for k, scored in columns[model].items() if measure in scored}
                values = {k: value for k, column in trainings.items() if (value := column.mean(where)) is not None}
                if len(values) > 1:
                    result.append(Spread(model, block, measure, values))
    return result


def markdown(measure_spreads: Sequence[Spread], labels: Mapping[str, str]) -> str:
    """The spreads as a table; empty where no model was trained twice."""
    if not measure_spreads:
        return ""
    header = ("model", "questions", "measure", "trainings", "mean", "standard deviation", "lowest", "highest")
    lines = ["## Between trainings", "", markdown_row(header), markdown_row(["---"] * len(header))]
    for spread in measure_spreads:
        numbers = (spread.mean, spread.deviation, min(spread.values), max(spread.values))
        cells = [labels.get(spread.model, spread.model), spread.block, spread.measure, str(len(spread.values))]
        lines.append(markdown_row([*cells, *(f"{number:.3f}" for number in numbers)]))
    return "\n".join(lines)


def comma_separated(measure_spreads: Sequence[Spread]) -> str:
    """One line per measure and training."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "block", "measure", "training", "value"])
    for spread in measure_spreads:
        writer.writerows([spread.model, spread.block, spread.measure, *item] for item in spread.by_training.items())
    return stream.getvalue()
