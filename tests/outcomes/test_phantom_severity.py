"""The oracles: calibrated, ordered by what they know, and without skill where nothing drives the outcome."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lumen_hpc.data import phantom_states as ps
from lumen_hpc.outcomes import phantom_severity as severity


def drawn(count: int, films: int, effect: float, seed: int = 3) -> tuple[list[severity.Known], np.ndarray]:
    """Films with their outcome, drawn as the phantoms' tables draw them."""
    rng = np.random.default_rng(seed)
    known, outcome = [], []
    for _ in range(count):
        study = ps.draw_first(rng)
        burdens = [severity.burden(study)]
        for _ in range(films - 1):
            study = ps.draw_next(study, ps.draw_days(rng), rng)
            burdens.append(severity.burden(study))
        age, s = rng.normal(60, 15), severity.scaled(burdens[-1]) + rng.normal()
        trend = burdens[-1] - burdens[-3] if films > 2 else 0
        labs = {
            name: marker.mean + marker.spread * (marker.slope * s + rng.normal())
            for name, marker in severity.MARKERS.items()
            if rng.random() < 0.8
        }
        known.append(severity.Known(age, tuple(burdens), labs))
        outcome.append(rng.random() < severity.sigmoid(severity.logit(age, s, trend, effect)))
    return known, np.array(outcome)


@pytest.mark.parametrize("films", [1, 3])
@pytest.mark.parametrize("name", severity.ORACLES)
def test_an_oracle_is_calibrated_in_every_fifth_of_its_predictions(name: str, films: int) -> None:
    known, outcome = drawn(4000, films, 1.0)
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


def test_the_burdens_of_three_films_are_those_of_the_phantoms() -> None:
    known, _ = drawn(20_000, 3, 1.0)
    counted = np.zeros((9, 9, 9))
    for film in known:
        counted[film.burdens] += 1 / len(known)
    exact = severity._joint(3)
    assert exact.sum() == pytest.approx(1)
    assert np.abs(counted - exact).max() < 0.006
