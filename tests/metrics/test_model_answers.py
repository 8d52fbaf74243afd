"""Answers as vision-language models give them, each with what a reasonable reader takes it to say.

A row is {type[, question], answer, reading}: facts of a change, names of findings, yes or no; null where it claims
nothing. The labels were written before the reader first saw the answers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.metrics.change import Reader, facts
from lumen_hpc.metrics.closed import polarity
from lumen_hpc.metrics.join import answer_text

READER = Reader([])
ROWS = list(read_jsonl(Path(__file__).with_name("model_answers.jsonl")))


def reading(row: dict) -> list | str | None:
    answer = answer_text(row | {"question_id": "q"})
    if "question" in row:
        return polarity(row["type"], row["question"], answer)
    if row["type"] == "abnormality":
        return sorted(READER.findings(answer))
    change = READER.change(answer, row["type"])
    return None if change is None else sorted(map(list, facts(change)))


@pytest.mark.parametrize("kind", sorted({row["type"] for row in ROWS}))
def test_an_answer_says_what_a_reasonable_reader_takes_it_to_say(kind):
    rows = [row for row in ROWS if row["type"] == kind]
    assert len(rows) >= 15
    assert [(row["answer"], found) for row in rows if (found := reading(row)) != row["reading"]] == []
