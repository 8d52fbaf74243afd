"""Image-reliance controls: the same questions asked with other images, to test whether the answers follow them.

`swapped`: reference and main image change places, so new and resolved must flip. `same`: one image twice, so
nothing has changed. `other_patient`: another patient's reference image. `no_image`: nothing to see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lumen_hpc.data.diff_vqa import Change
from lumen_hpc.metrics.change import facts, scored_facts, tally
from lumen_hpc.metrics.join import answer_text
from lumen_hpc.metrics.significance import Column, Interval
from lumen_hpc.report.composed import difference
from lumen_hpc.report.results import Results
from lumen_hpc.report.tables import markdown_row

CONTROLS = {
    "swapped": "reference and main image swapped",
    "same": "the same image twice",
    "other_patient": "another patient's reference image",
    "no_image": "no image",
}
# The measures that each control is read by; the others say little there.
_REPORTED_MEASURES = {"swapped": ("shown", "original"), "same": ("nothing",), "other_patient": ("shown", "original"),
         "no_image": ("original", "nothing")}  # fmt: skip
MEASURES = {
    "shown": "change F1 against what was shown",
    "original": "change F1 against the original pair",
    "nothing": "answers that nothing has changed",
}


@dataclass(frozen=True)
class Control:
    """What a model answered under one control."""

    name: str
    model: str
    n: dict[str, int]
    """By measure (see MEASURES): the questions that it stands on."""
    intervals: dict[str, Interval]
    """By measure, those that can be measured."""

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
    positions = {row["question_id"]: i for i, row in enumerate(results.questions)}
    model_controls = []
    for model, rows in answers.items():
        rows = list(rows)
        for name in CONTROLS:
            under_control = [row for row in rows if row.get("control") == name and row["question_id"] in positions]
            if under_control:
                model_controls.append(_control(results, name, model, under_control, positions, findings))
    return model_controls


def by_measure(results: Iterable[Control]) -> list[tuple[str, str, dict[str, Interval]]]:
    """(control, measure, interval by model) of every control, in the order of CONTROLS and MEASURES."""
    grouped: dict[tuple[str, str], dict[str, Interval]] = {}
    for control in results:
        for measure, interval in control.intervals.items():
            grouped.setdefault((control.name, measure), {})[control.model] = interval
    order = [(name, measure) for name in CONTROLS for measure in MEASURES if (name, measure) in grouped]
    return [(*key, grouped[key]) for key in order]


def markdown(results: Iterable[Control]) -> str:
    """A table of every control's intervals, a column per model; empty where no control was asked."""
    measure_rows = by_measure(results)
    models = list(dict.fromkeys(model for _, _, intervals in measure_rows for model in intervals))
    if not measure_rows:
        return ""
    header = ["control", "measure", *models]
    lines = [markdown_row(header), markdown_row(["---"] * len(header))]
    for name, measure, intervals in measure_rows:
        cells = [_format_interval(intervals.get(model)) for model in models]
        lines.append(markdown_row([CONTROLS[name], MEASURES[measure], *cells]))
    return "\n".join(lines) + "\n"


def _format_interval(interval: Interval | None) -> str:
    if interval is None or interval.value is None:
        return "–"
    bounds = "" if interval.low is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.value:.3f}{bounds}"


def _control(results, name, model, rows, index, findings) -> Control:
    n = len(results.questions)
    sums = {measure: (np.zeros(n), np.zeros(n)) for measure in MEASURES}
    measured: dict[str, np.ndarray] = {measure: np.zeros(n, bool) for measure in MEASURES}
    for row in rows:
        i = index[row["question_id"]]
        if results.questions[i]["type"] not in ("difference", "prediction"):
            continue
        truth = results.truth(i)
        if truth is None:
            continue
        claim = results.reader.change(answer_text(row), results.questions[i]["type"])
        for measure, expected in (
            ("shown", _shown_change(name, row, truth, findings)),
            ("original", truth),
        ):
            if expected is not None:
                counts = tally(scored_facts(claim, expected), facts(expected))
                sums[measure][0][i] = 2 * counts.hits
                sums[measure][1][i] = 2 * counts.hits + counts.extra + counts.missed
                measured[measure][i] = True
        sums["nothing"][0][i] = claim is not None and not claim
        sums["nothing"][1][i] = measured["nothing"][i] = True
    columns = {measure: Column(*both) for measure, both in sums.items()}
    intervals = {m: results.bootstrap.interval(columns[m]) for m in _REPORTED_MEASURES[name] if columns[m].whole.any()}
    return Control(name, model, {m: int(measured[m].sum()) for m in intervals}, intervals)


def _shown_change(name: str, row: dict, truth: Change, findings: Mapping) -> Change | None:
    """What changed between the images that were really shown; None where that is not known."""
    if name == "swapped":
        return truth.reversed()
    if name == "same":
        return Change()
    study_ids = [str(row.get(key)) for key in ("ref_study_id", "study_id")]
    if name != "other_patient" or not all(study in findings for study in study_ids):
        return None
    return difference(*({f: about.get("level", "") for f, about in findings[study].items()} for study in study_ids))
