"""From calibrated probabilities to words, and to the sentence that joins the instruction (paper, section 2.3)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

WORDS = ("no", "maybe no", "maybe yes", "yes")
SENTENCE = "Expert models predict: {parts}."
"""The experts' sentence about one image; after D-Rax."""


def word(probability: float, bounds: Sequence[float] = (0.25, 0.5, 0.75)) -> str:
    """One of the four words for a calibrated probability in 0..1 (0.5 is the operating point).

    A bound belongs to the word above it: 0.25 is `maybe no`, 0.5 `maybe yes`, 0.75 `yes`. ValueError outside 0..1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability} is not in 0..1")
    return WORDS[bisect_right(list(bounds), probability)]


def sentence(row: Mapping[str, Any], experts: Sequence[str], bounds: Sequence[float]) -> str:
    """The sentence for one study's expert row, with the named `experts` that ran: pathologies, age, race, view.

    Empty if none of them ran.
    """
    parts = []
    if "view" in experts and row.get("view"):
        parts.append(f"view {_likeliest(row['view']).lower()}")
    if "age" in experts and row.get("age") is not None:
        parts.append(f"age about {round(row['age'])} years")
    if "race" in experts and row.get("race"):
        parts.append(f"race {_likeliest(row['race'])}")
    if "pathologies" in experts:
        for name, probability in row["pathologies"].items():
            parts.append(f"{name.replace('_', ' ').lower()} {word(probability, bounds)}")
    return SENTENCE.format(parts=", ".join(parts)) if parts else ""


def _likeliest(classes: Mapping[str, float]) -> str:
    return max(classes, key=lambda name: classes[name])
