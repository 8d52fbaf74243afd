"""Fits long records into the token limit by leaving out their oldest images, in training as in prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lumen_hpc.data.fewer_images import without_oldest
from lumen_hpc.training.lengths import Measure, Record

ANSWER_SHARE = 16
"""One in this many of `train.max_tokens` is reserved for the answer. The answer's own length must not decide which
images a question shows: what a test question shows would depend on its answer."""


class FittedRecord(NamedTuple):
    """A record as the model sees it."""

    record: Record
    measure: Measure
    images_left_out: int
    """How many of its oldest images are not shown."""


def fit(
    records: Sequence[Record], measure: Callable[[Sequence[Record]], list[Measure]], max_tokens: int
) -> list[FittedRecord]:
    """The records, each without as many of its oldest images as is needed for its prompt to fit.

    A record from which no further image can be left out (`without_oldest`) may still be too long.
    """
    max_prompt = max_tokens - max_tokens // ANSWER_SHARE
    results = [FittedRecord(record, counts, 0) for record, counts in zip(records, measure(records), strict=True)]
    long_positions = list(range(len(results)))
    while shortened_records := {
        position: record
        for position in long_positions
        if results[position].measure.prompt > max_prompt and (record := without_oldest(results[position].record))
    }:
        for (position, record), counts in zip(
            shortened_records.items(), measure(list(shortened_records.values())), strict=True
        ):
            results[position] = FittedRecord(record, counts, results[position].images_left_out + 1)
        long_positions = list(shortened_records)
    return results
