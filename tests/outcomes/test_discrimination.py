"""AUROC, AUPRC and Brier score equal scikit-learn's, weighted and tied; intervals resample patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from lumen_hpc.metrics.significance import tail_of
from lumen_hpc.outcomes import discrimination
from lumen_hpc.outcomes.discrimination import Resamples, value
from sandbox.null_data import auroc_coverage

THEIRS = {"auroc": roc_auc_score, "auprc": average_precision_score, "brier": brier_score_loss}


def drawn(seed: int, n: int = 300, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    p = rng.random(n).round(1 if ties else 9)
    return rng.random(n) < p, p, rng


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_each_measure_is_scikit_learn_s(name: str, ties: bool) -> None:
    for seed in range(20):
        outcome, p, rng = drawn(seed, 80 + seed, ties)
        weights = rng.integers(0, 4, (3, len(p))).astype(float)
        ours = discrimination.MEASURES[name](outcome, p, weights)
        theirs = [THEIRS[name](outcome, p, sample_weight=weight) for weight in weights]
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_one_class_alone_has_no_auroc() -> None:
    p = np.array([0.1, 0.4])
    assert np.isnan(value(discrimination.auroc, np.array([True, True]), p))
    assert Resamples("ab", 10, 0).interval(discrimination.auroc, np.array([True, True]), p) == (None, None, None)


def test_where_no_resample_differs_there_are_no_bounds() -> None:
    outcome = np.array([True] * 5 + [False] * 40)
    assert Resamples(range(45), 100, 0).interval(discrimination.auroc, outcome, outcome * 0.5) == (1.0, None, None)


def test_an_error_without_enough_cases_has_no_bounds() -> None:
    """The Brier score is defined in every resample, whatever the number of cases."""
    p = np.linspace(0.1, 0.9, 40)
    for cases in range(7):
        found = Resamples(range(40), 100, 0).interval(discrimination.brier, np.arange(40) < cases, p)
        assert (found.low is None, found.high is None) == (cases < 5,) * 2 and found.value is not None


def test_a_resample_takes_all_samples_of_a_patient_or_none() -> None:
    """Every patient has one sample that is right and one that is wrong, so that half is wrong in every resample."""
    outcome, p = np.tile([True, False], 50), np.ones(100)
    values = Resamples(np.repeat(np.arange(50), 2).tolist(), 200, 0).values(discrimination.brier, outcome, p)
    np.testing.assert_allclose(values, 0.5)


def test_an_interval_is_of_the_samples_asked_for_and_of_its_confidence() -> None:
    """Against patients drawn one by one."""
    outcome, p, rng = drawn(3, 120)
    patients, where = np.repeat(np.arange(60), 2), rng.random(120) < 0.6
    found = Resamples(patients.tolist(), 150, 7, confidence=0.8).interval(discrimination.auroc, outcome, p, where)
    assert found.value == pytest.approx(roc_auc_score(outcome[where], p[where]))
    again, values = np.random.default_rng(7), []
    for _ in range(150):
        chosen = [k for patient in again.integers(60, size=60) for k in np.flatnonzero((patients == patient) & where)]
        values.append(roc_auc_score(outcome[chosen], p[chosen]))
    scarcest = min(len(set(patients[where & side])) for side in (outcome, ~outcome))
    tail = tail_of(scarcest, 0.8)
    assert 0.08 < tail < 0.1 and (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [tail, 1 - tail])))


def test_the_interval_of_few_cases_is_as_wide_as_they_allow() -> None:
    """A plain percentile interval of 9 cases among 60 holds the truth in 88 % (`benchmarks/significance.py auroc`)."""
    shares = auroc_coverage(60, 0.15, 200, 0)
    assert shares["plain"] + 0.03 < shares["interval"] and 0.92 <= shares["interval"] <= 0.99


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        outcome = rng.random(150) < 0.4
        score = rng.normal(size=150) + outcome  # two normals one apart: AUROC = Phi(1 / sqrt 2) = 0.7602
        found = Resamples(range(150), 200, seed).interval(discrimination.auroc, outcome, score)
        held += found.low < 0.7602 < found.high
    assert 0.90 <= held / 200 <= 0.99


def test_a_difference_is_paired() -> None:
    outcome, p, rng = drawn(1, 400)
    noisy = np.clip(p + rng.normal(scale=0.02, size=400), 0, 1)
    resamples = Resamples(range(400), 500, 0)
    paired, chance = resamples.difference(discrimination.auroc, outcome, p, noisy)
    alone = resamples.interval(discrimination.auroc, outcome, p)
    assert paired.high - paired.low < (alone.high - alone.low) / 4
    assert 0 < chance <= 1
    same, chance = resamples.difference(discrimination.auroc, outcome, p, p)
    assert same == (0, None, None) and chance == 1


def test_a_difference_is_one_minus_the_other_with_the_p_of_its_resamples() -> None:
    outcome, p, rng = drawn(1, 200)
    chance_alone = rng.random(200)
    resamples = Resamples(range(200), 199, 0)
    found, least = resamples.difference(discrimination.auroc, outcome, p, chance_alone)
    assert found.value == pytest.approx(roc_auc_score(outcome, p) - roc_auc_score(outcome, chance_alone))
    assert found.low > 0 and least == 2 / 200
    back, again = resamples.difference(discrimination.auroc, outcome, chance_alone, p)
    assert back == pytest.approx((-found.value, -found.high, -found.low)) and again == least


def test_skill_is_none_for_the_prevalence_and_all_for_the_truth() -> None:
    outcome, _, _ = drawn(2)
    assert value(discrimination.brier_skill, outcome, np.full(300, outcome.mean())) == pytest.approx(0)
    assert value(discrimination.brier_skill, outcome, outcome.astype(float)) == 1
