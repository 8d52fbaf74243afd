"""Counts of questions, images and intervals beside the published numbers (paper, section 2.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from lumen_hpc.data.diff_vqa import TYPES
from lumen_hpc.data.questions import SPLITS
from lumen_hpc.data.selection import Columns

DATASET = {
    "questions": 700_703,
    "abnormality": 145_421,
    "presence": 155_726,
    "view": 56_265,
    "location": 84_193,
    "level": 67_296,
    "type": 27_478,
    "difference": 164_324,
}
"""Questions of the published file, in all and by type."""

DIFFERENCES = {"val": 16_372, "test": 16_389}
"""Difference questions of the published file's val and test splits."""

MIMIC_CXR = {"images": 377_110, "studies": 227_827}

PAPER: dict[str, dict[str, float]] = {
    "train": {"images": 129_231, "diagnostic": 428_995, "open": 0.51, "closed": 0.49, "difference": 43_381},
    "test": {"images": 4_190, "diagnostic": 13_688, "open": 0.49, "closed": 0.51, "difference": 1_369},
}
"""What the paper trained and tested on; it reports no numbers for val."""


def beside(ours: float | int | None, paper: float | int | None) -> dict:
    """One count with the published one; None where nothing is published."""
    return {"ours": ours, "paper": paper}


def read_counts(columns: Columns, ok: np.ndarray) -> dict:
    """The questions of the file before any selection, by type, and its differences by split."""
    by_type = np.bincount(columns.type[ok], minlength=len(TYPES)).tolist()
    questions = {"questions": sum(by_type), **dict(zip(TYPES, by_type, strict=True))}
    differences = np.bincount(columns.split[ok & columns.difference], minlength=len(SPLITS)).tolist()
    return {
        "by_type": {name: beside(count, DATASET[name]) for name, count in questions.items()},
        "difference_by_split": {
            name: beside(count, DIFFERENCES.get(name)) for name, count in zip(SPLITS, differences, strict=True)
        },
    }


def split_counts(columns: Columns, keep: np.ndarray, split: str) -> dict:
    """The images and questions that a split keeps, beside the paper's table."""
    rows = keep & (columns.split == SPLITS.index(split))
    diagnostic, difference = rows & ~columns.difference, rows & columns.difference
    closed = float(columns.closed[diagnostic].mean()) if diagnostic.any() else None
    ours = {
        "images": len(np.unique(columns.main[rows])),
        "diagnostic": int(diagnostic.sum()),
        "open": None if closed is None else round(1 - closed, 4),
        "closed": None if closed is None else round(closed, 4),
        "difference": int(difference.sum()),
        "reference_images": len(np.unique(columns.reference[difference])),
        "patients": len(np.unique(columns.patient[rows])),
    }
    return {name: beside(count, PAPER.get(split, {}).get(name)) for name, count in ours.items()}


def interval_counts(columns: Columns, keep: np.ndarray, same_day: np.ndarray) -> dict:
    """Days between the images of the difference questions; `same_day` is the order (+1, 0, -1) of each 0-day pair."""
    days = columns.days[keep & columns.difference]
    quartiles: Any = np.percentile(days, (0, 25, 50, 75, 100)).tolist() if len(days) else []
    return {
        "pairs": len(days),
        "zero_day": int((days == 0).sum()),
        "zero_day_main_earlier": int((same_day < 0).sum()),
        "zero_day_order_unknown": int((same_day == 0).sum()),
        "negative": int((days < 0).sum()),
        "forecastable": int((days > 0).sum()),
        "days_min_quartiles_max": quartiles,
    }
