"""The gates of a demo with outcomes: an oracle passes them, and each kind of failure fails its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lumen_hpc.outcomes import rivals
from lumen_hpc.outcomes.phantom_severity import oracle
from lumen_hpc.outcomes.scoring import score
from lumen_hpc.report.outcome_criteria import ORACLE, outcome_criteria
from tests.outcomes.drawn_studies import cohort

MODEL = "lumen-outcomes"


@pytest.fixture(scope="module")
def made() -> tuple:
    found, known = cohort(2400, 1.0, seed=4)
    labs = {row: rivals.predict(found, row, 0) for row in rivals.ROWS if row.startswith("laboratory")}
    return found, known, labs


def failed(made: tuple, full: np.ndarray, two: np.ndarray) -> list[str]:
    found, _, labs = made
    models = {MODEL: full, f"{MODEL}, two images": two}
    pairs = [(MODEL, other) for other in (*labs, f"{MODEL}, two images")]
    table: dict[str, Any] = score(found, labs, models, resamples=200, seed=0, pairs=pairs)
    table["oracles"] = {ORACLE: 0.9}
    return [gate.name for gate in outcome_criteria(table, MODEL) if not gate.passed]


def test_an_oracle_passes(made: tuple) -> None:
    _, known, _ = made
    assert failed(made, oracle(ORACLE, known, 1.0), oracle("two images and laboratory values", known, 1.0)) == []


def test_a_model_of_laboratory_values_alone_fails_where_it_should(made: tuple) -> None:
    _, known, _ = made
    labs = oracle("laboratory values", known, 1.0)
    assert set(failed(made, labs, labs)) >= {"AUROC gained from a third visit, lower bound", "AUROC below the oracle"}


def test_an_overconfident_model_fails_on_its_slope_alone(made: tuple) -> None:
    _, known, _ = made
    full, two = oracle(ORACLE, known, 1.0), oracle("two images and laboratory values", known, 1.0)
    sharp = 1 / (1 + np.exp(-2 * np.log(full / (1 - full))))
    assert failed(made, sharp, two) == ["calibration slope"]


def test_what_was_not_measured_fails() -> None:
    assert not any(gate.passed for gate in outcome_criteria({}, MODEL))
