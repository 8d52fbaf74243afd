"""The numbers of the report: every model's measures on every block of questions, with intervals and tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.data.diff_vqa import DIAGNOSTIC, Change, GrammarError, parse_difference
from lumen_hpc.metrics.change import Reader
from lumen_hpc.metrics.join import Joined, Problems, join
from lumen_hpc.metrics.measures import CHANGING, Samples
from lumen_hpc.metrics.significance import (
    UNIT,
    ClusterBootstrap,
    ClusterPermutation,
    Column,
    Contrast,
    Interval,
    Paired,
    Scale,
    holm,
    wilcoxon,
)
from lumen_hpc.models import MODELS
from lumen_hpc.report.baselines import BASELINES, REFERENCE
from lumen_hpc.report.identity import COMPOSED, Identity

BLOCKS = {"difference": ("difference",), "prediction": ("prediction",), "diagnostic": DIAGNOSTIC}
# A micro average has no per-sample value to test; each answer's own F1 stands in.
_SCALES = {"judge": Scale(1.0, 10.0), "judge_expected": Scale(1.0, 10.0)}
_BLOCK = 4096
"""Questions whose scores are written at a time."""
_TESTED_MEASURES = {"change_f1": "change_f1_macro", "finding_f1": "finding_f1_macro"}


def scale_of(measure: str) -> Scale:
    """The least and the most that a measure can be."""
    return _SCALES.get(measure, UNIT)


@dataclass(frozen=True)
class Cell:
    """One measure of one model on one block of questions."""

    block: str
    measure: str
    model: str
    n: int
    """Questions that the value stands on."""
    value: float | None
    low: float | None
    high: float | None
    """Bounds over patients (see `Evaluate.confidence`)."""
    difference: Interval | None = None
    """Value minus the principal model's, on the questions that both answered."""
    test: Paired | None = None
    """The paper's Wilcoxon test against the principal model, with its effect size."""
    p: float | None = None
    """Patient-level permutation test of `difference`; None until `Results.add_tests` has run it."""
    p_holm: float | None = None
    """`p` after Holm's correction over all tests of the tables."""

    @property
    def differs(self) -> bool:
        """True where the interval of the difference excludes 0."""
        gap = self.difference
        return bool(gap and gap.low is not None and gap.high is not None and not gap.low <= 0 <= gap.high)


def questions(records: Iterable[dict]) -> list[dict]:
    """Question rows with their long answer and images, out of instruction records (`instruct/lumen-test.jsonl`)."""
    paths: dict[str, str] = {}  # one copy of each: an image has several questions
    return [
        {"images": [paths.setdefault(path, path) for path in record["images"]], **record["meta"]} for record in records
    ]


class Results:
    """Joined answers of all models, scored once, from which every number of the report is read."""

    def __init__(
        self,
        questions: Sequence[dict],
        answers: Iterable[dict],
        scores: Iterable[dict],
        settings: Evaluate,
        seed: int,
        *,
        models: Sequence[str],
        identity: Identity | None = None,
    ) -> None:
        """`scores` are the judge's rows without canaries; `models` are expected, the last one is principal.

        Raises UserError where a model has no answers, or no question is answered by all.
        """
        self.joined: Joined = join(questions, answers, models=models)
        self.questions, self.settings = self.joined.questions, settings
        self.identity = identity or Identity()
        self.principal = "lumen" if "lumen" in self.joined.answers else models[-1]
        self.reader = Reader.of(questions)
        self.samples = {
            model: Samples(self.questions, answers, self.reader) for model, answers in self.joined.answers.items()
        }
        for model, samples in self.samples.items():
            readable = samples.columns["change_read"]
            for i in np.flatnonzero((readable.whole > 0) & (readable.part == 0)):
                kind = f"answers of {model} without a readable claim about change (they count as wrong)"
                self.problems.add(kind, self.questions[i]["question_id"])
        self.types = np.array([row["type"] for row in self.questions], object)
        self._add_scores(scores)
        clusters = [row.get("subject_id", row["question_id"]) for row in self.questions]
        self.patients = len(set(clusters))
        self.bootstrap = ClusterBootstrap(clusters, settings.bootstrap, seed, settings.confidence)
        self._permutation = ClusterPermutation(clusters, settings.permutations, seed)

    @property
    def problems(self) -> Problems:
        return self.joined.problems

    def add_model(self, model: str, answers: dict[str, str]) -> None:
        """Adds answers (by question id) to some of the questions; the model's measures apply to these alone.

        Of a composed baseline, difference questions without an answer are counted as problems.
        """
        self.samples[model] = self.score(answers)
        self.joined.answers[model] = [answers.get(row["question_id"], "") for row in self.questions]
        for row in self.questions if model.endswith(COMPOSED) else ():
            if row["type"] == "difference" and row["question_id"] not in answers:
                problem = f"difference questions without an answer of {model} (its row is over the others)"
                self.problems.add(problem, row["question_id"])

    def score(self, answers: dict[str, str]) -> Samples:
        """Answers (by question id) to some of the questions, scored; measures apply to these alone."""
        is_answered = np.array([row["question_id"] in answers for row in self.questions], bool)
        samples = Samples(self.questions, [answers.get(row["question_id"], "") for row in self.questions], self.reader)
        if is_answered.all():
            return samples
        for name, column in samples.columns.items():
            samples.columns[name] = Column(column.part * is_answered, column.whole * is_answered)
        return samples

    def models(self) -> list[str]:
        """The rows of the tables: baselines, then the paper's models, each before its composed baseline.

        The principal model is last, and the reference's own answers are first.
        """
        ordered_models = [model for model in (*BASELINES, *MODELS) if model in self.samples]
        ordered_models += [
            model for model in self.samples if model not in ordered_models and not model.endswith(COMPOSED)
        ]
        rows = [name for model in ordered_models for name in (model, model + COMPOSED) if name in self.samples]
        return [*(name for name in rows if name != self.principal), self.principal]

    def run_models(self) -> list[str]:
        """The models that answered, with their composed baselines: `models` without the baseline rows."""
        return [model for model in self.models() if model not in BASELINES]

    def label(self, model: str) -> str:
        """A model's name in tables, figures and the page."""
        return BASELINES[model].label if model in BASELINES else self.identity.label(model)

    def labels(self) -> dict[str, str]:
        """Model → its label, in the order of `models`."""
        return {model: self.label(model) for model in self.models()}

    def where(self, block: str) -> np.ndarray:
        """The questions of a block or of one type, bool [n]."""
        return np.isin(self.types, BLOCKS.get(block, (block,)))

    def cell(
        self, block: str, measure: str, model: str, where: np.ndarray | None = None, *, tested: bool = False
    ) -> Cell:
        """One number with its interval, over a block or where `where` is true.

        With `tested`, it is also compared with the principal model on the questions that both answered.
        """
        where = self.where(block) if where is None else where
        column = self.column(measure, model)
        n = int((where & self._tested_column(measure, model).applies()).sum())
        scale = scale_of(measure)
        cell = Cell(block, measure, model, n, *self.bootstrap.interval(column, where, scale))
        if not tested or model in (self.principal, REFERENCE) or cell.value is None:
            return cell
        both = self._answered_by_both(where, measure, model)
        if not both.any():
            return cell
        test = wilcoxon(*(self._tested_column(measure, name).values()[both] for name in (model, self.principal)))
        difference = self.bootstrap.difference(column, self.column(measure, self.principal), both, scale)
        return replace(cell, difference=difference, test=test)

    def add_tests(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells with the permutation test of each displayed difference, and Holm's correction over all of them."""
        compared = [cell for cell in cells if cell.test]
        p_values = self._permutation.p([self._contrast(cell) for cell in compared])
        tested = iter(
            [
                replace(cell, p=p, p_holm=corrected)
                for cell, p, corrected in zip(compared, p_values, holm(p_values), strict=True)
            ]
        )
        return [next(tested) if cell.test else cell for cell in cells]

    def _contrast(self, cell: Cell) -> Contrast:
        own, principal = (self.column(cell.measure, model) for model in (cell.model, self.principal))
        return Contrast(own, principal, self._answered_by_both(self.where(cell.block), cell.measure, cell.model))

    def _tested_column(self, measure: str, model: str) -> Column:
        return self.column(_TESTED_MEASURES.get(measure, measure), model)

    def _answered_by_both(self, where: np.ndarray, measure: str, model: str) -> np.ndarray:
        own, principal = (self._tested_column(measure, name) for name in (model, self.principal))
        return where & own.applies() & principal.applies()

    def truth(self, i: int) -> Change | None:
        """What changed, by question i's reference; None if it is no change question or outside the grammar."""
        row = self.questions[i]
        if row["type"] not in CHANGING:
            return None
        try:
            return parse_difference(row["short_answer"])
        except GrammarError:
            return None

    def column(self, measure: str, model: str) -> Column:
        """A measure's column; one that applies nowhere if the model has none (an unjudged model, say)."""
        zeros = np.zeros(len(self.questions))
        return self.samples[model].columns.get(measure) or Column(zeros, zeros)

    def rows(self) -> Iterator[dict]:
        """The per-sample table: a row per question and model, with every measure that applies to it; no texts."""
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(self.questions), _BLOCK)]
        for model, block in itertools.product(self.models(), blocks):
            columns = self.samples[model].columns
            table = np.column_stack([Column(c.part[block], c.whole[block]).values() for c in columns.values()])
            for question, values in zip(self.questions[block], table.tolist(), strict=True):
                # NaN, which is not equal to itself: the measure does not apply.
                scores = {name: value for name, value in zip(columns, values, strict=True) if value == value}
                if scores:
                    yield {"question_id": question["question_id"], "type": question["type"], "model": model} | scores

    def _add_scores(self, scores: Iterable[dict]) -> None:
        """The first judge's scores as measures `judge` and `judge_expected`, on questions judged for every model."""
        scores_by_model: dict[str, dict[str, tuple]] = {model: {} for model in self.samples}
        other_scores: list[tuple[str, str]] = []
        judge = None
        for row in scores:
            judge = judge or row.get("judge")
            if row["model"] in scores_by_model and row.get("judge") == judge:
                scores_by_model[row["model"]][row["question_id"]] = row.get("score"), row.get("expected_score")
            elif row["model"] in scores_by_model:
                other_scores.append((row["model"], row["question_id"]))
        for model, id in other_scores:
            if not scores_by_model[model]:
                self.problems.add(f"scores of {model} by another judge than {judge} (left out)", id)
        judged_models = {model: rows for model, rows in scores_by_model.items() if rows}
        ids = [row["question_id"] for row in self.questions]
        is_common = np.array([all(id in rows for rows in judged_models.values()) for id in ids], bool)
        for model, rows in judged_models.items():
            for id, common in zip(ids, is_common, strict=True):
                if not common:
                    self.problems.add(f"questions that were not judged for every model (of {model})", id)
            for place, measure in enumerate(("judge", "judge_expected")):
                values = [rows[id][place] if common else None for id, common in zip(ids, is_common, strict=True)]
                is_scored = np.array([value is not None for value in values], float)
                part = np.array([value or 0.0 for value in values], float)
                self.samples[model].columns[measure] = Column(part * is_scored, is_scored)
