"""Records whose images take more tokens than a sample may have lose the oldest ones, in training as in prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lumen_hpc.data.fewer_images import without_oldest
from lumen_hpc.training.lengths import Measure, Record

ANSWER_SHARE = 16
"""One token in so many of `train.max_tokens` is kept for the answer. The answer's own length must not decide which
images a question shows, or what a test question shows would depend on its answer."""


class Fitted(NamedTuple):
    """A record as it is shown."""

    record: Record
    measure: Measure
    left_out: int
    """How many of its oldest images are not shown."""


def fit(
    records: Sequence[Record], measure: Callable[[Sequence[Record]], list[Measure]], max_tokens: int
) -> list[Fitted]:
    """The records, each without as many of its oldest images as its prompt is too long by.

    A record that is still too long when no image can be left out (`without_oldest`) is returned as it then is.
    """
    most = max_tokens - max_tokens // ANSWER_SHARE
    fitted = [Fitted(record, counted, 0) for record, counted in zip(records, measure(records), strict=True)]
    long = list(range(len(fitted)))
    while shorter := {
        place: record
        for place in long
        if fitted[place].measure.prompt > most and (record := without_oldest(fitted[place].record))
    }:
        for (place, record), counted in zip(shorter.items(), measure(list(shorter.values())), strict=True):
            fitted[place] = Fitted(record, counted, fitted[place].left_out + 1)
        long = list(shorter)
    return fitted
