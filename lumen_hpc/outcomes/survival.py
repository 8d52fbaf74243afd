"""Time to death with censoring: Kaplan-Meier curves and Harrell's concordance, as lifelines computes them."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def kaplan_meier(days: Array, died: Array) -> tuple[Array, Array]:
    """(times of death, survival just after each), float64; days float [n], died bool [n]."""
    times = np.unique(days[died])
    at_risk = (days[:, None] >= times).sum(0)
    deaths = ((days[:, None] == times) & died[:, None]).sum(0)
    return times, np.cumprod(1 - deaths / at_risk)


def concordance(days: Array, died: Array, risk: Array, weights: Array | None = None) -> Array:
    """Harrell's C: of the pairs whose order of death is known, the share in which the first to die had the higher risk.

    A tie of risks counts half. Pairs that died on one day are not comparable; who is censored on the day of another's
    death outlived it. NaN without a comparable pair. One for every row of `weights` [resamples, n]; by default one, of
    the patients as they are.
    """
    weight: Array = np.ones((1, len(days))) if weights is None else weights
    concordant, comparable = np.zeros(len(weight)), np.zeros(len(weight))
    for place in np.flatnonzero(died):
        outlived = (days > days[place]) | ((days == days[place]) & ~died)
        comparable += weight[:, place] * (weight @ outlived)
        concordant += weight[:, place] * (weight @ (outlived * ((risk < risk[place]) + (risk == risk[place]) / 2)))
    return np.divide(concordant, comparable, out=np.full(len(weight), np.nan), where=comparable > 0)
