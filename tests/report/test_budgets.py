"""What each model was trained for, as the notes under the tables say."""

from __future__ import annotations

from lumen_hpc.report.budgets import Budget, budgets, notes

TRAINING = {
    "ft": [{"step": 1, "samples": 8, "tokens": 100, "supervised": 10}, {"step": 2, "samples": 16, "tokens": 120}],
    "lumen": [
        {"step": 1, "samples": 8, "tokens": 300, "supervised": 20},
        {"step": 1, "val_loss": 0.5},
        {"step": 1200, "samples": 9600, "tokens": 580, "supervised": 20},
    ],
    "lumen-outcomes": [],
}


def test_a_budget_is_the_total_of_its_training():
    assert budgets(TRAINING) == [Budget("ft", 2, 16, 220, 10), Budget("lumen", 1200, 9600, 880, 40)]


def test_a_note_says_how_much_less_a_model_was_trained_for():
    labels = {"ft": "NVILA-FT", "lumen": "LUMEN"}
    assert notes(budgets(TRAINING), labels, "lumen") == [
        "NVILA-FT was trained for 2 steps against 1,200 of LUMEN, on 25% of its tokens and "
        "25% of its supervised tokens."
    ]
    assert notes(budgets({"ft": TRAINING["ft"]}), labels, "lumen") == []
