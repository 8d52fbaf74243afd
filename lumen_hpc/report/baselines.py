"""Baseline rows, which give every number of the tables its meaning: what can be scored without looking at an image.

All are learned from the training records alone. Each answers in the words of the grammar's sentences or of the training
answers, so that its text scores are those of a fluent answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lumen_hpc.data.diff_vqa import Change, GrammarError, LevelChange, parse_difference, parse_question
from lumen_hpc.data.diff_vqa import render_difference as render
from lumen_hpc.data.phantom_ceilings import best_threshold
from lumen_hpc.language.clauses import CHANGING
from lumen_hpc.language.sentences import sentence
from lumen_hpc.metrics.change import Fact, facts, reader_name
from lumen_hpc.report.composed import Findings, difference

Row = Mapping[str, Any]
REFERENCE = "reference"


@dataclass(frozen=True)
class Baseline:
    label: str
    about: str
    """How it answers, for the notes under the tables."""


BASELINES = {
    REFERENCE: Baseline("Reference answer", "the long reference answer scored against itself: the highest score that "
                        "each measure gives (nltk's BLEU-4 of two equal texts below four words is less than 1)"),
    "majority": Baseline("Majority", "the most frequent short answer of each question type in training"),
    "question": Baseline("Question and interval only", "the most frequent training answer to the same question, for a "
                         "prediction over an interval of the same length; no image"),
    "persistence": Baseline("Persistence", "nothing has changed, nothing will change"),
    "prior": Baseline("Reference findings", "the changes that training pairs with the same findings on the reference "
                      "report and an interval of the same length make likeliest; no image"),
    "experts+rule": Baseline("Experts + rule", "the expert models' findings of each image, compared by rule; "
                             "no levels"),
}  # fmt: skip
"""Baseline rows by name, in the order of the tables."""

_FIELDS = ("type", "question", "closed", "short_answer", "interval_days", "ref_study_id", "subject_id")
_INTERVAL_BOUNDS = (0, 1, 7, 30, 90, 180, 365)


def answers(
    questions: Sequence[Row],
    training: Iterable[Row],
    findings: Mapping[str, Mapping[str, Mapping[str, str]]],
    experts: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, str]]:
    """Baseline → question_id → answer, for the questions that the baseline applies to.

    `training`: `meta` of training records; none leaves out the baselines that learn. `findings`: study_id → findings
    of its report. `experts`: study_id → calibrated probability of each finding.
    """
    rows = list(training)
    texts_by_baseline = {
        REFERENCE: {q["question_id"]: q["long_answer"] for q in questions if q.get("long_answer")},
        "persistence": {q["question_id"]: _sentence(q, Change()) for q in questions if q["type"] in CHANGING},
        "experts+rule": _experts(questions, experts),
    }
    if rows:
        texts_by_baseline |= {"majority": _majority(questions, rows), "question": _question(questions, rows)}
        texts_by_baseline["prior"] = _prior(questions, rows, findings)
    return {name: texts_by_baseline[name] for name in BASELINES if texts_by_baseline.get(name)}


def narrow(training: Iterable[Row]) -> list[Row]:
    """`meta` of training records with what baselines and gates read alone: there may be half a million of them."""
    interned: dict[str, str] = {}  # one copy of each

    def intern(value: Any) -> Any:
        return interned.setdefault(value, value) if isinstance(value, str) else value

    return [{key: intern(row[key]) for key in _FIELDS if key in row} for row in training]


def interval(days: float | None) -> int:
    """The class of an interval: how many of the bounds 0, 1, 7, 30, 90, 180 and 365 days it exceeds; -1 if unknown."""
    return -1 if days is None else sum(days > bound for bound in _INTERVAL_BOUNDS)


def _sentence(question: Row, change: Change) -> str:
    """A change as the grammar's sentence, in the tense of the question."""
    return sentence(question["type"], question["question"], render(change))


def _majority(questions: Sequence[Row], training: Sequence[Row]) -> dict[str, str]:
    counts: dict[tuple, Counter[str]] = defaultdict(Counter)
    for row in training:
        counts[row["type"], bool(row["closed"])][" ".join(row["short_answer"].split())] += 1
    texts = {}
    for question in questions:
        short_answers = counts.get((question["type"], bool(question["closed"])))
        if short_answers:
            texts[question["question_id"]] = sentence(
                question["type"], question["question"], _most_frequent(short_answers)
            )
    return texts


def _question(questions: Sequence[Row], training: Sequence[Row]) -> dict[str, str]:
    """By the question's text (a prediction's by its interval), else by its template, else by its type."""
    counts: dict[tuple, Counter[str]] = defaultdict(Counter)
    for row in training:
        for key in _keys(row):
            counts[key][" ".join(row["short_answer"].split())] += 1
    texts = {}
    for question in questions:
        short_answers = next((counts[key] for key in _keys(question) if key in counts), None)
        if short_answers:
            texts[question["question_id"]] = sentence(
                question["type"], question["question"], _most_frequent(short_answers)
            )
    return texts


def _keys(row: Row) -> list[tuple]:
    """What a blind model can know of a question, the most specific first."""
    kind, closed, days = row["type"], bool(row["closed"]), interval(row.get("interval_days"))
    parsed = parse_question(kind, row["question"]) if kind not in CHANGING else None
    template = parsed.template if parsed else ""
    text = row["question"] if kind not in CHANGING else ""
    return [(kind, closed, text, days), (kind, closed, template, days), (kind, closed, template), (kind, closed)]


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda text: (-counts[text], text))


def _experts(questions: Sequence[Row], experts: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    def findings_of(study: Any) -> Findings | None:
        row = experts.get(str(study))
        if row is None:
            return None
        return {reader_name(name.replace("_", " ").lower()): "" for name, p in row.items() if p >= 0.5}

    texts = {}
    for question in questions:
        if question["type"] == "difference":
            before, after = findings_of(question.get("ref_study_id")), findings_of(question["study_id"])
            if before is not None and after is not None:
                texts[question["question_id"]] = _sentence(question, difference(before, after))
    return texts


def _prior(
    questions: Sequence[Row], training: Sequence[Row], findings: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> dict[str, str]:
    """Each change of a finding is named where it is likelier than the threshold that is best on the training pairs."""
    finding_names: set[str] = set()
    pairs: list[tuple[Row, set[Fact]]] = []
    for row in training:
        if row["type"] == "difference" and str(row.get("ref_study_id")) in findings:
            try:
                truth = facts(parse_difference(row["short_answer"]))
            except GrammarError:
                continue
            pairs.append((row, truth))
            finding_names |= {fact[1] for fact in truth}
    if not pairs:
        return {}
    key_counts: Counter[tuple] = Counter()
    change_counts: dict[tuple, Counter[Fact]] = defaultdict(Counter)
    states_by_study = {study: {reader_name(f): about.get("level", "yes") for f, about in found.items()}
              for study, found in findings.items()}  # fmt: skip

    def keys(row: Row) -> list[tuple]:
        state_by_finding = states_by_study[str(row["ref_study_id"])]
        return [
            (name, state_by_finding.get(name, "absent"), interval(row.get("interval_days"))) for name in finding_names
        ]

    for row, truth in pairs:
        for key in keys(row):
            key_counts[key] += 1
            change_counts[key].update(fact for fact in truth if fact[1] == key[0])
    probabilities = {
        key: {fact: count / key_counts[key] for fact, count in counts.items()} for key, counts in change_counts.items()
    }
    beliefs = [{fact: p for key in keys(row) for fact, p in probabilities.get(key, {}).items()} for row, _ in pairs]
    threshold = best_threshold([truth for _, truth in pairs], beliefs)
    texts = {}
    for question in questions:
        if question["type"] in CHANGING and str(question.get("ref_study_id")) in states_by_study:
            claims = [
                max(probabilities[key].items(), key=lambda item: item[1])
                for key in keys(question)
                if probabilities.get(key)
            ]
            texts[question["question_id"]] = _sentence(question, _change(fact for fact, p in claims if p >= threshold))
    return texts


def _change(claims: Iterable[Fact]) -> Change:
    new: list[str] = []
    resolved: list[str] = []
    levels: list[LevelChange] = []
    for kind, finding, *change in claims:
        if kind == "level":
            levels.append(LevelChange(finding, *change))
        else:
            (new if kind == "new" else resolved).append(finding)
    return Change(tuple(sorted(new)), tuple(sorted(resolved)), tuple(sorted(levels, key=lambda c: c.finding)))
