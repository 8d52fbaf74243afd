"""Tables 1 and 2 in the paper's form, ours beside the published numbers, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from lumen_hpc.metrics.samples import MEASURES as DEFINITIONS
from lumen_hpc.models import MODELS
from lumen_hpc.report.results import COMPOSED, Cell, Results, corrected

PUBLISHED = {
    ("difference", "nvila"): {"bleu4": 0.001, "rouge_l": 0.071, "judge": 2.486},
    ("difference", "ft"): {"bleu4": 0.020, "rouge_l": 0.206, "judge": 3.275},
    ("difference", "lumen"): {"bleu4": 0.375, "rouge_l": 0.656, "judge": 4.611},
    ("prediction", "nvila"): {"bleu4": 0.003, "rouge_l": 0.052, "judge": 2.242},
    ("prediction", "ft"): {"bleu4": 0.019, "rouge_l": 0.167, "judge": 3.177},
    ("prediction", "lumen"): {"bleu4": 0.095, "rouge_l": 0.303, "judge": 4.866},
}
"""Table 1 of arXiv 2602.21142v1. Its Table 2 is not available here, so that column stays empty."""

MEASURES = {
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "judge": "Judge score",
    "judge_expected": "Expected score",
    "recall": "Recall",
    "accuracy": "Accuracy",
    "accuracy_polarity": "Accuracy (polarity)",
    "change_f1": "Change F1",
    "finding_f1": "Finding F1",
    "direction": "Direction",
}

_PROGNOSTIC = ("bleu4", "rouge_l", "judge", "change_f1")
_DIAGNOSTIC = ("bleu4", "rouge_l", "recall", "accuracy", "accuracy_polarity", "judge", "finding_f1")


@dataclass(frozen=True)
class Table:
    """Rows of models, columns of (block, measure)."""

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """(model, a cell a column)."""
    alpha: float

    @property
    def spans(self) -> list[tuple[str, int]]:
        """Each block and how many columns it has, in order."""
        return [(block, len(list(columns))) for block, columns in groupby(block for block, _ in self.columns)]


def tables(results: Results) -> list[Table]:
    """Tables 1 and 2; Holm's correction runs over the tests of both."""
    both = [(block, measure) for block in ("difference", "prediction") for measure in _PROGNOSTIC]
    layout = {
        "table 1": ("Prognostic questions", both),
        "table 2": ("Diagnostic questions", [("diagnostic", measure) for measure in _DIAGNOSTIC]),
    }
    models = results.models()
    spots = [(name, model, *column) for name, (_, columns) in layout.items() for model in models for column in columns]
    cells = corrected([results.cell(block, measure, model, tested=True) for _, model, block, measure in spots])
    found = dict(zip(spots, cells, strict=True))
    result = []
    for name, (title, columns) in layout.items():
        rows = [(model, tuple(found[name, model, *column] for column in columns)) for model in models]
        rows = [row for row in rows if any(cell.value is not None for cell in row[1])]
        result.append(Table(name, title, tuple(columns), tuple(rows), results.settings.alpha))
    return result


def notes(results: Results) -> list[str]:
    """What a reader of the tables must know: the sample behind each number, and what was left out."""
    settings = results.settings
    percent = f"{100 * settings.confidence:g} %"
    lines = [
        f"{len(results.questions)} questions of {results.patients} patients, the same for every model; n is the number "
        "of questions in a row, several where its columns differ.",
        f"In brackets: {percent} percentile bootstrap over patients, {settings.bootstrap} resamples.",
        f"`*`: p < {settings.alpha:g}, two-sided Wilcoxon signed-rank test against {label(results.principal)}, paired "
        "by question (paper, section 2.5); `(*)`: not after Holm's correction over both tables. The test takes "
        "questions as independent, which those of one patient are not: see the intervals.",
        *(f"{MEASURES[name]}: {definition}." for name, definition in DEFINITIONS.items() if name in MEASURES),
        "Published: arXiv 2602.21142v1, table 1, on MIMIC-CXR with an undisclosed subset; its table 2 is not available "
        "here. Published judge scores are by Llama-3.1-405B.",
    ]
    if results.patients < settings.small:
        lines.insert(0, f"Only {results.patients} patients: intervals and tests are unreliable.")
    if any(model.endswith(COMPOSED) for model in results.samples):
        lines.append(
            "FT + rule: the single-image model's own findings and levels of each image, compared by rule into the "
            "difference grammar. It is the fair opponent of a longitudinal model: NVILA-8B-FT never saw that grammar, "
            "so its score on difference questions is one of form. No rule stands in for prediction."
        )
    return lines + [f"Left out: {line}." for line in results.problems.lines()]


def label(model: str) -> str:
    """A model's name in the tables."""
    if model.endswith(COMPOSED):
        base = model.removesuffix(COMPOSED)
        return f"{'FT' if base == 'ft' else label(base)} + rule"
    return MODELS[model].label if model in MODELS else model


def published(cell: Cell) -> float | None:
    """The paper's number for a cell; None where it has none."""
    return PUBLISHED.get((cell.block, cell.model), {}).get(cell.measure)


def star(cell: Cell, alpha: float) -> str:
    """`*` where the Wilcoxon test against the principal model is below alpha, `(*)` if Holm's correction ends that."""
    if cell.test is None or cell.test.p >= alpha:
        return ""
    return "*" if cell.p_holm is not None and cell.p_holm < alpha else "(*)"


def text(cell: Cell, alpha: float) -> str:
    """`0.375* [0.361, 0.389]`; an en dash for no value."""
    if cell.value is None:
        return "–"
    bounds = "" if cell.low is None else f" [{cell.low:.3f}, {cell.high:.3f}]"
    return f"{cell.value:.3f}{star(cell, alpha)}{bounds}"


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Each table with the published number in a column of its own after each of ours, then the notes."""
    parts = []
    for table in tables:
        head = ["model", "n"]
        for block, measure in table.columns:
            head += [f"{block}: {MEASURES[measure]}", "published"]
        lines = [f"## {table.name.capitalize()}. {table.title}", "", _row(head), _row(["---"] * len(head))]
        for model, cells in table.rows:
            row = [label(model), counts(cells)]
            for cell in cells:
                row += [text(cell, table.alpha), _number(published(cell))]
            lines.append(_row(row))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def counts(cells: Sequence[Cell]) -> str:
    """The numbers of questions a row stands on, one a block where they differ."""
    return " / ".join(dict.fromkeys(str(cell.n) for cell in cells if cell.n))


def comma_separated(tables: Sequence[Table]) -> str:
    """One line a cell, with everything known about it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["table", "block", "measure", "model", "n", "value", "low", "high", "published", "minus_principal",
                     "minus_principal_low", "minus_principal_high", "wilcoxon_n", "p", "p_holm", "effect"])  # fmt: skip
    for table in tables:
        for cell in _cells(table):
            test, gap = cell.test, cell.difference or (None, None, None)
            writer.writerow([
                table.name, cell.block, cell.measure, cell.model, cell.n, cell.value, cell.low, cell.high,
                published(cell), *gap, *((test.n, test.p, cell.p_holm, test.effect) if test else [None] * 4),
            ])  # fmt: skip
    return stream.getvalue()


def latex(tables: Sequence[Table]) -> str:
    """Each table as a `tabular` (packages: booktabs), the published numbers in a row under ours."""
    parts = []
    for table in tables:
        head = " & ".join(["model", *(f"{block}: {MEASURES[measure]}" for block, measure in table.columns)])
        lines = [rf"% {table.name}: {table.title}", rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule",
                 rf"{head} \\", r"\midrule"]  # fmt: skip
        for model, cells in table.rows:
            name = label(model).replace("_", r"\_")
            lines.append(" & ".join([name, *(_latex(cell, table.alpha) for cell in cells)]) + r" \\")
            if any(published(cell) is not None for cell in cells):
                lines.append(r"\quad published & " + " & ".join(_number(published(cell)) for cell in cells) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _cells(table: Table) -> Iterator[Cell]:
    for _, cells in table.rows:
        yield from cells


def _latex(cell: Cell, alpha: float) -> str:
    if cell.value is None:
        return "--"
    bounds = "" if cell.low is None else rf" {{\scriptsize [{cell.low:.3f}, {cell.high:.3f}]}}"
    return f"{cell.value:.3f}" + {"": "", "*": "$^{*}$", "(*)": "$^{(*)}$"}[star(cell, alpha)] + bounds


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
