"""The acceptance criteria of a phantom run, called gates in the report: each a number, its bar, and its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lumen_hpc.errors import UserError
from lumen_hpc.report import ceilings
from lumen_hpc.report.controls import Control
from lumen_hpc.report.results import COMPOSED, Results


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
    lumen: str = "lumen",
    ft: str = "ft",
) -> list[Criterion]:
    """The gates of a phantom run of full length; bars from three seeds of 300 unseen patients each.

    A model whose predictions beat the oracle that sees reference and days, but not the cue, has read the cue in
    the image (`ceilings.oracles`).
    """
    return [
        *_diagnostic(results, lumen, ft),
        *_difference(results, lumen, ft),
        *_prediction(results, lumen, oracles),
        *_leaks(results, oracles),
        *_controls({control.name: control for control in controls if control.model == lumen}),
    ]


def _diagnostic(results: Results, lumen: str, ft: str) -> Iterator[Criterion]:
    closed = results.column("accuracy_polarity", lumen).applies()
    asked = {
        "closed": ("accuracy_polarity", closed, 0.95),
        "level": ("exact", results.where("level"), 0.93),
        "where": ("exact", results.where("location") & ~closed, 0.88),
    }
    for name, (measure, where, bar) in asked.items():
        ours, theirs = (results.column(measure, model).mean(where) for model in (lumen, ft))
        yield Criterion(f"{name} questions, share right", ours, bar)
        yield Criterion(f"{name} questions, LUMEN minus FT", _minus(ours, theirs), -0.05)


def _difference(results: Results, lumen: str, ft: str) -> Iterator[Criterion]:
    f1 = results.cell("difference", "change_f1", lumen)
    yield Criterion("difference, change F1", f1.value, 0.75)
    yield Criterion("difference, change F1, lower bound", f1.low, 0.50, strictly=True)
    yield Criterion("difference, ROUGE-L", results.cell("difference", "rouge_l", lumen).value, 0.85)
    ruled = ft + COMPOSED
    rule = results.cell("difference", "change_f1", ruled).value if ruled in results.samples else None
    yield Criterion("difference, change F1, LUMEN minus FT + rule", _minus(f1.value, rule), -0.06)


def _prediction(results: Results, lumen: str, oracles: Mapping[str, ceilings.Answers]) -> Iterator[Criterion]:
    yield Criterion("prediction, change F1", results.cell("prediction", "change_f1", lumen).value, 0.60)
    answered = oracles.get(ceilings.WITHOUT_CUE)
    gap = None
    if answered:
        where = np.array([question["question_id"] in answered for question in results.questions], bool)
        ours, oracle = results.column("change_f1", lumen), ceilings.column(results, answered)
        gap = results.bootstrap.difference(ours, oracle, where).low
    yield Criterion(
        "prediction, change F1, LUMEN minus the oracle without the cue, lower bound", gap, 0.0, strictly=True
    )


def _leaks(results: Results, oracles: Mapping[str, ceilings.Answers]) -> Iterator[Criterion]:
    """No model can predict better than the oracle that knows all that the future depends on, unless it has seen it."""
    answered = oracles.get(ceilings.FULL)
    best = bar = None
    if answered:
        where = np.array([question["question_id"] in answered for question in results.questions], bool)
        bar = results.bootstrap.interval(ceilings.column(results, answered), where).high
        values = [results.column("change_f1", model).mean(where) for model in results.run_models()]
        best = max((value for value in values if value is not None), default=None)
    name = "prediction, change F1 of the best model, at most the full oracle's upper bound"
    yield Criterion(name, best if bar is not None else None, bar if bar is not None else 0.0, at_least=False)


def _controls(found: Mapping[str, Control]) -> Iterator[Criterion]:
    def value(name: str, measure: str) -> float | None:
        return found[name].values.get(measure) if name in found else None

    swapped, other = "swapped order: F1 against the", "another's prior: F1 against"
    yield Criterion("same image twice: nothing has changed", value("same", "nothing"), 0.88)
    yield Criterion(f"{swapped} swapped truth", value("swapped", "shown"), 0.68)
    yield Criterion(f"{swapped} original truth", value("swapped", "original"), 0.08, at_least=False)
    yield Criterion(f"{other} that pair's truth", value("other_patient", "shown"), 0.62)
    yield Criterion(f"{other} their own truth", value("other_patient", "original"), 0.32, at_least=False)


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
