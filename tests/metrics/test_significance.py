"""The statistics hold the error rates they state, find what is planted, and do not crash on ties."""

import itertools

import numpy as np
import pytest
from scipy import stats

from lumen_hpc.metrics import significance
from lumen_hpc.metrics.significance import (
    ClusterBootstrap,
    ClusterPermutation,
    Column,
    Contrast,
    Scale,
    exact_bound,
    fewest_patients,
    holm,
    tail_of,
    wilcoxon,
)
from sandbox.null_data import NULLS, rejections


def mean(values) -> Column:
    return Column(np.asarray(values, float), np.ones(len(values)))


def test_wilcoxon_is_scipys_with_an_effect_size():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.5, 1, 80), rng.normal(0, 1, 80)
    test = wilcoxon(x, y)
    assert test.p == stats.wilcoxon(x, y).pvalue
    assert (test.n, test.ties) == (80, 0)
    assert 0.2 < test.effect < 1
    assert wilcoxon(y, x).effect == -test.effect


@pytest.mark.parametrize("pairs", [1, 2, 5, 8, 14, 30])
def test_wilcoxon_of_few_pairs_is_scipys_with_ties_and_equal_values_and_without(pairs):
    rng = np.random.default_rng(pairs)
    tied, distinct = rng.integers(0, 4, (2, 2, pairs)).astype(float), rng.normal(size=(2, 2, pairs))
    for x, y in (*tied, *distinct, (distinct[0][0], np.zeros(pairs)), (np.arange(1.0, pairs + 1), np.zeros(pairs))):
        if (x != y).any():
            assert wilcoxon(x, y).p == pytest.approx(stats.wilcoxon(x, y).pvalue, rel=1e-12)


def test_wilcoxon_of_thirteen_pairs_is_exact():
    x = np.array([2, -1, 3, 3, -2, 5, 1, 0, 4, -1, 2, 6, 2], float)
    ranks = stats.rankdata(np.abs(x[x != 0]))
    sums = np.array(list(itertools.product((0, 1), repeat=len(ranks)))) @ ranks
    tails = [(sums <= ranks[x[x != 0] > 0].sum()).mean(), (sums >= ranks[x[x != 0] > 0].sum()).mean()]
    assert wilcoxon(x, np.zeros(13)).p == pytest.approx(2 * min(tails), rel=1e-12)


@pytest.mark.parametrize("pairs", [13, 60])
def test_differences_that_are_equal_but_for_rounding_tie(pairs):
    before, after = np.random.default_rng(pairs).integers(0, 8, (2, pairs))
    x, y = after / 10, before / 10  # 0.3 - 0.1 is not 0.5 - 0.3
    assert len(set(abs(x - y))) > len(set(abs(after - before)))
    assert wilcoxon(x, y) == wilcoxon(after, before)
    assert wilcoxon(x, y).p == pytest.approx(stats.wilcoxon(after - before).pvalue, rel=1e-12)


@pytest.mark.parametrize("values", [[1.0], [0.0] * 7, [0.3, 0.9, 0.1] * 50, []])
def test_all_equal_inputs_have_p_one(values):
    test = wilcoxon(values, values)
    assert (test.p, test.effect, test.ties) == (1.0, 0.0, len(values))


@pytest.mark.parametrize("x, y", [([1, 0, 1, 1], [0, 0, 0, 1]), ([1], [0]), ([1, 0] * 40, [0, 1] * 40)])
def test_ties_and_tiny_samples_do_not_crash(x, y):
    assert 0 <= wilcoxon(x, y).p <= 1


def test_nan_and_unequal_lengths_are_refused():
    with pytest.raises(ValueError):
        wilcoxon([1.0, np.nan], [0.0, 1.0])
    with pytest.raises(ValueError):
        wilcoxon([1.0], [0.0, 1.0])


def test_wilcoxon_rejects_a_true_null_as_often_as_it_says():
    rng = np.random.default_rng(1)
    # Closed questions, 0 or 1, many ties: the hardest case for a rank test.
    rejected = [wilcoxon(*(rng.random((2, 150)) < 0.7).astype(float)).p < 0.05 for _ in range(600)]
    assert 0.02 < np.mean(rejected) < 0.08


def test_wilcoxon_finds_a_planted_effect():
    rng = np.random.default_rng(2)
    found = [wilcoxon(base + 0.1, base + rng.normal(0, 0.2, 300)).p < 0.001 for base in rng.random((40, 300))]
    assert np.mean(found) > 0.95


def test_holm_is_the_step_down_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_familywise_error():
    rng = np.random.default_rng(3)
    any_rejected = [min(holm(rng.random(12).tolist())) < 0.05 for _ in range(3000)]
    assert np.mean(any_rejected) < 0.065


def test_the_interval_covers_the_truth_when_questions_of_a_patient_are_correlated():
    rng = np.random.default_rng(4)
    covered = naive = 0
    for seed in range(200):
        patients = rng.normal(0.6, 0.2, 60)
        values = (patients[:, None] + rng.normal(0, 0.05, (60, 10))).ravel()
        interval = ClusterBootstrap(np.repeat(np.arange(60), 10), 300, seed).interval(mean(values))
        covered += interval.low <= 0.6 <= interval.high
        half = 1.96 * values.std() / np.sqrt(len(values))
        naive += abs(values.mean() - 0.6) <= half
    assert covered / 200 > 0.89
    assert naive / 200 < 0.6  # what resampling questions instead of patients would claim


def test_the_interval_of_few_patients_has_the_tails_of_students_t():
    values = mean(np.random.default_rng(1).normal(0, 1, 2000))
    interval = ClusterBootstrap(np.repeat(range(10), 200), 20_000, 0).interval(values, scale=Scale(-9, 9))
    means = values.part.reshape(10, 200).mean(1)
    half = stats.t.ppf(0.975, 9) * means.std(ddof=1) / np.sqrt(10)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)  # a plain percentile interval: 0.82 of it
    assert [round(tail_of(n, 0.95), 4) for n in (10, 20, 1000)] == [0.0086, 0.0159, 0.0248]


def test_a_ratio_of_sums_is_resampled_as_one():
    part, whole = np.array([2.0, 0, 4, 6, 3, 3]), np.array([4.0, 0, 4, 8, 4, 4])
    bootstrap = ClusterBootstrap(["a", "a", "b", "c", "d", "e"], 500, 0)
    interval = bootstrap.interval(Column(part, whole))
    assert interval.value == 18 / 24
    assert 0.5 <= interval.low <= 0.75 <= interval.high <= 1


def test_a_paired_difference_has_a_narrower_interval_than_its_parts():
    rng = np.random.default_rng(5)
    base = rng.random(400)
    bootstrap = ClusterBootstrap(range(400), 500, 0)
    better, worse = mean(base + 0.05), mean(base + rng.normal(0, 0.01, 400))
    gap = bootstrap.difference(better, worse)
    own = bootstrap.interval(better)
    assert gap.low > 0
    assert gap.high - gap.low < (own.high - own.low) / 5


def test_where_restricts_value_and_interval():
    values = np.r_[np.zeros(50), np.ones(50)]
    bootstrap = ClusterBootstrap(range(100), 200, 0)
    interval = bootstrap.interval(mean(values), np.arange(100) >= 50)
    assert interval == (1.0, pytest.approx(0.025 ** (1 / 50)), 1.0)


@pytest.mark.parametrize("patients", [5, 30, 300])
def test_a_measure_of_exactly_0_or_1_has_clopper_pearsons_interval_over_patients(patients):
    names = np.repeat(np.arange(patients), 4)
    bootstrap = ClusterBootstrap(names, 50, 0)
    exact = stats.binomtest(patients, patients).proportion_ci()
    assert bootstrap.interval(mean(np.ones(4 * patients))) == (1.0, pytest.approx(exact.low), 1.0)
    assert bootstrap.interval(mean(np.zeros(4 * patients))) == (0.0, 0.0, pytest.approx(1 - exact.low))
    gap = bootstrap.difference(mean(np.ones(4 * patients)), mean(np.ones(4 * patients)))
    assert gap.value == 0 and gap.low == pytest.approx(-gap.high) and gap.high == pytest.approx(1 - exact.low)
    assert exact_bound(patients, 0.95) == pytest.approx(1 - exact.low)


def test_a_judge_that_always_gives_1_of_10_has_the_exact_interval_of_that_scale():
    interval = ClusterBootstrap(range(40), 50, 0).interval(mean(np.ones(40)), scale=Scale(1, 10))
    assert interval == (1.0, 1.0, pytest.approx(1 + 9 * exact_bound(40, 0.95)))


def test_one_patient_has_no_interval_and_nothing_has_no_value():
    alone = ClusterBootstrap(["p"] * 5, 100, 0).interval(mean(np.ones(5)))
    assert alone == (1.0, None, None)
    nothing = Column(np.zeros(3), np.zeros(3))
    bootstrap = ClusterBootstrap("abc", 100, 0)
    assert bootstrap.interval(nothing) == bootstrap.difference(nothing, mean(np.ones(3))) == (None, None, None)
    assert bootstrap.difference(mean(np.ones(3)), nothing) == (None, None, None)


@pytest.mark.parametrize("value", [0.4, 1.0, 0.0])
def test_one_patient_of_many_has_no_interval(value):
    """Every resample of one patient says the same, which would be an interval without width."""
    bootstrap = ClusterBootstrap(np.repeat(range(20), 2), 200, 0)
    first = Column(value * (np.arange(40) < 2), (np.arange(40) < 2).astype(float))
    none = Column(np.zeros(40), first.whole)
    assert bootstrap.interval(first) == (value, None, None)
    assert bootstrap.difference(first, none) == (value, None, None)


@pytest.mark.parametrize(("confidence", "fewest"), [(0.8, 4), (0.95, 5), (0.99, 7)])
def test_few_patients_have_no_interval_from_the_least_of_them_to_the_most(confidence, fewest):
    assert fewest_patients(confidence) == fewest
    for patients in range(2, fewest + 1):
        values, other = (mean(np.random.default_rng(seed).random(patients)) for seed in (1, 2))
        bootstrap = ClusterBootstrap(range(patients), 500, 0, confidence)
        for interval in (bootstrap.interval(values), bootstrap.difference(values, other)):
            assert (interval.low is None, interval.high is None) == (patients < fewest,) * 2


def test_a_difference_has_an_interval_where_both_measures_have_patients_enough():
    many, few = mean(np.linspace(0, 1, 30)), Column(np.linspace(0, 1, 30) * (np.arange(30) < 4), np.arange(30) < 4)
    bootstrap = ClusterBootstrap(range(30), 200, 0)
    for one, other in ((many, few), (few, many)):
        assert bootstrap.difference(one, other)[1:] == (None, None)


def test_every_interval_that_is_given_holds_the_truth_about_as_often_as_it_says():
    patients, shares = fewest_patients(0.95), []
    for seed in range(300):
        values = mean(np.random.default_rng(seed).normal(0.5, 0.1, patients))
        interval = ClusterBootstrap(range(patients), 200, seed).interval(values)
        shares.append(interval.low <= 0.5 <= interval.high)
    assert 0.88 <= np.mean(shares) <= 0.98


@pytest.mark.parametrize("patients", [2, 30])
def test_patients_who_are_all_alike_have_no_interval(patients):
    """An interval without width would say that every other patient is as these are."""
    bootstrap = ClusterBootstrap(np.repeat(range(patients), 3), 200, 0)
    one, other = mean(np.full(3 * patients, 0.4)), mean(np.full(3 * patients, 0.1))
    assert bootstrap.interval(one) == (pytest.approx(0.4), None, None)
    assert bootstrap.difference(one, other) == (pytest.approx(0.3), None, None)
    assert bootstrap.difference(one, one) == (0, None, None)


def test_the_same_seed_draws_the_same_patients():
    values = mean(np.random.default_rng(6).random(30))
    first, again, other = (ClusterBootstrap(range(30), 100, seed).interval(values) for seed in (1, 1, 2))
    assert first == again != other


def contrast(one, other) -> Contrast:
    return Contrast(one, other, np.ones(len(one.part), bool))


@pytest.mark.parametrize("null", NULLS, ids=lambda null: null.name)
def test_the_star_rejects_a_true_null_at_most_as_often_as_it_says(null):
    """400 evaluations a line; benchmarks/significance.py prints the same for 2,000."""
    assert rejections(null, 400, seed=7)["star"] <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 400)


def test_the_papers_test_rejects_a_true_null_of_correlated_questions_far_too_often():
    assert rejections(NULLS[2], 200, seed=8)["Wilcoxon"] > 0.2


def test_a_permutation_test_of_one_question_a_patient_is_the_sign_flip_test():
    one, other = mean([1.0, 1, 1, 0, 1, 1, 1, 1]), mean([0.0, 0, 0, 0, 0, 0, 0, 1])
    (p,) = ClusterPermutation(range(8), 20_000, 0).p([contrast(one, other)])
    assert p == pytest.approx(2 * 0.5**6, rel=0.1)  # six untied patients, all of one sign


def test_permutations_exchange_whole_patients():
    """Ten questions of one patient are one observation: no p below 1 with a single patient that differs."""
    patients = np.repeat([0, 1, 2], 10)
    one, other = mean(np.r_[np.ones(10), np.zeros(20)]), mean(np.zeros(30))
    assert ClusterPermutation(patients, 999, 0).p([contrast(one, other)]) == [1.0]
    assert wilcoxon(one.values(), other.values()).p < 0.01


def test_a_planted_difference_is_found_and_contrasts_are_tested_together():
    rng = np.random.default_rng(9)
    base = rng.random(400)
    better, same = mean(base + 0.1), mean(base + rng.normal(0, 0.2, 400))
    tests = [contrast(better, mean(base)), contrast(same, mean(base)), contrast(mean(base), mean(base))]
    together = ClusterPermutation(np.repeat(range(200), 2), 5000, 1).p(tests)
    assert together[0] == 1 / 5001 and together[1] > 0.01 and together[2] == 1.0
    assert ClusterPermutation(np.repeat(range(200), 2), 5000, 1).p(tests[:1]) == together[:1]


def test_many_patients_give_what_one_block_gives(monkeypatch):
    """Memory is bounded by blocks; the numbers do not depend on them."""
    rng = np.random.default_rng(3)
    clusters = rng.integers(200, size=1500).tolist()
    columns = [significance.Column(rng.random(1500), np.ones(1500)) for _ in range(2)]

    def found():
        bootstrap = significance.ClusterBootstrap(clusters, 300, seed=0)
        contrast = significance.Contrast(*columns, np.ones(1500, bool))
        p = significance.ClusterPermutation(clusters, 500, seed=0).p([contrast])
        return bootstrap.interval(columns[0]), bootstrap.difference(*columns), p

    whole = found()
    monkeypatch.setattr(significance, "_BLOCK", 1000)
    blocks = found()
    for one, other in zip(whole[:2], blocks[:2]):
        assert list(one) == pytest.approx(list(other), rel=1e-12)
    assert whole[2] == blocks[2]
