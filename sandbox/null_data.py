"""Null data for the tables' tests: two models of equal skill on the same patients, as the paper's data are shaped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm, t

from lumen_hpc.metrics.significance import ClusterBootstrap, ClusterPermutation, Column, Contrast, wilcoxon
from lumen_hpc.outcomes.discrimination import Resamples, auroc
from lumen_hpc.outcomes.scoring import FEWEST_EVENTS

ALPHA = 0.05


@dataclass(frozen=True)
class Null:
    """Two models of equal skill on the same patients."""

    name: str
    patients: int
    questions: int
    """Mean number of a patient's questions, drawn geometrically."""
    skill: float
    """Share of questions answered right by either model."""
    spread: float
    """How much a model's skill differs between patients; 0: questions are independent."""
    micro: bool = False
    """A ratio of sums with unequal wholes, as change F1, in place of a mean."""


NULLS = (
    Null("independent questions", 100, 1, 0.7, 0.0),
    Null("correlated questions", 100, 5, 0.7, 0.25),
    Null("strongly correlated questions", 60, 10, 0.6, 0.4),
    Null("boundary proportion 0.98", 60, 5, 0.98, 0.1),
    Null("boundary proportion 0.02", 60, 5, 0.02, 0.1),
    Null("micro F1, correlated", 100, 5, 0.7, 0.25, micro=True),
)


def draw(null: Null, rng: np.random.Generator) -> tuple[np.ndarray, Column, Column]:
    """Patients of the questions, and the two models' columns."""
    counts = rng.geometric(1 / null.questions, null.patients)
    patient: np.ndarray = np.repeat(np.arange(null.patients), counts)
    whole = rng.integers(1, 6, len(patient)).astype(float) if null.micro else np.ones(len(patient))
    columns = []
    for _ in range(2):
        offset = rng.normal(0, null.spread, null.patients) if null.spread else np.zeros(null.patients)
        right = np.clip(null.skill + offset, 0, 1)[patient]
        columns.append(Column(rng.binomial(whole.astype(int), right).astype(float), whole))
    return patient, columns[0], columns[1]


def rejections(null: Null, simulations: int, seed: int) -> dict[str, float]:
    """Share of simulated evaluations in which each rule calls two equal models different, at level ALPHA."""
    rng = np.random.default_rng(seed)
    counts = {"star": 0, "permutation": 0, "interval": 0, "Wilcoxon": 0}
    for k in range(simulations):
        patient, one, other = draw(null, rng)
        everyone: np.ndarray = np.ones(len(patient), bool)
        (p,) = ClusterPermutation(patient.tolist(), 499, k).p([Contrast(one, other, everyone)])
        gap = ClusterBootstrap(patient.tolist(), 400, k, 1 - ALPHA).difference(one, other)
        excludes = gap.low is not None and gap.high is not None and not gap.low <= 0 <= gap.high
        counts["permutation"] += p <= ALPHA
        counts["interval"] += excludes
        counts["star"] += p <= ALPHA and excludes
        counts["Wilcoxon"] += wilcoxon(one.values(), other.values()).p <= ALPHA
    return {rule: count / simulations for rule, count in counts.items()}


def coverage(null: Null, patients: int, simulations: int, seed: int) -> dict[str, float]:
    """Share of simulated evaluations whose interval holds the true value, of one model and of a difference of 0.

    `plain`: the same with the tails of a percentile interval, which does not know how few patients there are.
    """
    rng = np.random.default_rng(seed)
    truth = draw(replace(null, patients=100_000), rng)[1].mean()
    assert truth is not None
    shrink = np.sqrt((patients - 1) / patients)
    plain_alpha = 2 * t.cdf(norm.ppf(ALPHA / 2) * shrink, patients - 1)  # its tail_of is ALPHA / 2
    counts = dict.fromkeys(("plain value", "value", "plain difference", "difference"), 0)
    for k in range(simulations):
        names, one, other = draw(replace(null, patients=patients), rng)
        for kind, alpha in (("plain ", plain_alpha), ("", ALPHA)):
            bootstrap = ClusterBootstrap(names.tolist(), 1000, k, 1 - alpha)
            value, gap = bootstrap.interval(one), bootstrap.difference(one, other)
            assert value.low is not None and value.high is not None and gap.low is not None and gap.high is not None
            counts[f"{kind}value"] += value.low <= truth <= value.high
            counts[f"{kind}difference"] += gap.low <= 0 <= gap.high
    return {rule: count / simulations for rule, count in counts.items()}


def auroc_coverage(patients: int, prevalence: float, simulations: int, seed: int) -> dict[str, float]:
    """Share of simulated test sets whose interval of AUROC holds the true one, .76: scores are two normals one apart.

    Test sets with fewer than five patients on a side are drawn again, since the page does not judge them.
    """
    truth, counts, drawn = norm.cdf(1 / np.sqrt(2)), {"plain": 0, "interval": 0}, 0
    rng = np.random.default_rng(seed)
    while drawn < simulations:
        outcome = rng.random(patients) < prevalence
        if min(outcome.sum(), (~outcome).sum()) < FEWEST_EVENTS:
            continue
        score = rng.normal(size=patients) + outcome
        resamples = Resamples(range(patients), 500, drawn, 1 - ALPHA)
        resampled = resamples.values(auroc, outcome, score)
        low, high = (np.nanquantile(resampled, tail) for tail in (ALPHA / 2, 1 - ALPHA / 2))
        interval = resamples.interval(auroc, outcome, score)
        assert interval.low is not None and interval.high is not None
        counts["plain"] += low <= truth <= high
        counts["interval"] += interval.low <= truth <= interval.high
        drawn += 1
    return {rule: count / simulations for rule, count in counts.items()}
