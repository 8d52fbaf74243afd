"""The oracles: calibrated, ordered by what they know, and without skill where nothing drives the outcome."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lumen_hpc.outcomes import phantom_severity as severity
from tests.outcomes.drawn_studies import drawn


@pytest.mark.parametrize("studies", [1, 3])
@pytest.mark.parametrize("name", severity.ORACLES)
def test_an_oracle_is_calibrated_in_every_fifth_of_its_predictions(name: str, studies: int) -> None:
    known, outcome = drawn(4000, studies, 1.0)
    predicted = severity.oracle(name, known, 1.0)
    for part in np.array_split(np.argsort(predicted, kind="stable"), 5):
        expected, error = predicted[part].mean(), np.sqrt(np.mean(predicted[part] * (1 - predicted[part])) / len(part))
        assert abs(outcome[part].mean() - expected) < 4 * error


def test_each_piece_of_information_adds() -> None:
    known, outcome = drawn(6000, 3, 1.0)
    found = {name: roc_auc_score(outcome, severity.oracle(name, known, 1.0)) for name in severity.ORACLES}
    assert found["age"] < 0.6
    assert found["image and laboratory values"] > found["laboratory values"] + 0.04
    assert found["image and laboratory values"] > found["image"] + 0.01
    assert found["three images and laboratory values"] > found["two images and laboratory values"] + 0.03


def test_without_an_effect_every_oracle_says_the_same_of_everyone() -> None:
    known, _ = drawn(50, 3, 0.0)
    for name in severity.ORACLES:
        np.testing.assert_allclose(severity.oracle(name, known, 0.0), severity.sigmoid(severity.BASE))


def test_the_burdens_of_three_studies_are_those_of_the_phantoms() -> None:
    known, _ = drawn(20_000, 3, 1.0)
    counted = np.zeros((4, 4, 4))
    for study in known:
        counted[study.burdens] += 1 / len(known)
    exact = severity._joint(3)
    assert exact.sum() == pytest.approx(1)
    assert np.abs(counted - exact).max() < 0.006
