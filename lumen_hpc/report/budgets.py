"""What each trained model has learned from: steps, samples and tokens, so that unequal budgets are seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Totals over a training's metrics.jsonl."""

    model: str
    steps: int
    samples: int
    tokens: int
    """Tokens that the language model read, image tokens among them."""
    supervised: int
    """Tokens with a loss."""


def budgets(training: Mapping[str, Sequence[Mapping]]) -> list[Budget]:
    """The budget of each model that was trained, from its rows (`step`, `samples`, `tokens`, `supervised`)."""
    return [
        Budget(
            model,
            rows[-1]["step"],
            max((row.get("samples", 0) for row in rows), default=0),
            sum(row.get("tokens", 0) for row in rows),
            sum(row.get("supervised", 0) for row in rows),
        )
        for model, rows in training.items()
        if rows
    ]


def notes(found: Sequence[Budget], labels: Mapping[str, str], principal: str) -> list[str]:
    """A sentence for each model with a smaller budget than the principal one, for the notes under the tables."""
    totals = {each.model: each for each in found}
    whole = totals.get(principal)
    lines = []
    for each in found:
        if whole and each.model != principal and whole.tokens and whole.supervised:
            lines.append(
                f"{labels.get(each.model, each.model)} was trained for {each.steps:,} steps against "
                f"{whole.steps:,} of {labels[principal]}, on {each.tokens / whole.tokens:.0%} of its tokens and "
                f"{each.supervised / whole.supervised:.0%} of its supervised tokens."
            )
    return lines
