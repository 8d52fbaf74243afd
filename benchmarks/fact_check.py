"""python -m benchmarks.fact_check [CASES.jsonl]: precision and recall of the fact check on hand-made cases, by type.

A case is {"type", "question", "short_answer", "long_answer", "faithful"}; without an argument, the project's own.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from sandbox.fact_cases import CASES, measured


def row(name: str, counts: Counter, kinds: set[str]) -> str:
    total = {
        key: sum(counts[(kind, *key)] for kind in kinds)
        for key in [(f, p) for f in (True, False) for p in (True, False)]
    }
    passed, faithful = total[True, True] + total[False, True], total[True, True] + total[True, False]
    unfaithful = total[False, True] + total[False, False]
    precision, recall = total[True, True] / max(1, passed), total[True, True] / max(1, faithful)
    caught = total[False, False] / max(1, unfaithful)
    return f"{name:<12} {faithful:>8} {unfaithful:>10} {precision:>10.4f} {recall:>8.4f} {caught:>18.4f}"


if __name__ == "__main__":
    counts, wrong = measured(Path(sys.argv[1]) if len(sys.argv) > 1 else CASES)
    kinds = dict.fromkeys(kind for kind, _, _ in counts)
    print(f"{'type':<12} {'faithful':>8} {'unfaithful':>10} {'precision':>10} {'recall':>8} {'unfaithful caught':>18}")
    for kind in kinds:
        print(row(kind, counts, {kind}))
    print(row("all", counts, set(kinds)))
    for case, reasons in wrong:
        outcome = f"rejected although faithful ({'; '.join(reasons)})" if reasons else "passed although unfaithful"
        print(f"{outcome}: {case['type']} | {case['short_answer'].strip()} | {case['long_answer']}")
