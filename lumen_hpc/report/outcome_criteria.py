"""The acceptance criteria of a phantom run with outcomes: its model predicts, and comes near its oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lumen_hpc.report.criteria import Criterion

ORACLE = "three images and laboratory values"
ORACLE_MARGIN = 0.05
"""AUROC that a model may stay below the oracle of its information."""
SLOPE_RANGE = (0.8, 1.2)


def outcome_criteria(table: Mapping[str, Any], model: str) -> list[Criterion]:
    """The gates of one outcome's table (`outcomes.evaluation.evaluate`) for a model that was asked with everything.

    Each difference is held by the lower bound of its interval. What the run did not measure fails.
    """
    row = table.get("rows", {}).get(model, {})
    auroc = row["auroc"][0] if row else None
    slope = row["slope"][0] if row else None
    oracle_auroc = table.get("oracles", {}).get(ORACLE)
    shortfall = None if auroc is None or oracle_auroc is None else oracle_auroc - auroc
    gains = {
        "laboratory values, regression": "over laboratory values (regression)",
        "laboratory values, boosting": "over laboratory values (boosting)",
        f"{model}, two images": "from a third visit",
    }
    return [
        *(Criterion(f"AUROC gained {name}, lower bound", _low(table, model, other), 0.0, strictly=True)
          for other, name in gains.items()),
        Criterion("AUROC below the oracle", shortfall, ORACLE_MARGIN, at_least=False),
        Criterion("calibration slope", slope, SLOPE_RANGE[0]),
        Criterion("calibration slope", slope, SLOPE_RANGE[1], at_least=False),
    ]  # fmt: skip


def _low(table: Mapping[str, Any], model: str, other: str) -> float | None:
    """Lower bound of the paired difference of AUROC; None where it was not measured."""
    pairs = [pair for pair in table.get("pairs", []) if (pair["row"], pair["against"]) == (model, other)]
    return pairs[0]["auroc"][1] if pairs else None
