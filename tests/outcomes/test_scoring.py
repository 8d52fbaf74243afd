"""The prognosis table: rivals as strong as their information allows, models judged against the strongest."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lumen_hpc.outcomes import rivals
from lumen_hpc.outcomes.phantom_severity import oracle
from lumen_hpc.outcomes.scoring import score
from tests.outcomes.drawn_studies import cohort


@pytest.fixture(scope="module")
def made() -> tuple:
    found, known = cohort(2400, 1.0, seed=1)
    rows = {row: rivals.predict(found, row, seed=0) for row in rivals.ROWS}
    return found, known, rows


CEILINGS = {
    "age and sex": "age",
    "laboratory values, regression": "laboratory values",
    "laboratory values, boosting": "laboratory values",
    "experts and laboratory values, regression": "image and laboratory values",
    "experts of three images and laboratory values": "three images and laboratory values",
}


@pytest.mark.parametrize("row", CEILINGS)
def test_a_rival_comes_near_the_oracle_of_its_information_and_not_above(made: tuple, row: str) -> None:
    found, known, rows = made
    test = found.split == "test"
    reached = roc_auc_score(found.outcome[test], rows[row][test])
    ceiling = roc_auc_score(found.outcome[test], oracle(CEILINGS[row], known, 1.0)[test])
    assert ceiling - 0.06 < reached < ceiling + 0.02


def test_the_prevalence_ranks_nobody(made: tuple) -> None:
    found, _, rows = made
    assert set(rows["prevalence"]) == {found.outcome[found.split == "train"].mean()}


def test_no_test_outcome_reaches_a_rival(made: tuple) -> None:
    found, _, rows = made
    flipped = found.outcome ^ (found.split == "test")
    other = rivals.predict(type(found)(**{**vars(found), "outcome": flipped}), "laboratory values, boosting", seed=0)
    np.testing.assert_array_equal(other, rows["laboratory values, boosting"])


def test_no_test_value_reaches_what_a_rival_fills_in_or_scales_by() -> None:
    rng = np.random.default_rng(0)
    x, train = rng.normal(size=(40, 3)), np.arange(40) < 25
    x[rng.random(x.shape) < 0.2] = np.nan
    other = np.where(train[:, None], x, 5 * x + 3)
    np.testing.assert_array_equal(rivals._impute(x, train)[train], rivals._impute(other, train)[train])


def test_the_oracle_beats_the_strongest_rival_and_is_calibrated(made: tuple) -> None:
    found, known, rows = made
    labs = {name: p for name, p in rows.items() if "experts" not in name}
    models = {"oracle": oracle("three images and laboratory values", known, 1.0)}
    table = score(found, labs, models, resamples=300, seed=0)
    assert table["strongest"].startswith("laboratory values")
    difference = table["differences"]["oracle"]
    assert difference["auroc"].low > 0.05 and difference["p (Holm)"] < 0.01
    slope = table["rows"]["oracle"]["slope"]
    assert 0.8 < slope.value < 1.2 and slope.low < 1 < slope.high
    assert set(table["rows"]) == {*labs, "oracle"}
    point = table["rows"]["oracle"]["operating"][0]
    assert point["sensitivity"] >= 0.8 and point["number_needed"] < 1 / found.outcome.mean()
    for cells, name in ((table["rows"]["oracle"], "in the large"), (point, "specificity"), (point, "number_needed")):
        low, high = cells[f"{name}, bounds"]
        assert low < cells[name] < high


def test_subgroups_have_their_gap_and_small_ones_no_row(made: tuple) -> None:
    found, known, rows = made
    few = {name: rows[name] for name in ("prevalence", "age and sex")}
    table = score(found, few, {"oracle": oracle("image", known, 1.0)}, resamples=200, seed=0)
    sexes = table["subgroups"]["oracle"]["sex"]
    assert set(sexes["parts"]) == {"F", "M"} and sexes["gap"]["auroc"].low < 0.1
    assert sum(part["patients"] for part in sexes["parts"].values()) == table["patients"]
    women = np.array([sex == "F" for sex in found.subgroups["sex"]]) & (found.split == "test")
    expected = oracle("image", known, 1.0)[women].sum()
    low, high = sexes["parts"]["F"]["observed over expected, bounds"]
    assert low < sexes["parts"]["F"]["observed over expected"] == pytest.approx(found.outcome[women].sum() / expected)
    assert sexes["parts"]["F"]["observed over expected"] < high
    others = sum(race == "other" for race, split in zip(found.subgroups["race"], found.split) if split == "test")
    assert ("other" in table["subgroups"]["oracle"]["race"]["parts"]) == (others >= 20)


def test_recalibration_on_val_repairs_the_slope(made: tuple) -> None:
    found, known, rows = made
    p = oracle("three images and laboratory values", known, 1.0)
    extreme = 1 / (1 + np.exp(-2.5 * np.log(p / (1 - p))))
    table = score(found, {"prevalence": rows["prevalence"]}, {"extreme": extreme}, resamples=200, seed=0)
    row, test = table["rows"]["extreme"], found.split == "test"
    assert row["slope"].value == pytest.approx(0.4, abs=0.1)
    assert row["recalibrated"]["slope"] == pytest.approx(1, abs=0.25)
    assert row["recalibrated"]["brier"].value < row["brier"].value
    assert row["auroc"].value == pytest.approx(roc_auc_score(found.outcome[test], p[test]))


def test_recalibration_learns_on_val_alone(made: tuple) -> None:
    found, known, rows = made
    p = oracle("three images and laboratory values", known, 1.0)
    logit = np.log(p / (1 - p)) * np.where(found.split == "val", 2.5, 1)  # what val teaches is wrong elsewhere
    row = score(found, {"prevalence": rows["prevalence"]}, {"m": 1 / (1 + np.exp(-logit))}, resamples=20, seed=0)[
        "rows"
    ]["m"]
    assert row["slope"].value == pytest.approx(1, abs=0.25)
    assert row["recalibrated"]["slope"] == pytest.approx(2.5, abs=0.6)


def test_rows_are_judged_on_the_patients_that_all_of_them_answered(made: tuple) -> None:
    found, known, rows = made
    p = oracle("image", known, 1.0)
    p[np.flatnonzero(found.split == "test")[:7]] = np.nan
    table = score(found, {"prevalence": rows["prevalence"]}, {"image": p}, resamples=50, seed=0)
    assert table["unanswered"] == 7 and table["patients"] == (found.split == "test").sum() - 7


def test_without_events_nothing_is_judged() -> None:
    found, _ = cohort(60, 0.0, seed=2)
    found.outcome[:] = False
    assert "rows" not in score(found, {"prevalence": np.zeros(60)}, {}, resamples=10, seed=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("answered", [True, False])
def test_without_patients_to_learn_from_the_reason_is_named_and_none_counts_as_unanswered(answered: bool) -> None:
    found, _ = cohort(60, 1.0, seed=1)
    found = type(found)(**{**vars(found), "split": np.full(len(found.split), "test")})
    assert [rivals.predict(found, row, seed=0) for row in rivals.ROWS] == [None] * len(rivals.ROWS)
    models = {"model": np.full(len(found.split), 0.5)} if answered else {}
    table = score(found, {}, models, resamples=10, seed=0)
    assert "train split" in table["unjudged"] and "rows" not in table
    assert (table["patients"], table["unanswered"], table["train"]) == (60, 0, 0)


def test_where_nothing_drives_the_outcome_nothing_is_found() -> None:
    """Ten data sets without an effect: what the image adds to laboratory values is above 0 at most twice.

    Each interval leaves 2.5 % above; three or more of ten would come by chance once in 500 times.
    """
    discoveries = 0
    for seed in range(10):
        found, _ = cohort(900, 0.0, seed=100 + seed)
        labs = rivals.predict(found, "laboratory values, regression", seed)
        images = rivals.predict(found, "experts of three images and laboratory values", seed)
        table = score(found, {"labs": labs}, {"images": images}, resamples=300, seed=seed)
        discoveries += table["differences"]["images"]["auroc"].low > 0
    assert discoveries <= 2
