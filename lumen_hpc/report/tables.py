"""Tables 1 and 2 in the paper's form as Markdown, CSV and LaTeX; published numbers beside ours on MIMIC-CXR only."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.metrics.measures import MEASURES as DEFINITIONS
from lumen_hpc.metrics.significance import fewest_patients
from lumen_hpc.report.baselines import BASELINES
from lumen_hpc.report.identity import COMPOSED
from lumen_hpc.report.results import BLOCKS, Cell, Results

PUBLISHED = {
    ("difference", "nvila"): {"bleu4": 0.001, "rouge_l": 0.071, "judge": 2.486},
    ("difference", "ft"): {"bleu4": 0.020, "rouge_l": 0.206, "judge": 3.275},
    ("difference", "lumen"): {"bleu4": 0.375, "rouge_l": 0.656, "judge": 4.611},
    ("prediction", "nvila"): {"bleu4": 0.003, "rouge_l": 0.052, "judge": 2.242},
    ("prediction", "ft"): {"bleu4": 0.019, "rouge_l": 0.167, "judge": 3.177},
    ("prediction", "lumen"): {"bleu4": 0.095, "rouge_l": 0.303, "judge": 4.866},
}
"""Table 1 of arXiv 2602.21142v1, for runs on MIMIC-CXR. Its Table 2 is not available here, so it has no column."""

MEASURES = {
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "judge": "Judge score",
    "judge_expected": "Expected score",
    "recall": "Recall",
    "precision": "Precision",
    "accuracy": "Accuracy",
    "accuracy_polarity": "Accuracy (polarity)",
    "change_f1": "Change F1",
    "finding_f1": "Finding F1",
    "direction": "Direction",
}

_PROGNOSTIC = ("bleu4", "rouge_l", "judge", "change_f1")
# Polarity and finding F1 first: a constant answer wins recall and the first-word accuracy.
_DIAGNOSTIC = ("accuracy_polarity", "finding_f1", "bleu4", "rouge_l", "recall", "precision", "accuracy", "judge")
_LAYOUT = {
    "table 1": (
        "Prognostic questions",
        [(block, name) for block in ("difference", "prediction") for name in _PROGNOSTIC],
    ),
    "table 2": ("Diagnostic questions", [("diagnostic", name) for name in _DIAGNOSTIC]),
}
"""Table → title and columns (block, measure)."""
if _unknown := {name for _, columns in _LAYOUT.values() for _, name in columns} - (
    MEASURES.keys() & {*DEFINITIONS, "judge", "judge_expected"}
):
    raise NotImplementedError(f"{', '.join(sorted(_unknown))}: in a table, without a heading here or in measures.py")


@dataclass(frozen=True)
class Table:
    """Rows of models, columns of (block, measure)."""

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """(model, a cell per column)."""
    alpha: float
    labels: Mapping[str, str]
    """Model → its name."""
    titles: Mapping[str, str]
    """Measure → its heading."""
    comparable: bool
    """True if the published numbers are about the same dataset, and so shown."""

    @property
    def spans(self) -> list[tuple[str, int]]:
        """Each block and how many columns it has, in order."""
        return [(block, len(list(columns))) for block, columns in groupby(block for block, _ in self.columns)]

    @property
    def usual_n(self) -> list[int]:
        """The number of questions behind most values of each column; 0 where a column has none."""
        columns = zip(*(cells for _, cells in self.rows), strict=True)
        return [max(ns, key=ns.count) if (ns := [cell.n for cell in cells if cell.n]) else 0 for cells in columns]


def tables(results: Results) -> list[Table]:
    """Tables 1 and 2, of those that the test questions fill; Holm's correction runs over the tests of both."""
    models = results.models()
    places = [
        (name, model, *column) for name, (_, columns) in _LAYOUT.items() for model in models for column in columns
    ]
    cells = results.add_tests([results.cell(block, measure, model, tested=True) for _, model, block, measure in places])
    cells_by_place = dict(zip(places, cells, strict=True))
    result = []
    for name, (title, columns) in _LAYOUT.items():
        rows = [(model, tuple(cells_by_place[name, model, *column] for column in columns)) for model in models]
        rows = [row for row in rows if any(cell.value is not None for cell in row[1])]
        if rows:
            result.append(Table(name, title, tuple(columns), tuple(rows), results.settings.alpha, results.labels(),
                                titles(results), results.identity.comparable))  # fmt: skip
    return result


def titles(results: Results) -> dict[str, str]:
    """Measure → heading; the judge's column carries the judge's own name."""
    return MEASURES | {"judge": results.identity.judge_label}


def notes(results: Results) -> list[str]:
    """What a reader of the tables must know: the sample behind each number, and what was left out."""
    settings = results.settings
    percent = f"{100 * settings.confidence:g} %"
    empty_blocks = [f"The test set has no {block} question." for block in BLOCKS if not results.where(block).any()]
    lines = [
        *empty_blocks,
        f"{len(results.questions)} questions of {results.patients} patients, the same for every model; n is the number "
        "of questions behind the numbers of a row (on the page, of a column), several where they differ.",
        f"In brackets: {percent} bootstrap intervals over patients with the tails of Student's t, {settings.bootstrap} "
        "resamples.",
        f"`*`: the displayed value differs from {results.label(results.principal)}'s. Two-sided permutation test that "
        f"exchanges the two models' answers patient by patient, {settings.permutations:,} permutations, p < "
        f"{settings.alpha:g}, and the {percent} interval of the difference excludes 0; `(*)`: not after Holm's "
        "correction over both tables.",
        "The paper's Wilcoxon signed-rank test (section 2.5) is in the csv. It takes questions as independent; on "
        "correlated questions it rejects too often, so that no star follows from it. Its effect size is the "
        "rank-biserial correlation of the pairs without ties, whose number stands beside it.",
        "A value of exactly 0 or 1 (of the judge: 1 or 10) has the exact interval over patients (Clopper-Pearson, on "
        "the measure's scale); a value without brackets "
        f"stands on fewer than {fewest_patients(settings.confidence)} patients, or on patients who are all alike.",
        *(f"{titles(results)[name]}: {definition}." for name, definition in DEFINITIONS.items() if name in MEASURES),
    ]
    if results.identity.comparable:
        lines.append(
            "Published: arXiv 2602.21142v1, table 1, on MIMIC-CXR with an undisclosed subset; its table 2 is not "
            "available here. Its judge scores are not shown beside ours: the rubric is not published, and an absolute "
            "score under another rubric does not compare."
        )
    if results.patients < settings.small:
        lines.insert(0, f"Only {results.patients} patients: intervals and tests are unreliable.")
    if any(model.endswith(COMPOSED) for model in results.samples):
        lines.append(
            "… + rule: a model's own findings and levels of each image alone, compared by rule into the difference "
            "grammar. A model has learned to compare images only where it beats its own readings plus the rule. A "
            "model fine-tuned on single images never saw that grammar, so its score on difference questions is one of "
            "form. No rule stands in for prediction."
        )
    lines += [f"{baseline.label}: {baseline.about}." for name, baseline in BASELINES.items() if name in results.samples]
    return lines + [f"Irregular: {line}." for line in results.problems.lines()]


def permutation_notes(tables: Sequence[Table], settings: Evaluate) -> list[str]:
    """A sentence where permutations are too few for a star, however large a difference is."""
    tests = sum(cell.p is not None for table in tables for cell in _cells(table))
    least = 1 / (1 + settings.permutations)
    if not settings.alpha or tests * least < settings.alpha:
        return []
    stars = "`*`" if least < settings.alpha else "`*` or `(*)`"
    return [
        f"No difference can have {stars}: {settings.permutations:,} permutations show no p below {least:.2g}, and "
        f"none below {min(1.0, tests * least):.2g} after Holm's correction of {tests} tests; "
        f"`evaluate.permutations={math.ceil(tests / settings.alpha)}` or more would do."
    ]


def published(cell: Cell) -> float | None:
    """The paper's number for a cell; None where it has none, and for absolute judge scores."""
    return None if cell.measure == "judge" else PUBLISHED.get((cell.block, cell.model), {}).get(cell.measure)


def star(cell: Cell, alpha: float) -> str:
    """`*` where the permutation test is below alpha and the difference's interval excludes 0; `(*)` not after Holm."""
    if cell.p is None or cell.p >= alpha or not cell.differs:
        return ""
    return "*" if cell.p_holm is not None and cell.p_holm < alpha else "(*)"


def text(cell: Cell, alpha: float) -> str:
    """`0.375* [0.361, 0.389]`; an en dash for no value."""
    if cell.value is None:
        return "–"
    bounds = "" if cell.low is None else f" [{cell.low:.3f}, {cell.high:.3f}]"
    return f"{cell.value:.3f}{star(cell, alpha)}{bounds}"


def markdown(tables: Sequence[Table], notes: Sequence[str], *more: str) -> str:
    """Each table, with published numbers in a column after each of ours where they compare; differences; notes.

    `more`: tables in Markdown that stand before the notes; an empty one is left out.
    """
    parts = []
    for table in tables:
        header = ["model", "n"]
        for block, measure in table.columns:
            header += [f"{block}: {table.titles[measure]}", *(["published"] if table.comparable else [])]
        lines = [
            f"## {table.name.capitalize()}. {table.title}",
            "",
            markdown_row(header),
            markdown_row(["---"] * len(header)),
        ]
        for model, cells in table.rows:
            row = [table.labels[model], counts(cells)]
            for cell in cells:
                row += [text(cell, table.alpha), *([_number(published(cell))] if table.comparable else [])]
            lines.append(markdown_row(row))
        parts.append("\n".join(lines))
        parts.append(_differences(table))
    parts += [text for text in more if text]
    return "\n\n".join(parts) + "\n\n" + "\n".join(f"- {_escape(note)}" for note in notes) + "\n"


def _escape(note: str) -> str:
    """A note whose `<` begins no tag; within `code` it is none."""
    return re.sub(r"`[^`]+`|<", lambda match: "&lt;" if match[0] == "<" else match[0], note)


def _differences(table: Table) -> str:
    """The table of differences from the principal model, the quantity that the stars are about."""
    principal = table.labels[table.rows[-1][0]]
    header = ["model", *(f"{block}: {table.titles[measure]}" for block, measure in table.columns)]
    lines = [
        f"Difference from {principal} on the questions that both answered:",
        "",
        markdown_row(header),
        markdown_row(["---"] * len(header)),
    ]
    for model, cells in table.rows[:-1]:
        if any(cell.difference for cell in cells):
            lines.append(markdown_row([table.labels[model], *(difference(cell, table.alpha) for cell in cells)]))
    return "\n".join(lines)


def difference(cell: Cell, alpha: float) -> str:
    """`-0.585* [-0.610, -0.560]`; an en dash where nothing is compared."""
    gap = cell.difference
    if gap is None or gap.value is None:
        return "–"
    bounds = "" if gap.low is None else f" [{gap.low:+.3f}, {gap.high:+.3f}]"
    return f"{gap.value:+.3f}{star(cell, alpha)}{bounds}"


def counts(cells: Sequence[Cell]) -> str:
    """The numbers of questions a row stands on, one per block where they differ."""
    return " / ".join(dict.fromkeys(str(cell.n) for cell in cells if cell.n))


def comma_separated(tables: Sequence[Table]) -> str:
    """One line per cell, with everything known about it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["table", "block", "measure", "model", "n", "value", "low", "high", "published", "minus_principal",
                     "minus_principal_low", "minus_principal_high", "p", "p_holm", "star", "wilcoxon_n",
                     "wilcoxon_untied", "wilcoxon_p", "effect"])  # fmt: skip
    for table in tables:
        for cell in _cells(table):
            test, gap = cell.test, cell.difference or (None, None, None)
            writer.writerow([
                table.name, cell.block, cell.measure, cell.model, cell.n, cell.value, cell.low, cell.high,
                published(cell) if table.comparable else None, *gap, cell.p, cell.p_holm, star(cell, table.alpha),
                *((test.n, test.untied, test.p, test.effect) if test else [None] * 4),
            ])  # fmt: skip
    return stream.getvalue()


def latex(tables: Sequence[Table]) -> str:
    """Each table as a `tabular` (packages: booktabs), the published numbers in a row under ours."""
    parts = []
    for table in tables:
        header = " & ".join(["model", *(_tex(f"{block}: {table.titles[measure]}") for block, measure in table.columns)])
        lines = [rf"% {table.name}: {table.title}", rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule",
                 rf"{header} \\", r"\midrule"]  # fmt: skip
        for model, cells in table.rows:
            lines.append(
                " & ".join([_tex(table.labels[model]), *(_latex(cell, table.alpha) for cell in cells)]) + r" \\"
            )
            if table.comparable and any(published(cell) is not None for cell in cells):
                lines.append(r"\quad published & " + " & ".join(_number(published(cell)) for cell in cells) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    """A name in LaTeX: a judge's is its folder's, whatever signs that has."""
    return re.sub(r"[\\{}$&#^_%~]", lambda sign: _TEX.get(sign[0], rf"\{sign[0]}"), text)


_TEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}


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


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table; a bar in a cell would begin another one, and a bracket a tag."""
    escaped = (" ".join(cell.split("\n")).replace("|", r"\|").replace("<", "&lt;") for cell in cells)
    return "| " + " | ".join(escaped) + " |"
