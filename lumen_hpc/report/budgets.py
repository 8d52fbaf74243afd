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


def notes(model_budgets: Sequence[Budget], labels: Mapping[str, str], principal: str) -> list[str]:
    """A sentence for each model with a smaller budget than the principal one, for the notes under the tables."""
    budget_by_model = {budget.model: budget for budget in model_budgets}
    principal_budget = budget_by_model.get(principal)
    lines = []
    for budget in model_budgets:
        if principal_budget and budget.model != principal and principal_budget.tokens and principal_budget.supervised:
            tokens, supervised = (
                budget.tokens / principal_budget.tokens,
                budget.supervised / principal_budget.supervised,
            )
            lines.append(
                f"{labels.get(budget.model, budget.model)} was trained for {budget.steps:,} steps against "
                f"{principal_budget.steps:,} of {labels[principal]}, on {tokens:.0%} of its tokens and "
                f"{supervised:.0%} of its supervised tokens."
            )
    return lines
