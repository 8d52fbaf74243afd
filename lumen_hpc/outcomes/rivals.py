"""The competing rows of the prognosis table: what a model must beat before its claim means anything.

Logistic regression and gradient boosting of scikit-learn on what is known without reading the image, on the experts'
probabilities, and on both. Each learns on the train split and takes its one free setting from the val split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lumen_hpc.outcomes.features import Cohort

Array = np.ndarray

ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "prevalence": ("prevalence", ()),
    "age and sex": ("regression", ("age and sex",)),
    "laboratory values, regression": ("regression", ("age and sex", "laboratory values")),
    "laboratory values, boosting": ("boosting", ("age and sex", "laboratory values")),
    "experts": ("regression", ("experts",)),
    "experts and laboratory values, regression": ("regression", ("age and sex", "laboratory values", "experts")),
    "experts and laboratory values, boosting": ("boosting", ("age and sex", "laboratory values", "experts")),
    "experts of three images and laboratory values": (
        "regression",
        ("age and sex", "laboratory values", "experts", "experts before"),
    ),
}
"""Row → (model, groups of columns). Rows with laboratory values know age, sex and place too."""

PENALTIES = (0.003, 0.03, 0.3, 3.0)
TREE_COUNTS = (20, 50, 100, 200)


def predict(cohort: Cohort, row: str, seed: int) -> Array | None:
    """The row's probabilities for all samples; None where its columns are not there, or nothing to learn from is.

    Learned on the train split; the penalty or number of trees is the one with the least log loss on val.
    """
    from threadpoolctl import threadpool_limits

    model, groups = ROWS[row]
    train, val = cohort.split == "train", cohort.split == "val"
    outcome = cohort.outcome
    if not train.any():
        return None
    if model == "prevalence" or len(set(outcome[train].tolist())) < 2:
        return np.full(len(outcome), outcome[train].mean())
    if any(group not in cohort.columns for group in groups):
        return None
    x = np.concatenate([cohort.columns[group] for group in groups], axis=1)
    x = x[:, ~np.isnan(x[train]).all(0)]  # what was never measured says nothing
    with threadpool_limits(1):  # tables this small are slower on many threads
        if model == "regression":
            x = _impute(x, train)
            candidates = [_regression(x, outcome, train, penalty) for penalty in PENALTIES]
        else:
            candidates = _boosting(x, outcome, train, seed)
    selection_split = val if val.any() and len(set(outcome[val].tolist())) == 2 else train
    return min(candidates, key=lambda p: _log_loss(outcome[selection_split], p[selection_split]))


def _impute(x: Array, train: Array) -> Array:
    """Standardised columns with the training median where a value is missing, and a column for each that can be."""
    missing = np.isnan(x)
    filled = np.where(missing, np.nanmedian(x[train], axis=0), x)
    spread = filled[train].std(0)
    filled = (filled - filled[train].mean(0)) / np.where(spread > 0, spread, 1)
    return np.concatenate([np.clip(filled, -6, 6), missing[:, missing[train].any(0)]], axis=1)


def _regression(x: Array, outcome: Array, train: Array, penalty: float) -> Array:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, max_iter=2000).fit(x[train], outcome[train])
    return model.predict_proba(x)[:, 1]


def _boosting(x: Array, outcome: Array, train: Array, seed: int) -> list[Array]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=max(TREE_COUNTS), learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=20, random_state=seed,
        early_stopping=False,
    ).fit(x[train], outcome[train])  # fmt: skip
    return [p[:, 1] for step, p in enumerate(model.staged_predict_proba(x), 1) if step in TREE_COUNTS]


def _log_loss(outcome: Array, probability: Array) -> float:
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    return float(-np.where(outcome, np.log(p), np.log1p(-p)).mean())


def available(cohort: Cohort) -> Sequence[str]:
    """Rows whose columns are there."""
    return [row for row, (_, groups) in ROWS.items() if all(group in cohort.columns for group in groups)]
