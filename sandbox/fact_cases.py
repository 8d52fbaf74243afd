"""The hand-written cases of the fact check, and what the check makes of them: shared by its tests and its benchmark."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.language.facts import check

CASES = Path(__file__).parents[1] / "tests" / "language" / "fact_cases.jsonl"


def measured(path: Path) -> tuple[Counter, list[tuple[dict, list[str]]]]:
    """Counts by (type, faithful, passed), and the cases that were judged wrongly with the check's reasons."""
    counts: Counter = Counter()
    wrong = []
    for case in read_jsonl(path):
        reasons = check(case["type"], case["question"], case["short_answer"], case["long_answer"])
        counts[case["type"], case["faithful"], not reasons] += 1
        if case["faithful"] != (not reasons):
            wrong.append((case, reasons))
    return counts, wrong
