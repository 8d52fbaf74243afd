"""Whole sentences for short answers (section 2.2), and answers to prediction questions (section 2.4), fact-checked.

Equal (type, question, short answer) are asked once. A sentence that fails the check is asked for again with
another seed, and after the last attempt the grammar's own sentence stands in: nothing unchecked gets into a row.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lumen_hpc.config import schema
from lumen_hpc.errors import UserError
from lumen_hpc.language import facts, prompting
from lumen_hpc.language.prognosis import predictions
from lumen_hpc.language.protocol import Engine
from lumen_hpc.language.sentences import sentence


@dataclass(slots=True)
class Ask:
    """One sentence to be had, whoever needs it: equal questions share it."""

    type: str
    question: str
    short_answer: str
    seed: int
    long_answer: str = ""
    source: str = ""
    attempts: int = 0
    rejected: list[str] = field(default_factory=list)

    def row(self) -> dict:
        return {
            "long_answer": self.long_answer,
            "source": self.source,
            "attempts": self.attempts,
            "rejected": self.rejected,
        }


def rewrite(questions: Iterable[dict], engine: Engine, rewrite: schema.Rewrite, seed: int) -> Iterator[dict]:
    """Rewrites a shard of questions, and adds the prediction questions of its difference pairs.

    Yields {"question_id", "long_answer", "source" (llm | fallback), "attempts", "rejected" (a reason a rejected
    attempt)} for each question in order; after a difference come its predictions, with "source_question_id",
    "type" and "question" besides. The rows depend on the questions, the engine and the seed alone.
    Raises UserError naming the question's id (never its words) where not even the grammar can make a sentence.
    """
    asks: dict[tuple, Ask] = {}
    rows = []
    for question in questions:
        wanted = [({"question_id": question["question_id"]}, question["type"], question["question"])]
        if question["type"] == "difference":
            drawn = predictions(question, rewrite.predictions_per_pair, seed)
            wanted += [(row, "prediction", row["question"]) for row in drawn]
        for row, kind, text in wanted:
            variant = _number(seed, row["question_id"]) % rewrite.variants
            key = (kind, text, question["short_answer"], variant)
            if key not in asks:
                _answerable(row["question_id"], *key[:3])
                asks[key] = Ask(*key[:3], seed=_number(seed, *map(str, key)))
            rows.append((row, asks[key]))
    answer(list(asks.values()), engine, rewrite)
    for row, ask in rows:
        yield row | ask.row()


def equal_together(questions: Sequence[dict]) -> list[int]:
    """Positions of questions in an order that has those of equal type, wording and answer side by side."""
    keys = array("Q", (equality(q["type"], q["question"], q["short_answer"]) for q in questions))
    return sorted(range(len(keys)), key=lambda position: (keys[position], position))


def equality(kind: str, question: str, short_answer: str) -> int:
    """A 64-bit number that questions share which are asked as one."""
    return _hash(kind, question, short_answer)


def answer(asks: list[Ask], engine: Engine, rewrite: schema.Rewrite) -> None:
    """Fills every ask: up to `rewrite.attempts` batched tries of the engine, then the grammar's sentence."""
    open_asks = asks
    for attempt in range(1, rewrite.attempts + 1):
        if not open_asks:
            return
        completions = engine.chat(
            [prompting.rewriting(ask.type, ask.question, ask.short_answer) for ask in open_asks],
            max_tokens=rewrite.max_tokens,
            temperature=rewrite.temperature,
            seed=[_number(ask.seed, str(attempt)) for ask in open_asks],
        )
        for ask, completion in zip(open_asks, completions, strict=True):
            text = " ".join(completion.text.split())
            ask.attempts = attempt
            reasons = facts.check(ask.type, ask.question, ask.short_answer, text)
            if reasons:
                ask.rejected.append("; ".join(reasons))
            else:
                ask.long_answer, ask.source = text, engine.source
        open_asks = [ask for ask in open_asks if not ask.long_answer]
    for ask in open_asks:
        ask.long_answer, ask.source = sentence(ask.type, ask.question, ask.short_answer), "fallback"


def _answerable(question_id: str, kind: str, question: str, short_answer: str) -> None:
    """Stops before any model is asked where there would be nothing to fall back on."""
    try:
        sentence(kind, question, short_answer)
    except UserError:
        raise UserError(
            f"question {question_id}: its short answer does not follow the grammar of a {kind} answer; "
            "stage prepare names such rows, and prepare.on_bad=skip leaves them out"
        ) from None


def _number(seed: int, *parts: str) -> int:
    """A 31-bit number that depends on the seed and these words alone."""
    return _hash(str(seed), *parts) >> 33


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")
