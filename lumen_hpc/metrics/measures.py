"""Per-sample scores of one model's answers: a column per measure, the source of every table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lumen_hpc.language.clauses import CHANGING
from lumen_hpc.metrics import closed
from lumen_hpc.metrics.change import (
    KINDS,
    Reader,
    direction,
    expected_change,
    expected_findings,
    facts,
    reader_name,
    scored_facts,
    tally,
)
from lumen_hpc.metrics.lexical import TOKENIZERS, corpus_bleu, lexical
from lumen_hpc.metrics.significance import Column

MEASURES = {
    "bleu4": "BLEU-4 against the long answer: " + TOKENIZERS["bleu4"],
    "rouge_l": "ROUGE-L against the long answer: " + TOKENIZERS["rouge_l"],
    "bleu4_short": "BLEU-4 against the short answer",
    "rouge_l_short": "ROUGE-L against the short answer",
    "recall": "token recall of the short answer, open questions: " + TOKENIZERS["recall"],
    "recall_clipped": "token recall of the short answer, open questions: " + TOKENIZERS["recall_clipped"],
    "precision": "open questions: share of the answer's words that the long answer has, at most as often; "
    "beside recall, which a list of everything wins",
    "accuracy": "closed questions: the first `yes` or `no` of the answer",
    "accuracy_strict": "closed questions: the answer is `yes` or `no`, punctuation aside",
    "accuracy_polarity": "closed questions: the first yes or no, else whether a sentence on what was asked affirms it",
    "exact": "the answer is the long or the short reference, case, spaces and a last full stop aside",
    "change_f1": "difference and prediction: F1 over all new, resolved and level facts (micro)",
    "change_f1_macro": "difference and prediction: mean of each answer's F1 (1 where neither side claims a change)",
    "change_precision": "difference and prediction: claimed changes that are in the reference (micro)",
    "change_recall": "difference and prediction: the reference's changes that are claimed (micro)",
    **{f"change_{kind}_f1": f"difference and prediction: F1 over {kind} facts (micro)" for kind in KINDS},
    "direction": "difference and prediction: worse, better, mixed or same, as in the reference",
    "change_read": "difference and prediction: answers in which a claim about change could be read at all",
    "finding_f1": "open abnormality questions: F1 over the findings named (micro)",
    "finding_f1_macro": "open abnormality questions: mean of each answer's F1 (0 for an answer that says nothing of "
    "findings)",
}


class Samples:
    """One model's answers to questions, scored: `columns[measure]` over the questions in their order."""

    def __init__(self, questions: Sequence[dict], answers: Sequence[str], reader: Reader | None = None) -> None:
        """Scores `answers[i]` to `questions[i]` (rows with their `long_answer`, which may be missing).

        `reader` knows the findings' names; by default those of the questions.
        """
        if len(questions) != len(answers):
            raise ValueError(f"{len(answers)} answers for {len(questions)} questions")
        self.types = np.array([row["type"] for row in questions], object)
        self.columns: dict[str, Column] = {}
        self.directions: dict[int, tuple[str, str | None]] = {}
        """Question → the reference's direction of change, and the answer's; None for one that could not be read."""
        self.finding_lists: dict[int, tuple[set[str] | None, set[str]]] = {}
        """Open abnormality question → the findings that the answer names (None if it could not be read), and those of
        the reference."""
        self._score_texts(questions, answers)
        self._score_closed(questions, answers)
        reader = reader or Reader.of(questions)
        self._score_changes(questions, answers, reader)
        self._score_findings(questions, answers, reader)
        if halves := self.columns.keys() ^ MEASURES.keys():
            raise NotImplementedError(
                f"{', '.join(sorted(halves))}: a row of MEASURES or a column is missing in {__file__}"
            )

    def __len__(self) -> int:
        return len(self.types)

    def summary(self, where: np.ndarray | None = None) -> dict[str, float | int | None]:
        """n and every measure over the samples where `where` is true; None for one that applies to none of them."""
        where = np.ones(len(self), bool) if where is None else where
        long = where & self.columns["bleu4"].applies()
        scores: dict[str, float | int | None] = {"n": int(where.sum())}
        scores |= {name: self.columns[name].mean(where) for name in MEASURES}
        for micro in ("change_f1", "finding_f1"):
            # Nothing to find and nothing named: the answers are judged one by one.
            scores[micro] = scores[f"{micro}_macro"] if scores[micro] is None else scores[micro]
        scores["bleu4_corpus"] = corpus_bleu(self._matches[long], self._lengths[long]) if long.any() else None
        return scores

    def _score_texts(self, questions: Sequence[dict], answers: Sequence[str]) -> None:
        short = [row["short_answer"] for row in questions]
        long = [row.get("long_answer") or "" for row in questions]
        open_ended = np.array([not row["closed"] for row in questions], float)
        has_long = np.array([bool(text) for text in long], float)
        scores = lexical(answers, long)
        self._matches, self._lengths = scores.matches, scores.lengths
        self._add_mean("bleu4", scores.bleu4, has_long)
        self._add_mean("rouge_l", scores.rouge_l, has_long)
        # The long answer's recall by the answer's words, sides exchanged, is the answer's precision.
        self._add_mean("precision", lexical(long, answers).recall_clipped, has_long * open_ended)
        scores = lexical(answers, short)
        everywhere: np.ndarray = np.ones(len(answers))
        self._add_mean("bleu4_short", scores.bleu4, everywhere)
        self._add_mean("rouge_l_short", scores.rouge_l, everywhere)
        self._add_mean("recall", scores.recall, open_ended)
        self._add_mean("recall_clipped", scores.recall_clipped, open_ended)
        exact = [
            _normalize(answer) in {_normalize(text) for text in texts if text}
            for answer, *texts in zip(answers, short, long, strict=True)
        ]
        self._add_mean("exact", exact, everywhere)

    def _score_closed(self, questions: Sequence[dict], answers: Sequence[str]) -> None:
        where = np.array([row["closed"] for row in questions], float)
        rules: dict[str, Callable[[dict, str], str | None]] = {
            "accuracy": lambda row, answer: closed.first_yes_no(answer),
            "accuracy_strict": lambda row, answer: closed.strict_yes_no(answer),
            "accuracy_polarity": lambda row, answer: closed.polarity(row["type"], row.get("question", ""), answer),
        }
        for name, rule in rules.items():
            correct = [
                row["closed"] and rule(row, answer) == row["short_answer"].strip().lower()
                for row, answer in zip(questions, answers, strict=True)
            ]
            self._add_mean(name, correct, where)

    def _score_changes(self, questions: Sequence[dict], answers: Sequence[str], reader: Reader) -> None:
        n = len(answers)
        tallies = {kind: np.zeros((n, 3)) for kind in KINDS}
        macro, correct, has_direction, read, where = (np.zeros(n) for _ in range(5))
        for i, (row, answer) in enumerate(zip(questions, answers, strict=True)):
            expected = expected_change(row) if row["type"] in CHANGING else None
            if expected is None:
                continue
            claim = reader.change(answer, row["type"])
            claims, expected_facts = scored_facts(claim, expected), facts(expected)
            for kind in KINDS:
                tallies[kind][i] = tally(
                    {f for f in claims if f[0] == kind}, {f for f in expected_facts if f[0] == kind}
                )
            where[i], read[i] = 1, claim is not None
            macro[i] = tally(claims, expected_facts).f1 if claim is not None else 0.0
            if expected_direction := direction(expected):
                self.directions[i] = (expected_direction, direction(claim) if claim is not None else None)
                has_direction[i], correct[i] = 1, self.directions[i] == (expected_direction, expected_direction)
        hits, extra, missed = np.sum(list(tallies.values()), axis=0).T
        self.columns["change_f1"] = _f1(hits, extra, missed)
        self.columns["change_precision"] = Column(hits, hits + extra)
        self.columns["change_recall"] = Column(hits, hits + missed)
        for kind in KINDS:
            self.columns[f"change_{kind}_f1"] = _f1(*tallies[kind].T)
        self._add_mean("change_f1_macro", macro, where)
        self._add_mean("direction", correct, has_direction)
        self._add_mean("change_read", read, where)

    def _score_findings(self, questions: Sequence[dict], answers: Sequence[str], reader: Reader) -> None:
        tallies, macro, where = np.zeros((len(answers), 3)), np.zeros(len(answers)), np.zeros(len(answers))
        for i, (row, answer) in enumerate(zip(questions, answers, strict=True)):
            is_list = row["type"] == "abnormality" and not row["closed"]
            expected = expected_findings(row) if is_list else None
            if expected is not None:
                claims, expected_names = (
                    closed.listed_findings(reader, answer),
                    {reader_name(name) for name in expected},
                )
                finding_tally = tally(*({(name,) for name in names} for names in (claims or (), expected_names)))
                self.finding_lists[i], tallies[i], where[i] = (claims, expected_names), finding_tally, 1
                macro[i] = finding_tally.f1 if claims is not None else 0.0
        self.columns["finding_f1"] = _f1(*tallies.T)
        self._add_mean("finding_f1_macro", macro, where)

    def _add_mean(self, name: str, values: Sequence[float] | np.ndarray, where: np.ndarray) -> None:
        """A mean over the samples where `where` is 1; measures of the same samples share that array."""
        self.columns[name] = Column(np.asarray(values, float) * where, where)


def _f1(hits: np.ndarray, extra: np.ndarray, missed: np.ndarray) -> Column:
    return Column(2 * hits, 2 * hits + extra + missed)


def _normalize(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".").rstrip()
