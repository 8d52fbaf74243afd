"""Counts of questions, images and intervals beside the published numbers (paper, section 2.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from lumen_hpc.data.diff_vqa import TYPES
from lumen_hpc.data.questions import SPLITS
from lumen_hpc.data.selection import Columns, distinct

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


def with_published(ours: float | int | None, paper: float | int | None) -> dict:
    """One count with the published one; None where nothing is published."""
    return {"ours": ours, "paper": paper}


def read_counts(columns: Columns, ok: np.ndarray) -> dict:
    """The questions of the file before any selection, by type, and its differences by split."""
    by_type = np.bincount(columns.type[ok], minlength=len(TYPES)).tolist()
    questions = {"questions": sum(by_type), **dict(zip(TYPES, by_type, strict=True))}
    differences = np.bincount(columns.split[ok & columns.difference], minlength=len(SPLITS)).tolist()
    return {
        "by_type": {name: with_published(count, DATASET.get(name)) for name, count in questions.items()},
        "difference_by_split": {
            name: with_published(count, DIFFERENCES.get(name)) for name, count in zip(SPLITS, differences, strict=True)
        },
    }


def split_counts(columns: Columns, kept: np.ndarray, split: str) -> dict:
    """The images and questions that a split keeps, beside the paper's table."""
    rows = kept & (columns.split == SPLITS.index(split))
    diagnostic, difference = rows & ~columns.difference, rows & columns.difference
    closed = float(columns.closed[diagnostic].mean()) if diagnostic.any() else None
    ours = {
        "images": len(distinct(columns.main[rows])),
        "diagnostic": int(diagnostic.sum()),
        "open": None if closed is None else round(1 - closed, 4),
        "closed": None if closed is None else round(closed, 4),
        "difference": int(difference.sum()),
        "reference_images": len(distinct(columns.reference[difference])),
        "patients": len(distinct(columns.patient[rows])),
    }
    return {name: with_published(count, PAPER.get(split, {}).get(name)) for name, count in ours.items()}


RELEASES = {"1.0.0": 79_767 / 164_324, "1.0.1": 0.0}
"""Share of reversed pairs (main study earlier than the reference) in each release of Medical-Diff-VQA."""
UNKNOWN_RELEASE, _MAX_DISTANCE, _MIN_PAIRS = "of an unknown release", 0.12, 500
"""A file's share of reversed pairs may be this far from a release's; one with fewer pairs is assigned in any case."""


def release(columns: Columns, ok: np.ndarray, repeated: np.ndarray) -> dict:
    """The release of Medical-Diff-VQA by its share of reversed pairs: neither release names itself in its files."""
    pairs = ok & columns.difference
    reversed_pairs = int((pairs & (columns.reordered | (columns.days < 0))).sum())
    share = reversed_pairs / max(int(pairs.sum()), 1)
    release_name = min(RELEASES, key=lambda name: abs(RELEASES[name] - share))
    if pairs.sum() >= _MIN_PAIRS and abs(RELEASES[release_name] - share) > _MAX_DISTANCE:
        release_name = UNKNOWN_RELEASE
    return {
        "recognised": release_name if pairs.any() else None,
        "difference": int(pairs.sum()),
        "reversed": reversed_pairs,
        "reversed_share": round(share, 4),
        "reordered": int((pairs & columns.reordered).sum()),
        "repeated": int((repeated & columns.difference).sum()),
    }


def release_lines(summary: dict) -> list[str]:
    """What the user should know about the `release`; nothing where all pairs are in order and no question repeats."""
    lines = []
    if summary["recognised"] == UNKNOWN_RELEASE:
        published = ", ".join(f"{share:.1%} in {name}" for name, share in RELEASES.items())
        lines.append(f"the share of reversed pairs fits none ({published}): does the file hold rows of both?")
    if summary["reversed"]:
        lines.append(
            f"in {summary['reversed']} of {summary['difference']} difference questions "
            f"({summary['reversed_share']:.1%}) the reference study is later than the main study (release 1.0.1 "
            "exchanges the two and rewrites the answer)"
        )
        lines.append(
            f"prepare.reversed_pairs=reorder exchanged {summary['reordered']} of them, with new, resolved and levels"
            if summary["reordered"]
            else "they keep their order and give no prediction questions; prepare.reversed_pairs=reorder exchanges them"
        )
    if summary["repeated"]:
        lines.append(
            f"{summary['repeated']} of {summary['difference']} difference questions repeat another with the same facts "
            "(1.0.0 held those pairs in both orders); each counts once, the repeats are in left_out.jsonl"
        )
    return [f"Medical-Diff-VQA {summary['recognised']}: {line}" for line in lines]


def interval_counts(columns: Columns, kept: np.ndarray, same_day: np.ndarray) -> dict:
    """Days between the images of the difference questions; `same_day` is the order (+1, 0, -1) of each 0-day pair."""
    days = columns.days[kept & columns.difference]
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
