"""The acceptance criteria of a phantom run, called gates in the report: each a number, its bar, and its result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lumen_hpc.errors import UserError
from lumen_hpc.report import ceilings
from lumen_hpc.report.controls import Control
from lumen_hpc.report.results import COMPOSED, Results

LUMEN, FT = "lumen", "ft"


@dataclass(frozen=True)
class Criterion:
    name: str
    value: float | None
    """What was measured; None where the run cannot measure it, which fails the gate."""
    bar: float
    at_least: bool = True
    """False for a bar that the value must not exceed."""
    strictly: bool = False
    """True where equality does not pass."""

    @property
    def passed(self) -> bool:
        if self.value is None:
            return False
        beyond = self.value - self.bar if self.at_least else self.bar - self.value
        return beyond > 0 if self.strictly else beyond >= 0

    @property
    def sign(self) -> str:
        return (">" if self.strictly else "≥") if self.at_least else ("<" if self.strictly else "≤")

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.3f}"
        return f"{self.name}: {value}, bar {self.sign} {self.bar:.3f}"


class GateFailed(UserError):
    """The run finished, but its numbers are not those of a model that learned."""


def require(gates: Sequence[Criterion]) -> None:
    """Raises GateFailed naming every gate that failed."""
    failed = [str(gate) for gate in gates if not gate.passed]
    if failed:
        raise GateFailed(f"{len(failed)} of {len(gates)} gates of the demo failed: {'; '.join(failed)}")


def phantom_criteria(
    results: Results,
    controls: Sequence[Control],
    oracles: Mapping[str, ceilings.Answers],
    undecided: ceilings.Undecided | None = None,
    training_meta: Iterable[Mapping] = (),
) -> list[Criterion]:
    """The gates of a phantom run of full length; bars from three seeds of 300 unseen patients each.

    A model whose predictions beat the oracle that sees reference and days, but not the cue, has read the cue in
    the image (`ceilings.oracles`). `training_meta`: `meta` of the training records.
    """
    return [
        *_diagnostic(results, undecided),
        *_difference(results, oracles),
        *_prediction(results, oracles),
        *_leaks(results, oracles),
        *_guesses(results, undecided),
        *_patients(results, training_meta),
        *_controls({control.name: control for control in controls if control.model == LUMEN}),
    ]


def _diagnostic(results: Results, undecided: ceilings.Undecided | None) -> Iterator[Criterion]:
    """On the questions that one image decides: for the others, see `_guesses`."""
    answerable = ~undecided.where if undecided else np.ones(len(results.questions), bool)
    closed = results.column("accuracy_polarity", LUMEN).applies()
    question_kinds = {
        "closed": ("accuracy_polarity", closed & answerable, 0.93),
        "level": ("exact", results.where("level"), 0.93),
        "where": ("exact", results.where("location") & ~closed & answerable, 0.88),
    }
    for name, (measure, where, bar) in question_kinds.items():
        ours, theirs = (results.column(measure, model).mean(where) for model in (LUMEN, FT))
        yield Criterion(f"{name} questions, share right", ours, bar)
        yield Criterion(f"{name} questions, LUMEN minus FT", _minus(ours, theirs), -0.05)


def _difference(results: Results, oracles: Mapping[str, ceilings.Answers]) -> Iterator[Criterion]:
    f1 = results.cell("difference", "change_f1", LUMEN)
    yield Criterion("difference, change F1", f1.value, 0.75)
    yield Criterion("difference, change F1, lower bound", f1.low, 0.50, strictly=True)
    yield Criterion("difference, ROUGE-L", results.cell("difference", "rouge_l", LUMEN).value, 0.85)
    rule_row = FT + COMPOSED
    rule_f1 = results.cell("difference", "change_f1", rule_row).value if rule_row in results.samples else None
    yield Criterion("difference, change F1, LUMEN minus FT + rule", _minus(f1.value, rule_f1), -0.06)
    yield from _above_readings(results, oracles)


def _above_readings(results: Results, oracles: Mapping[str, ceilings.Answers]) -> Iterator[Criterion]:
    """Better than its own separate readings, which may be poor on purpose, and than the best there can be."""
    where = results.where("difference")
    ours = results.column("change_f1", LUMEN)
    own_gap = results.bootstrap.difference(ours, results.column("change_f1", LUMEN + COMPOSED), where).low if (
        LUMEN + COMPOSED in results.samples) else None  # fmt: skip
    yield Criterion("difference, change F1, LUMEN minus LUMEN + rule, lower bound", own_gap, 0.0, strictly=True)
    best_gap = None
    if oracle_answers := oracles.get(ceilings.TWO_READINGS):
        compared = where & _answered_mask(results, oracle_answers)
        best_gap = results.bootstrap.difference(ours, ceilings.column(results, oracle_answers), compared).low
    name = "difference, change F1, LUMEN minus the best two readings and a rule, lower bound"
    yield Criterion(name, best_gap, 0.0, strictly=True)


def _prediction(results: Results, oracles: Mapping[str, ceilings.Answers]) -> Iterator[Criterion]:
    yield Criterion("prediction, change F1", results.cell("prediction", "change_f1", LUMEN).value, 0.60)
    oracle_answers = oracles.get(ceilings.WITHOUT_CUE)
    gap = None
    if oracle_answers:
        where = _answered_mask(results, oracle_answers)
        ours, oracle = results.column("change_f1", LUMEN), ceilings.column(results, oracle_answers)
        gap = results.bootstrap.difference(ours, oracle, where).low
    yield Criterion(
        "prediction, change F1, LUMEN minus the oracle without the cue, lower bound", gap, 0.0, strictly=True
    )


def _leaks(results: Results, oracles: Mapping[str, ceilings.Answers]) -> Iterator[Criterion]:
    """Without leaked answers, no model can beat the oracle that knows all that the future depends on."""
    oracle_answers = oracles.get(ceilings.FULL)
    best = bar = None
    if oracle_answers:
        where = _answered_mask(results, oracle_answers)
        bar = results.bootstrap.interval(ceilings.column(results, oracle_answers), where).high
        values = [results.column("change_f1", model).mean(where) for model in results.run_models()]
        best = max((value for value in values if value is not None), default=None)
    name = "prediction, change F1 of the best model, at most the full oracle's upper bound"
    yield Criterion(name, best if bar is not None else None, bar if bar is not None else 0.0, at_least=False)


def _guesses(results: Results, undecided: ceilings.Undecided | None) -> Iterator[Criterion]:
    """On what no image shows, no model can beat the best guess without leaked answers."""
    best = bar = None
    if undecided and undecided.best_guess.applies().any():
        where = undecided.best_guess.applies()
        bar = results.bootstrap.interval(undecided.best_guess, where).high
        values = [results.column("accuracy_polarity", model).mean(where) for model in results.run_models()]
        best = max((value for value in values if value is not None), default=None)
    name = "closed questions that no image decides, best model, at most the best guess's upper bound"
    yield Criterion(name, best if bar is not None else None, bar if bar is not None else 0.0, at_least=False)


def _patients(results: Results, training_meta: Iterable[Mapping]) -> Iterator[Criterion]:
    """A patient seen in training can be remembered."""
    training_patients = {str(row.get("subject_id")) for row in training_meta}
    test_patients = {str(question.get("subject_id")) for question in results.questions}
    shared_patients = float(len(training_patients & test_patients)) if training_patients else None
    yield Criterion("patients of the test set among the training's", shared_patients, 0.0, at_least=False)


def _controls(controls_by_name: Mapping[str, Control]) -> Iterator[Criterion]:
    def value(name: str, measure: str) -> float | None:
        return controls_by_name[name].values.get(measure) if name in controls_by_name else None

    swapped, other = "swapped order: F1 against the", "another's prior: F1 against"
    yield Criterion("same image twice: nothing has changed", value("same", "nothing"), 0.88)
    yield Criterion(f"{swapped} swapped truth", value("swapped", "shown"), 0.68)
    yield Criterion(f"{swapped} original truth", value("swapped", "original"), 0.08, at_least=False)
    # Another patient has a heart and spots of his own: of cardiomegaly and nodules such a pair shows no change.
    yield Criterion(f"{other} that pair's truth", value("other_patient", "shown"), 0.50)
    yield Criterion(f"{other} their own truth", value("other_patient", "original"), 0.32, at_least=False)


def _answered_mask(results: Results, answers: ceilings.Answers) -> np.ndarray:
    """The questions that an oracle answered, bool [questions]."""
    return np.array([question["question_id"] in answers for question in results.questions], bool)


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
