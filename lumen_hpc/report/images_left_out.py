"""What the report says of test questions that were too long to show all their images (`training/fitting.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def note(answers: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    """The sentence about these answer rows of each model; none where every image was shown. Controls do not count."""
    questions: set[str] = set()
    left_out: dict[str, int] = {}
    for rows in answers.values():
        for row in rows:
            if not row.get("control"):
                questions.add(row["question_id"])
                if count := row.get("images_left_out"):
                    left_out[row["question_id"]] = count
    if not left_out:
        return []
    return [
        f"Images left out: {len(left_out)} of {len(questions)} test questions are too long for `train.max_tokens` and "
        f"are shown without their oldest images, {sum(left_out.values())} in all."
    ]
