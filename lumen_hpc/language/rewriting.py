"""Whole sentences for short answers (section 2.2), and answers to prediction questions (section 2.4), fact-checked.

Equal (type, question, short answer) are requested once. A sentence that fails the check is requested again with
another seed; after the last attempt the grammar's own sentence replaces it. No unchecked sentence reaches a row.
An answer to a closed question opens with `Yes,` or `No,`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lumen_hpc.config import schema
from lumen_hpc.errors import UserError
from lumen_hpc.language import facts, prompting
from lumen_hpc.language.markup import strip_reasoning
from lumen_hpc.language.prediction_questions import draw_predictions
from lumen_hpc.language.protocol import Engine
from lumen_hpc.language.sentences import sentence, with_opening

LEAST_EMPTY_ANSWERS = 10
"""If all of at least so many answers are empty, something is wrong: a content filter refuses only a few."""


@dataclass(slots=True)
class SentenceRequest:
    """One sentence to generate; equal questions share it."""

    type: str
    question: str
    short_answer: str
    seed: int
    long_answer: str = ""
    source: str = ""
    attempts: int = 0
    rejected: list[str] = field(default_factory=list)
    verified: list[dict] = field(default_factory=list)

    def row(self) -> dict:
        row = {
            "long_answer": self.long_answer,
            "source": self.source,
            "attempts": self.attempts,
            "rejected": self.rejected,
        }
        return row | ({"verified": self.verified} if self.verified else {})


def rewrite(questions: Iterable[dict], engine: Engine, rewrite: schema.Rewrite, seed: int) -> Iterator[dict]:
    """Rewrites a shard of questions, and adds the prediction questions of its difference pairs.

    Yields {"question_id", "long_answer", "source" (llm | fallback), "attempts", "rejected" (one reason for each
    rejected attempt)} for each question in order; after a difference come its predictions, with "source_question_id",
    "type" and "question" besides. With rewrite.verify=rules+llm a row also has "verified": of each attempt whether the
    "rules" and the "model" accept it, and its "sentence" where they differ.
    The rows depend on the questions, the engine and the seed alone.
    Raises UserError with the question's id (never its words) where not even the grammar can form a sentence, and where
    all answers are empty.
    """
    requests: dict[tuple, SentenceRequest] = {}
    rows = []
    for question in questions:
        sentences = [({"question_id": question["question_id"]}, question["type"], question["question"])]
        if question["type"] == "difference":
            prediction_rows = draw_predictions(question, rewrite.predictions_per_pair, seed)
            sentences += [(row, "prediction", row["question"]) for row in prediction_rows]
        for row, kind, text in sentences:
            variant = _derive_seed(seed, row["question_id"]) % rewrite.variants
            key = (kind, text, question["short_answer"], variant)
            if key not in requests:
                _require_sentence(row["question_id"], *key[:3])
                requests[key] = SentenceRequest(*key[:3], seed=_derive_seed(seed, *map(str, key)))
            rows.append((row, requests[key]))
    fill(list(requests.values()), engine, rewrite)
    for row, request in rows:
        yield row | request.row()


def order_by_request(questions: Sequence[dict]) -> list[int]:
    """Positions of questions in an order that groups equal type, wording and answer."""
    keys = array("Q", (request_key(q["type"], q["question"], q["short_answer"]) for q in questions))
    return sorted(range(len(keys)), key=lambda position: (keys[position], position))


def request_key(kind: str, question: str, short_answer: str) -> int:
    """A 64-bit key that is equal for questions that share one request."""
    return _hash(kind, question, short_answer)


def fill(requests: list[SentenceRequest], engine: Engine, rewrite: schema.Rewrite) -> None:
    """Fills every request: up to `rewrite.attempts` batched attempts of the engine, then the grammar's sentence."""
    pending = requests
    for attempt in range(1, rewrite.attempts + 1):
        if not pending:
            return
        completions = engine.chat(
            [prompting.rewrite_prompt(request.type, request.question, request.short_answer) for request in pending],
            max_tokens=rewrite.max_tokens,
            temperature=rewrite.temperature,
            seed=[_derive_seed(request.seed, str(attempt)) for request in pending],
        )
        texts = [" ".join(strip_reasoning(completion.text).split()) for completion in completions]
        if attempt == 1 and len(texts) >= LEAST_EMPTY_ANSWERS and not any(texts):
            raise UserError(
                f"all {len(texts)} answers of {engine.name} are empty: it may spend rewrite.max_tokens="
                f"{rewrite.max_tokens} on reasoning (turn that off, or raise it), or overflow in engine.dtype"
            )
        reasons_by_text = [
            facts.check(r.type, r.question, r.short_answer, text) for r, text in zip(pending, texts, strict=True)
        ]
        if rewrite.verify == "rules+llm":
            _add_model_replies(pending, texts, reasons_by_text, engine)
        for request, text, reasons in zip(pending, texts, reasons_by_text, strict=True):
            request.attempts = attempt
            if reasons:
                request.rejected.append("; ".join(reasons))
            else:
                request.long_answer, request.source = with_opening(request.short_answer, text), engine.source
        pending = [request for request in pending if not request.long_answer]
    for request in pending:
        request.long_answer, request.source = sentence(request.type, request.question, request.short_answer), "fallback"


def _add_model_replies(
    requests: list[SentenceRequest], texts: list[str], reasons_by_text: list[list[str]], engine: Engine
) -> None:
    """Adds a reason where the rewriter's own yes or no disagrees with the rules; its yes removes none."""
    replies = engine.chat(
        [
            prompting.verify_prompt(r.type, r.question, r.short_answer, text)
            for r, text in zip(requests, texts, strict=True)
        ],
        max_tokens=1,
        temperature=0,
        seed=0,
        choices=("yes", "no"),
    )
    for request, text, reply, reasons in zip(requests, texts, replies, reasons_by_text, strict=True):
        rules, model = not reasons, reply.text == "yes"
        request.verified.append({"rules": rules, "model": model} | ({"sentence": text} if rules != model else {}))
        if rules != model:
            reasons.append(
                f"the model {'accepts' if model else 'refuses'} what the rules {'accept' if rules else 'refuse'}"
            )


def _require_sentence(question_id: str, kind: str, question: str, short_answer: str) -> None:
    """Raises UserError before any model runs if the grammar has no sentence to fall back on."""
    try:
        sentence(kind, question, short_answer)
    except UserError:
        raise UserError(
            f"question {question_id}: its short answer does not follow the grammar of a {kind} answer; "
            "stage prepare names such rows, and prepare.on_bad=skip leaves them out"
        ) from None


def _derive_seed(seed: int, *parts: str) -> int:
    """A 31-bit number that depends only on the seed and these strings."""
    return _hash(str(seed), *parts) >> 33


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")
