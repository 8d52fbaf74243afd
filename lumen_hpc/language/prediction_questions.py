"""Prediction questions about the reference image (section 2.4), drawn from a hundred and filled with true intervals."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from lumen_hpc.errors import UserError
from lumen_hpc.language import prompting


def templates() -> tuple[str, ...]:
    """The hundred questions, each with one `{days} days` slot."""
    return tuple(prompting.read_prompt("prediction")["questions"])


def draw_predictions(question: dict, count: int, seed: int) -> Iterator[dict]:
    """The prediction questions of one difference question, without their answers.

    Draws `count` distinct templates by the seed and the question's id. A pair whose interval is unknown, zero or
    negative yields none: the dataset pairs same-day studies, which have no future to predict. Yields {"question_id",
    "source_question_id", "type", "question"}. Raises UserError if `count` exceeds the number of templates.
    """
    pool = templates()
    if not 0 <= count <= len(pool):
        raise UserError(f"rewrite.predictions_per_pair={count}: there are {len(pool)} questions to draw from")
    days = question["interval_days"]
    if days is None or days <= 0:
        return
    source_id = question["question_id"]
    for number, template in enumerate(random.Random(f"{seed}:{source_id}").sample(pool, count)):
        digest = hashlib.sha256(f"prediction:{source_id}:{number}".encode()).hexdigest()
        yield {
            "question_id": digest[: max(16, len(source_id))],
            "source_question_id": source_id,
            "type": "prediction",
            "question": fill_in(template, days),
        }


def fill_in(template: str, days: int) -> str:
    """A template with its interval in whole days; one day takes the singular."""
    return template.replace("{days} days", "1 day" if days == 1 else f"{days} days")
