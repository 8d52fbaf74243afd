"""What the report says of test questions that were too long to show all their images (`training/fitting.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def note(rows: Iterable[Mapping[str, Any]], total: int) -> list[str]:
    """The sentence about answer rows to `total` questions; none where every image was shown. Controls do not count."""
    left_out = {
        row["question_id"]: row["images_left_out"]
        for row in rows
        if row.get("images_left_out") and not row.get("control")
    }
    if not left_out:
        return []
    return [
        f"Images left out: {len(left_out)} of {total} test questions are too long for `train.max_tokens` and "
        f"are shown without their oldest images, {sum(left_out.values())} in all."
    ]
