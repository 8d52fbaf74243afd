"""Measures of every model over slices of the questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lumen_hpc.metrics.join import answer_text
from lumen_hpc.report.results import BLOCKS, Cell, Results

_DAY_BINS = ((-np.inf, 0, "before"), (0, 1, "0"), (1, 8, "1–7"), (8, 31, "8–30"), (31, 91, "31–90"),
             (91, 366, "91–365"), (366, np.inf, "over 365"))  # fmt: skip
_AGE_BINS = ((0, 40, "under 40"), (40, 60, "40–59"), (60, 80, "60–79"), (80, np.inf, "80 and over"))
_MEASURES = {"difference": ("rouge_l", "change_f1"), "prediction": ("rouge_l", "change_f1"),
             "diagnostic": ("rouge_l", "accuracy_polarity", "recall")}  # fmt: skip
_MEASURES_WITHOUT_CHANGE = dict.fromkeys(("difference", "prediction"), ("rouge_l", "direction"))
"""Where no reference has a change: F1 over facts is then 0 for one wrong claim, and nothing without any."""
_COUNTS = ("0", "1", "2", "3 or more")


@dataclass(frozen=True)
class Slice:
    """One group of questions of one block."""

    by: str
    group: str
    block: str
    cells: tuple[Cell, ...]
    """A cell per model and measure."""
    small: bool
    """Fewer questions than `Evaluate.small`: read with care."""


def slices(
    results: Results, studies: Iterable[dict], experts: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Slice]:
    """Slices by type, interval, number of changes and view, and by sex, age and race where they are known.

    `studies` may know sex and age; `experts` (study_id → its expert row) predict age and race, as the prompt has them.
    """
    expert_rows = experts or {}
    studies_by_id = {
        str(row["study_id"]): row | _expert_attributes(expert_rows.get(str(row["study_id"]), {})) for row in studies
    }
    has_change = np.array([bool(results.truth(i)) for i in range(len(results.questions))])
    result = []
    for grouping, keys in _groupings(results, studies_by_id).items():
        for block in _MEASURES:
            in_block = results.where(block)
            for group in dict.fromkeys(_sorted_groups(keys[in_block])):
                where = in_block & (keys == group)
                measures = (
                    _MEASURES[block]
                    if has_change[where].any()
                    else _MEASURES_WITHOUT_CHANGE.get(block, _MEASURES[block])
                )
                cells = [results.cell(block, m, model, where) for model in results.run_models() for m in measures]
                cells = [cell for cell in cells if cell.value is not None]
                if cells and not where[in_block].all():
                    small = max(cell.n for cell in cells) < results.settings.small
                    result.append(Slice(grouping, group, block, tuple(cells), small))
    return result


def experts(results: Results, answers: Mapping[str, Iterable[dict]]) -> list[Slice]:
    """The same questions with and without the experts' sentences, from answer rows of control `no_experts`."""
    result: list[Slice] = []
    for model, rows in answers.items():
        without_experts = {row["question_id"]: answer_text(row) for row in rows if row.get("control") == "no_experts"}
        if not without_experts:
            continue
        columns = results.score(without_experts).columns
        is_asked = np.array([row["question_id"] in without_experts for row in results.questions], bool)
        for block, measures in _MEASURES.items():
            where = results.where(block) & is_asked
            cells = [results.cell(block, measure, model, where) for measure in measures]
            cells = [cell for cell in cells if cell.value is not None]
            cells_without = [
                replace(c, **results.bootstrap.interval(columns[c.measure], where)._asdict()) for c in cells
            ]
            if cells:
                small = max(cell.n for cell in cells) < results.settings.small
                result += [Slice("experts", "given", block, tuple(cells), small),
                         Slice("experts", "withheld", block, tuple(cells_without), small)]  # fmt: skip
    return sorted(result, key=lambda each: each.block)


def _groupings(results: Results, studies_by_id: dict[str, dict]) -> dict[str, np.ndarray]:
    """Each grouping's group of every question; "" where it has none."""
    rows = results.questions
    prognostic = np.isin(results.types, BLOCKS["difference"] + BLOCKS["prediction"])
    changes = [results.truth(i) if late else None for i, late in enumerate(prognostic)]
    main_studies = [studies_by_id.get(str(row.get("study_id")), {}) for row in rows]
    intervals = [_bin_label(row.get("interval_days"), _DAY_BINS) for row in rows]
    columns = {
        "question type": ["" if late else kind for kind, late in zip(results.types, prognostic, strict=True)],
        "interval (days)": [days if late else "" for days, late in zip(intervals, prognostic, strict=True)],
        "changes in the reference": [
            "" if t is None else _count_label(len(t.new + t.resolved + t.levels)) for t in changes
        ],
        "view": [str(study.get("view") or "") for study in main_studies],
        "sex": [str(study.get("sex") or "") for study in main_studies],
        "age (years)": [_bin_label(study.get("age"), _AGE_BINS) for study in main_studies],
        "age by the expert (years)": [_bin_label(study.get("expert_age"), _AGE_BINS) for study in main_studies],
        "race by the expert": [str(study.get("expert_race") or "") for study in main_studies],
    }
    return {by: np.array(groups, object) for by, groups in columns.items() if any(groups)}


def _expert_attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Age and likeliest race of an expert row; absent where that expert did not run."""
    race = row.get("race") or {}
    return {"expert_age": row.get("age"), "expert_race": max(race, key=lambda name: race[name]) if race else None}


def _sorted_groups(groups: Iterable[str]) -> list[str]:
    order = [*(label for *_, label in (*_DAY_BINS, *_AGE_BINS)), *_COUNTS]
    return sorted({g for g in groups if g}, key=lambda g: (order.index(g) if g in order else 0, g))


def _bin_label(value: float | None, bins: tuple) -> str:
    """The bin of a number; "" for none, or one outside every bin (an age below 0, NaN)."""
    return "" if value is None else next((label for low, high, label in bins if low <= value < high), "")


def _count_label(n: int) -> str:
    return _COUNTS[min(n, 3)]
