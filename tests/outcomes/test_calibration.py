"""Calibration lines equal scikit-learn's unpenalised regression; curves and operating points their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_curve

from lumen_hpc.outcomes import calibration


def drawn(seed: int, n: int = 2000, slope: float = 1.0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes whose log-odds are shift + slope * logit(p)."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(-1, 1.2, n)))
    return rng.random(n) < calibration.Line(slope, shift).apply(p), p


@pytest.mark.parametrize("seed", range(5))
def test_slope_and_intercept_are_those_of_an_unpenalised_regression(seed: int) -> None:
    outcome, p = drawn(seed, slope=0.6, shift=0.3)
    weights = np.random.default_rng(seed).integers(0, 3, len(p)).astype(float)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    theirs.fit(calibration.logit(p)[:, None], outcome, sample_weight=weights)
    line = calibration.fit(outcome, p, weights)
    assert line.slope == pytest.approx(theirs.coef_[0, 0], abs=1e-4)
    assert line.intercept == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_a_known_miscalibration_is_found_and_recalibration_undoes_it() -> None:
    outcome, p = drawn(1, 40_000, slope=0.5, shift=-0.4)
    line = calibration.fit(outcome, p)
    assert line.slope == pytest.approx(0.5, abs=0.03) and line.intercept == pytest.approx(-0.4, abs=0.05)
    again = calibration.fit(outcome, line.apply(p))
    assert again.slope == pytest.approx(1) and again.intercept == pytest.approx(0, abs=1e-9)
    assert calibration.in_the_large(outcome, line.apply(p)) == pytest.approx(0, abs=1e-6)


def test_predictions_that_allow_no_line_have_none() -> None:
    outcome = np.array([True, False, True])
    assert np.isnan(calibration.fit(outcome, np.full(3, 0.4)).slope)
    assert np.isnan(calibration.fit(np.ones(3, bool), np.array([0.1, 0.2, 0.3])).slope)
    assert np.isnan(calibration.fit(outcome, np.array([0.9, 0.1, 0.8])).slope), "separated"
    assert np.isnan(calibration.in_the_large(np.ones(3, bool), np.array([0.1, 0.2, 0.3])))


def test_risks_that_are_far_off_have_their_intercept_in_the_large() -> None:
    outcome, surest = np.arange(100) < 20, np.full(100, 1 - calibration.LOGIT_MARGIN)
    shift = float(calibration.logit(np.array([0.2]))[0] - calibration.logit(surest[:1])[0])
    assert calibration.in_the_large(outcome, surest) == pytest.approx(shift)


def test_a_risk_of_one_in_a_hundred_thousand_keeps_its_logit_and_a_risk_of_none_has_one() -> None:
    logits = calibration.logit(np.array([0, 1e-5, 0.5, 1]))
    np.testing.assert_allclose(logits, np.log([1e-6 / (1 - 1e-6), 1e-5 / (1 - 1e-5), 1, (1 - 1e-6) / 1e-6]), atol=1e-9)


def test_the_curve_is_scikit_learn_s() -> None:
    outcome, p = drawn(2)
    observed, predicted = calibration_curve(outcome, p, n_bins=10, strategy="quantile")
    ours = calibration.curve(outcome, p)
    np.testing.assert_allclose([part["observed"] for part in ours], observed)
    np.testing.assert_allclose([part["predicted"] for part in ours], predicted)
    assert all(part["low"] <= part["observed"] <= part["high"] for part in ours)


def test_net_benefit_follows_its_definition() -> None:
    outcome, p = drawn(3)
    (found,) = calibration.decision_curve(outcome, p, [0.25])
    (_, false), (_, true) = confusion_matrix(outcome, p >= 0.25)
    assert found["model"] == pytest.approx((true - false / 3) / len(p))
    (rounded,) = calibration.decision_curve(outcome, np.full(len(p), 0.25), [0.25])
    assert rounded["model"] == pytest.approx(rounded["all"]), "a probability that is the threshold reaches it"
    everyone = calibration.decision_curve(outcome, np.ones(len(p)), [0.25])[0]
    assert everyone["all"] == pytest.approx(everyone["model"])


@pytest.mark.parametrize("sensitivity", [0.5, 0.8, 0.9, 1.0])
def test_an_operating_point_is_the_highest_threshold_that_reaches_its_sensitivity(sensitivity: float) -> None:
    outcome, p = drawn(4, 500)
    false, true, _ = roc_curve(outcome, p, drop_intermediate=False)
    point = calibration.operating_point(outcome, p, sensitivity)
    first = int(np.argmax(true >= sensitivity - 1e-12))
    assert point["sensitivity"] == pytest.approx(true[first])
    assert point["specificity"] == pytest.approx(1 - false[first])
    flagged = p >= point["threshold"]
    assert point["number_needed"] == pytest.approx(flagged.sum() / (flagged & outcome).sum())
    assert point["ppv"] == pytest.approx(1 / point["number_needed"])
    if (~flagged).any():
        assert point["npv"] == pytest.approx((~flagged & ~outcome).sum() / (~flagged).sum())


def test_a_resample_has_the_intercept_and_the_operating_point_of_the_patients_it_drew() -> None:
    outcome, p = drawn(5, 300)
    p = p.round(2)
    weights = np.random.default_rng(0).integers(0, 3, (3, 300)).astype(float)
    intercepts = calibration.in_the_large(outcome, p, weights)
    for place, weight in enumerate(weights):
        chosen = np.repeat(np.arange(300), weight.astype(int))
        assert intercepts[place] == pytest.approx(calibration.in_the_large(outcome[chosen], p[chosen])[0])
        for sensitivity in (0.8, 1.0):
            point = calibration.operating_point(outcome[chosen], p[chosen], sensitivity)
            for name in ("specificity", "number_needed"):
                found = calibration.at_sensitivity(sensitivity, name)(outcome, p, weights)[place]
                assert found == pytest.approx(point[name])


def test_a_resample_without_cases_has_neither_intercept_nor_operating_point() -> None:
    outcome, p, weights = np.array([True, False]), np.array([0.4, 0.2]), np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])
    assert np.isnan(calibration.in_the_large(outcome, p, weights)).tolist() == [True, False, True]
    needed, specificity = (
        calibration.at_sensitivity(0.8, name)(outcome, p, weights) for name in ("number_needed", "specificity")
    )
    assert np.isnan(needed).tolist() == [True, False, False] and needed[1] == 1
    assert np.isnan(specificity).tolist() == [True, False, True] and specificity[1] == 1
