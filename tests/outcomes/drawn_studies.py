"""Studies and their outcome drawn from the hidden severity, without images or tables: cheap, and of any number."""

from __future__ import annotations

import numpy as np

from lumen_hpc.data import phantom_states as ps
from lumen_hpc.outcomes import phantom_severity as severity
from lumen_hpc.outcomes.features import Cohort
from lumen_hpc.outcomes.panel import PANEL


def drawn(count: int, studies: int, effect: float, seed: int = 3) -> tuple[list[severity.Knowledge], np.ndarray]:
    """Studies with their outcome, drawn as the phantoms' tables draw them."""
    rng = np.random.default_rng(seed)
    known, outcome = [], []
    for _ in range(count):
        states = ps.draw_first(rng)
        burdens = [severity.burden(states)]
        for _ in range(studies - 1):
            states = ps.draw_next(states, ps.draw_days(rng), rng)
            burdens.append(severity.burden(states))
        age, s = rng.normal(60, 15), severity.scaled(burdens[-1]) + rng.normal()
        trend = burdens[-1] - burdens[-3] if studies > 2 else 0
        labs = {
            name: marker.mean + marker.spread * (marker.slope * s + rng.normal())
            for name, marker in severity.MARKERS.items()
            if rng.random() < 0.8
        }
        known.append(severity.Knowledge(age, tuple(burdens), labs))
        outcome.append(rng.random() < severity.sigmoid(severity.logit(age, s, trend, effect)))
    return known, np.array(outcome)


def cohort(count: int, effect: float, seed: int, sight: float = 0.3) -> tuple[Cohort, list[severity.Knowledge]]:
    """Samples of `count` patients with three studies each, and what the oracles know of them.

    `sight` is the noise with which the experts see a study's burden.
    """
    known, outcome = drawn(count, 3, effect, seed)
    rng = np.random.default_rng([seed, 9])
    burdens = np.array([study.burdens for study in known], float)
    seen = severity.scaled(burdens) + rng.normal(scale=sight, size=burdens.shape)
    labs = [[x for a in PANEL for x in (study.labs.get(a.name, np.nan), np.nan, np.nan)] for study in known]
    sex = rng.integers(0, 2, count)
    columns = {
        "age and sex": np.stack([[study.age for study in known], sex], axis=1),
        "laboratory values": np.array(labs),
        "experts": seen[:, 2:],
        "experts before": seen[:, [1, 0]],
    }
    split = np.array(["train", "val", "test"])[np.searchsorted([0.5, 0.65], np.arange(count) / count, side="right")]
    races = np.where(rng.random(count) < 0.97, "white", "other").tolist()
    groups = {"sex": ["F" if s else "M" for s in sex], "race": races}
    return Cohort(list(range(count)), list(range(count)), split, outcome, columns, groups), known
