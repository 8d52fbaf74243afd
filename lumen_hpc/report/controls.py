"""Controls: does a model look at the images it is shown? The same questions with the images tampered with.

`swapped`: reference and main image change places, so new and resolved must flip. `same`: one image twice, so
nothing has changed. `other_patient`: another patient's reference image. `no_image`: nothing to see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lumen_hpc.data.diff_vqa import Change, LevelChange
from lumen_hpc.metrics.change import facts, tally
from lumen_hpc.metrics.join import said
from lumen_hpc.metrics.significance import Column, Interval
from lumen_hpc.report.composed import difference
from lumen_hpc.report.results import Results

ABOUT = {
    "swapped": "reference and main image swapped",
    "same": "the same image twice",
    "other_patient": "another patient's reference image",
    "no_image": "no image",
}
# What each control is about; the other measures say little there.
_TOLD = {"swapped": ("shown", "original"), "same": ("nothing",), "other_patient": ("shown", "original"),
         "no_image": ("original", "nothing")}  # fmt: skip
MEASURES = {
    "shown": "change F1 against what was shown",
    "original": "change F1 against the untampered pair",
    "nothing": "says that nothing has changed",
}


@dataclass(frozen=True)
class Control:
    """What a model answered under one control."""

    name: str
    model: str
    n: int
    intervals: dict[str, Interval]
    """By measure (see MEASURES), those that can be told."""

    @property
    def values(self) -> dict[str, float | None]:
        return {measure: interval.value for measure, interval in self.intervals.items()}


def controls(
    results: Results, answers: Mapping[str, Iterable[dict]], findings: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> list[Control]:
    """Every control of every model, from answer rows that carry `control` and the `ref_study_id` and `study_id`
    that were shown.

    `findings`: study_id → its findings, needed for the truth of pairs across patients.
    """
    index = {row["question_id"]: i for i, row in enumerate(results.questions)}
    found = []
    for model, rows in answers.items():
        rows = list(rows)
        for name in ABOUT:
            tampered = [row for row in rows if row.get("control") == name and row["question_id"] in index]
            if tampered:
                found.append(_control(results, name, model, tampered, index, findings))
    return found


def told(made: Iterable[Control]) -> list[tuple[str, str, dict[str, Interval]]]:
    """(control, measure, interval by model) of everything that the controls tell, in the order of their lists."""
    grouped: dict[tuple[str, str], dict[str, Interval]] = {}
    for control in made:
        for measure, interval in control.intervals.items():
            grouped.setdefault((control.name, measure), {})[control.model] = interval
    order = [(name, measure) for name in ABOUT for measure in MEASURES if (name, measure) in grouped]
    return [(*key, grouped[key]) for key in order]


def swapped(change: Change) -> Change:
    """The change seen with the images in the other order."""
    return Change(change.resolved, change.new, tuple(LevelChange(c.finding, c.after, c.before) for c in change.levels))


def _control(results, name, model, rows, index, findings) -> Control:
    n = len(results.questions)
    sums = {measure: (np.zeros(n), np.zeros(n)) for measure in MEASURES}
    for row in rows:
        i = index[row["question_id"]]
        if results.questions[i]["type"] not in ("difference", "prediction"):
            continue
        truth = results.truth(i)
        if truth is None:
            continue
        claimed = results.reader.change(said(row["answer"]), results.questions[i]["type"])
        claims = facts(claimed) if claimed else set()
        for measure, wanted in (
            ("shown", _shown(name, row, truth, findings)),
            ("original", truth),
        ):
            if wanted is not None:
                counted = tally(claims, facts(wanted))
                sums[measure][0][i] = 2 * counted.hits
                sums[measure][1][i] = 2 * counted.hits + counted.extra + counted.missed
        sums["nothing"][0][i] = claimed is not None and not claimed
        sums["nothing"][1][i] = 1
    columns = {measure: Column(*both) for measure, both in sums.items()}
    intervals = {m: results.bootstrap.interval(columns[m]) for m in _TOLD[name] if columns[m].whole.any()}
    return Control(name, model, int(columns["nothing"].whole.sum()), intervals)


def _shown(name: str, row: dict, truth: Change, findings: Mapping) -> Change | None:
    """What changed between the images that were really shown; None where that is not known."""
    if name == "swapped":
        return swapped(truth)
    if name == "same":
        return Change()
    pair = [str(row.get(key)) for key in ("ref_study_id", "study_id")]
    if name != "other_patient" or not all(study in findings for study in pair):
        return None
    return difference(*({f: about.get("level", "") for f, about in findings[study].items()} for study in pair))
