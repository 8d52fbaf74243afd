"""Finding by finding: sensitivity and specificity, and worse, better or the same against the reference.

Sensitivity is the share of right answers where the finding is present, specificity the share where it is absent; an
answer that cannot be read is wrong either way. Intervals are over patients, as in the tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lumen_hpc.data.diff_vqa import parse_question
from lumen_hpc.metrics.change import reader_name
from lumen_hpc.metrics.significance import Column
from lumen_hpc.report.results import Results

ASKED_FOR, LISTED = "asked for", "listed"
WAYS = {
    ASKED_FOR: "is there …? (answered yes or no)",
    LISTED: "what abnormalities are seen? (named among the findings)",
}
_WHOLE_IMAGE_TEMPLATES = ("is there evidence of {finding} in this image?", "is there {finding}?")
DIRECTIONS = ("worse", "better", "mixed", "same")
NOT_READ = "not read"


@dataclass(frozen=True)
class Rate:
    """A share of n questions with its interval over patients; no value where n is 0."""

    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Detection:
    """How one model finds one finding, by one way of asking."""

    way: str
    finding: str
    model: str
    sensitivity: Rate
    specificity: Rate
    small: bool
    """Either stands on fewer questions than `Evaluate.small`."""


@dataclass(frozen=True)
class Confusion:
    """How often each direction of change was answered with each."""

    block: str
    model: str
    counts: tuple[tuple[str, tuple[int, ...]], ...]
    """For each true direction, the answers: `DIRECTIONS`, then those that could not be read."""


def detections(results: Results, *, least: int = 1) -> list[Detection]:
    """Every finding and model, both ways of asking; findings with fewer than `least` questions are left out.

    Sorted by way, finding and model, in the order of the tables.
    """
    models = results.run_models()
    result = []
    for way, truth in ((ASKED_FOR, _presence_questions(results)), (LISTED, _findings_questions(results, models))):
        for finding, presence, right in truth:
            if (presence != 0).sum() < least:
                continue
            for model in models:
                sensitivity, specificity = (_rate(results, right[model], presence == side) for side in (1, -1))
                if sensitivity.n or specificity.n:
                    small = min(sensitivity.n, specificity.n) < results.settings.small
                    result.append(Detection(way, finding, model, sensitivity, specificity, small))
    return result


Truth = Iterator[tuple[str, np.ndarray, dict[str, Column]]]
"""(finding, 1 present, -1 absent, 0 not asked for every question, model → column of right answers)."""


def _presence_questions(results: Results) -> Truth:
    """Closed questions about a finding in the whole image, since a place changes the question."""
    presence_by_finding: dict[str, np.ndarray] = {}
    for i, row in enumerate(results.questions):
        parsed = parse_question("presence", row["question"]) if row["type"] == "presence" and row["closed"] else None
        if parsed and parsed.finding and parsed.template in _WHOLE_IMAGE_TEMPLATES:
            sides = presence_by_finding.setdefault(reader_name(parsed.finding), np.zeros(len(results.questions), int))
            sides[i] = 1 if row["short_answer"].strip().lower() == "yes" else -1
    right = {model: results.column("accuracy_polarity", model) for model in results.run_models()}
    yield from ((finding, presence_by_finding[finding], right) for finding in sorted(presence_by_finding))


def _findings_questions(results: Results, models: Sequence[str]) -> Truth:
    """Open questions about what is seen, for every finding that some reference names."""
    lists_by_model = {model: results.samples[model].finding_lists for model in models}
    true_names = {i: pair[1] for of_model in lists_by_model.values() for i, pair in of_model.items()}
    for finding in sorted(set().union(*true_names.values()) if true_names else ()):
        presence: np.ndarray = np.zeros(len(results.questions), int)
        for i, names in true_names.items():
            presence[i] = 1 if finding in names else -1
        right = {}
        for model, answers in lists_by_model.items():
            answered = results.column("finding_f1_macro", model).applies()
            part, whole = np.zeros(len(presence)), np.zeros(len(presence))
            for i, (answer_names, names) in answers.items():
                whole[i] = answered[i]
                part[i] = answered[i] and answer_names is not None and (finding in answer_names) == (finding in names)
            right[model] = Column(part, whole)
        yield finding, presence, right


def _rate(results: Results, right: Column, where: np.ndarray) -> Rate:
    return Rate(int((where & right.applies()).sum()), *results.bootstrap.interval(right, where))


def confusions(results: Results) -> list[Confusion]:
    """A table of directions a block (difference, prediction) and model; models that answered none are left out."""
    result = []
    for block in ("difference", "prediction"):
        in_block = results.where(block)
        for model in results.run_models():
            answered = in_block & results.column("direction", model).applies()
            pairs = Counter(results.samples[model].directions[i] for i in np.flatnonzero(answered))
            if pairs:
                columns = (*DIRECTIONS, None)
                counts = [
                    (true_direction, tuple(pairs[true_direction, answered_direction] for answered_direction in columns))
                    for true_direction in DIRECTIONS
                ]
                result.append(Confusion(block, model, tuple(row for row in counts if any(row[1]))))
    return result
