"""Kaplan-Meier and Harrell's concordance equal lifelines', with ties and censoring."""

from __future__ import annotations

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index

from lumen_hpc.outcomes.survival import concordance, kaplan_meier


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=120).round(1)
    return np.ceil(rng.exponential(40 * np.exp(-risk))), rng.random(120) < 0.6, risk


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_is_lifelines_s(seed: int) -> None:
    days, died, _ = drawn(seed)
    times, alive = kaplan_meier(days, died)
    theirs = KaplanMeierFitter().fit(days, died).survival_function_at_times(times)
    np.testing.assert_allclose(alive, theirs.to_numpy())


@pytest.mark.parametrize("seed", range(5))
def test_concordance_is_lifelines_s(seed: int) -> None:
    days, died, risk = drawn(seed)
    assert concordance(days, died, risk) == pytest.approx(concordance_index(days, -risk, died))


def test_without_a_death_there_is_no_concordance() -> None:
    assert np.isnan(concordance(np.array([1.0, 2.0]), np.array([False, False]), np.array([0.1, 0.2])))


def test_concordance_with_weights_is_that_of_the_patients_drawn_so_often() -> None:
    days, died, risk = drawn(1)
    weights = np.random.default_rng(0).integers(0, 3, (4, len(days))).astype(float)
    for weight, found in zip(weights, concordance(days, died, risk, weights), strict=True):
        chosen = np.repeat(np.arange(len(days)), weight.astype(int))
        assert found == pytest.approx(concordance_index(days[chosen], -risk[chosen], died[chosen]))
