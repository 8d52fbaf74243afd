"""Measures of every model over slices of the questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lumen_hpc.data.findings_line import strip
from lumen_hpc.report.results import BLOCKS, Cell, Results

_DAYS = ((-np.inf, 0, "before"), (0, 1, "0"), (1, 8, "1–7"), (8, 31, "8–30"), (31, 91, "31–90"), (91, 366, "91–365"),
         (366, np.inf, "over 365"))  # fmt: skip
_YEARS = ((0, 40, "under 40"), (40, 60, "40–59"), (60, 80, "60–79"), (80, np.inf, "80 and over"))
_MEASURES = {"difference": ("rouge_l", "change_f1"), "prediction": ("rouge_l", "change_f1"),
             "diagnostic": ("rouge_l", "accuracy_polarity", "recall")}  # fmt: skip
_UNCHANGED = dict.fromkeys(("difference", "prediction"), ("rouge_l", "direction"))
"""Where no reference has a change: F1 over facts is then 0 for one wrong claim, and nothing without any."""
_COUNTS = ("0", "1", "2", "3 or more")


@dataclass(frozen=True)
class Slice:
    """One group of questions of one block."""

    by: str
    group: str
    block: str
    cells: tuple[Cell, ...]
    """A cell a model and measure."""
    small: bool
    """Fewer questions than `Evaluate.small`: read with care."""


def slices(
    results: Results, studies: Iterable[dict], experts: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Slice]:
    """Slices by type, interval, number of changes and view, and by sex, age and race where they are known.

    `studies` may know sex and age; `experts` (study_id → its expert row) predict age and race, as the prompt has them.
    """
    predicted = experts or {}
    about = {str(row["study_id"]): row | _predicted(predicted.get(str(row["study_id"]), {})) for row in studies}
    changed = np.array([bool(results.truth(i)) for i in range(len(results.questions))])
    result = []
    for by, keys in _groupings(results, about).items():
        for block in _MEASURES:
            here = results.where(block)
            for group in dict.fromkeys(_in_order(keys[here])):
                where = here & (keys == group)
                measures = _MEASURES[block] if changed[where].any() else _UNCHANGED.get(block, _MEASURES[block])
                cells = [results.cell(block, m, model, where) for model in results.run_models() for m in measures]
                cells = [cell for cell in cells if cell.value is not None]
                if cells and not where[here].all():
                    small = max(cell.n for cell in cells) < results.settings.small
                    result.append(Slice(by, group, block, tuple(cells), small))
    return result


def experts(results: Results, answers: Mapping[str, Iterable[dict]]) -> list[Slice]:
    """The same questions with and without the experts' sentences, from answer rows of control `no_experts`."""
    result: list[Slice] = []
    for model, rows in answers.items():
        without_experts = {
            row["question_id"]: strip(row["answer"]) for row in rows if row.get("control") == "no_experts"
        }
        if not without_experts:
            continue
        columns = results.scored(without_experts).columns
        asked = np.array([row["question_id"] in without_experts for row in results.questions], bool)
        for block, measures in _MEASURES.items():
            where = results.where(block) & asked
            given = [results.cell(block, measure, model, where) for measure in measures]
            given = [cell for cell in given if cell.value is not None]
            withheld = [replace(c, **results.bootstrap.interval(columns[c.measure], where)._asdict()) for c in given]
            if given:
                small = max(cell.n for cell in given) < results.settings.small
                result += [Slice("experts", "given", block, tuple(given), small),
                         Slice("experts", "withheld", block, tuple(withheld), small)]  # fmt: skip
    return sorted(result, key=lambda each: each.block)


def _groupings(results: Results, about: dict[str, dict]) -> dict[str, np.ndarray]:
    """Each grouping's group of every question; "" where it has none."""
    rows = results.questions
    prognostic = np.isin(results.types, BLOCKS["difference"] + BLOCKS["prediction"])
    truth = [results.truth(i) if here else None for i, here in enumerate(prognostic)]
    of = [about.get(str(row.get("study_id")), {}) for row in rows]
    columns = {
        "question type": ["" if late else kind for kind, late in zip(results.types, prognostic, strict=True)],
        "interval (days)": [
            _bin(row.get("interval_days"), _DAYS) if late else "" for row, late in zip(rows, prognostic, strict=True)
        ],
        "changes in the reference": ["" if t is None else _count(len(t.new + t.resolved + t.levels)) for t in truth],
        "view": [str(study.get("view") or "") for study in of],
        "sex": [str(study.get("sex") or "") for study in of],
        "age (years)": [_bin(study.get("age"), _YEARS) for study in of],
        "age by the expert (years)": [_bin(study.get("expert_age"), _YEARS) for study in of],
        "race by the expert": [str(study.get("expert_race") or "") for study in of],
    }
    return {by: np.array(groups, object) for by, groups in columns.items() if any(groups)}


def _predicted(row: Mapping[str, Any]) -> dict[str, Any]:
    """Age and likeliest race of an expert row; absent where that expert did not run."""
    race = row.get("race") or {}
    return {"expert_age": row.get("age"), "expert_race": max(race, key=lambda name: race[name]) if race else None}


def _in_order(groups: Iterable[str]) -> list[str]:
    known = [*(label for *_, label in (*_DAYS, *_YEARS)), *_COUNTS]
    return sorted({g for g in groups if g}, key=lambda g: (known.index(g) if g in known else 0, g))


def _bin(value: float | None, bins: tuple) -> str:
    """The bin of a number; "" for none, or one outside every bin (an age below 0, NaN)."""
    return "" if value is None else next((label for low, high, label in bins if low <= value < high), "")


def _count(n: int) -> str:
    return _COUNTS[min(n, 3)]
