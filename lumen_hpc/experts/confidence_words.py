"""From calibrated probabilities to words, and to the sentence that joins the instruction (paper, section 2.3)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lumen_hpc.config.schema import Experts

WORDS = ("no", "maybe no", "maybe yes", "yes")
SENTENCE = "Expert models predict: {parts}."
"""The experts' sentence about one image; after D-Rax."""


def word(probability: float, thresholds: Sequence[float] = (0.25, 0.5, 0.75)) -> str:
    """One of the four words for a calibrated probability in 0..1 (0.5 is the operating point).

    A threshold belongs to the word above it: 0.25 is `maybe no`, 0.5 `maybe yes`, 0.75 `yes`. ValueError outside 0..1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability} is not in 0..1")
    return WORDS[bisect_right(list(thresholds), probability)]


def sentence(row: Mapping[str, Any], in_prompt: Sequence[str], thresholds: Sequence[float]) -> str:
    """The sentence for one study's expert row, with the experts `in_prompt` that ran: pathologies, age, race, view.

    Empty if none of them ran.
    """
    parts = []
    if "view" in in_prompt and row.get("view"):
        parts.append(f"view {_likeliest(row['view']).lower()}")
    if "age" in in_prompt and row.get("age") is not None:
        parts.append(f"age about {round(row['age'])} years")
    if "race" in in_prompt and row.get("race"):
        parts.append(f"race {_likeliest(row['race'])}")
    if "pathologies" in in_prompt:
        for name, probability in row["pathologies"].items():
            parts.append(f"{name.replace('_', ' ').lower()} {word(probability, thresholds)}")
    return SENTENCE.format(parts=", ".join(parts)) if parts else ""


def sentences(rows: Iterable[Mapping[str, Any]], settings: Experts) -> dict[str, str]:
    """study_id → the sentence for its expert row."""
    return {str(row["study_id"]): sentence(row, settings.in_prompt, settings.thresholds) for row in rows}


def _likeliest(classes: Mapping[str, float]) -> str:
    return max(classes, key=lambda name: classes[name])
