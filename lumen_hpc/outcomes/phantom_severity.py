"""What drives a phantom patient's outcome: a hidden severity, its laboratory values, and oracles of what can be known.

A study's burden x is the level of the edema that its image shows, 0 to 3: one finding, so that a tiny model can learn
what follows from it within minutes. Severity s = x - 1.5 + u adds a hidden reserve u that no image shows. Six
laboratory values are noisy views of s. The chance of intensive care within 48 hours rises with age, s, and the change
of the burden since the study before the last:

    logit p = effect * (AGE * age + SEVERITY * s + TREND * (x - x two studies ago)) + BASE

So the image adds to laboratory values, laboratory values add to the image, and a third visit adds to both. Each oracle
knows these formulas and one set of information; no model with that set can do better on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from lumen_hpc.data import phantom_states as ps
from lumen_hpc.data.phantom_ceilings import state_probabilities

Array = np.ndarray

AGE, SEVERITY, TREND, BASE = 0.35, 1.0, 3.0, -1.0
FINDING = "edema"
MAX_BURDEN = 3
"""The largest burden."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A laboratory value of phantoms: mean + spread * (slope * s + noise), noise of standard deviation 1."""

    mean: float
    spread: float
    slope: float = 0.0
    digits: int = 2

    @property
    def reference(self) -> tuple[float, float]:
        """What the laboratory calls normal: half a spread around the mean of phantoms."""
        return round(self.mean - self.spread / 2, self.digits), round(self.mean + self.spread / 2, self.digits)


MARKERS = {
    "creatinine": Marker(1.6, 0.25, 0.4),
    "urea nitrogen": Marker(40, 6, 0.3, 1),
    "sodium": Marker(138, 3, 0, 1),
    "potassium": Marker(4.2, 0.4),
    "bicarbonate": Marker(25, 2.5, -0.3, 1),
    "lactate": Marker(3.0, 0.4, 0.4),
    "pH": Marker(7.38, 0.04, 0, 3),
    "hemoglobin": Marker(11, 1.2, 0, 1),
    "white cells": Marker(11, 2, 0, 1),
    "platelets": Marker(230, 40, 0, 0),
    "albumin": Marker(3.6, 0.35, -0.3),
    "NT-proBNP": Marker(5000, 700, 0.4, 0),
}
"""Analyte → how phantoms have it; the others of the panel are never measured."""


def burden(states: ps.States) -> int:
    """What the image of these states shows, 0 to 3."""
    return _level(states[FINDING])


def _level(state: ps.State) -> int:
    return ps.LEVELS[FINDING].index(state.level) + 1 if state.present else 0


def scaled(x: Any) -> Any:
    """A burden in the units of severity."""
    return x - 1.5


def logit(age: Any, s: Any, trend: Any, effect: float) -> Any:
    """Log-odds of intensive care within 48 hours; `trend` is a difference of burdens."""
    return BASE + effect * (AGE * (age - 60) / 15 + SEVERITY * s + TREND * trend)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Everything that oracles may know of one study."""

    age: float
    burdens: tuple[int, ...]
    """Of the patient's studies up to this one, oldest first."""
    labs: Mapping[str, float]
    """Last known value by analyte."""


ORACLES = {
    "age": (False, 0),
    "laboratory values": (True, 0),
    "image": (False, 1),
    "image and laboratory values": (True, 1),
    "two images and laboratory values": (True, 2),
    "three images and laboratory values": (True, 3),
}
"""Name → (whether it knows laboratory values, how many images it knows); all know the age."""

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def oracle(name: str, studies: Sequence[Knowledge], effect: float) -> Array:
    """P(intensive care within 48 hours) of each study, given what the oracle knows; float64 [studies]."""
    knows_labs, images = ORACLES[name]
    return np.array([_probability(study, knows_labs, images, effect) for study in studies])


def _probability(study: Knowledge, knows_labs: bool, images: int, effect: float) -> float:
    first, last, weight = _burden_pairs(len(study.burdens), study.burdens[max(len(study.burdens) - images, 0) :])
    x = scaled(last)
    precision, pull, likelihood = _reserve_posterior(study.labs if knows_labs else {}, x)
    weight = weight * likelihood
    u = (pull / precision)[:, None] + _NODES / np.sqrt(precision)
    p = sigmoid(logit(study.age, x[:, None] + u, (last - first)[:, None], effect)) @ _WEIGHTS
    return float((weight * p).sum() / weight.sum())


def _reserve_posterior(labs: Mapping[str, float], x: Array) -> tuple[float, Array, Array]:
    """The normal posterior of u given the laboratory values, for each burden x, and their likelihood there."""
    precision, pull, square = 1.0, np.zeros(len(x)), np.zeros(len(x))
    for name, value in labs.items():
        marker = MARKERS[name]
        residual = (value - marker.mean) / marker.spread - marker.slope * x
        precision += marker.slope**2
        pull += marker.slope * residual
        square += residual**2
    log_likelihood = pull**2 / precision / 2 - square / 2
    return precision, pull, np.exp(log_likelihood - log_likelihood.max())


@cache
def _burden_pairs(studies: int, known_burdens: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """(burden two studies ago, burden now, probability) of every pair that agrees with the last burdens seen.

    Before the third study there is no trend, and both burdens of a pair are the same.
    """
    joint = _joint(studies).copy()
    for studies_back, known_burden in enumerate(reversed(known_burdens)):
        axis = joint.ndim - 1 - studies_back
        if axis >= 0:
            joint[(slice(None),) * axis + (np.arange(MAX_BURDEN + 1) != known_burden,)] = 0
    if joint.ndim == 1:
        now = np.flatnonzero(joint)
        return now, now, joint[now] / joint.sum()
    ends = joint.sum(1)
    first, last = np.nonzero(ends)
    return first, last, ends[first, last] / ends.sum()


@cache
def _joint(studies: int) -> Array:
    """Probabilities of the burdens of a patient's last three studies of so many, [4, 4, 4]; of the last alone, [4],
    where there are fewer. Exact: from the tables that draw the phantoms.
    """
    state_to_burden = np.eye(MAX_BURDEN + 1)[[_level(state) for state in ps.states(FINDING)]]
    if studies < 3:
        return state_probabilities(FINDING, studies - 1) @ state_to_burden
    first = state_probabilities(FINDING, studies - 3)
    step = sum(share * ps.transition(FINDING, days) for days, share in ps.DAY_CLASS_SHARE.items())
    return np.einsum("a,ab,bc,ai,bj,ck->ijk", first, step, step, state_to_burden, state_to_burden, state_to_burden)
