"""The interval of a share: k of n, as fact checks, canaries and gates report it."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of k successes in n trials (n at least 1); Wilson, 1927."""
    z = NormalDist().inv_cdf(0.975)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
