"""The best possible score of difference and prediction questions about phantoms, by available knowledge.

An oracle here knows the states' tables exactly and sees part of the pair exactly; it names each change whose
posterior probability passes the threshold that is best for the whole set. No model can beat it on average
with the same knowledge, so a score above the oracle without X shows that X was used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lumen_hpc.data import phantom_states as ps

Item = tuple[str, ...]
Sees = Callable[[object, object], object]
"""An oracle's view of one finding, from its appearance (`phantom_states.appearance`) before and after."""

FULL = "reference, days and cue"
ORACLES: dict[str, tuple[Sees, bool]] = {
    "constant": (lambda before, after: None, False),
    "main image only": (lambda before, after: after, False),
    "reference and days, without the cue": (lambda before, after: _without_cue(before), True),
    "reference and cue, without the days": (lambda before, after: before, False),
    FULL: (lambda before, after: before, True),
}
"""Name → (its view of a finding, whether it knows the interval)."""


def _without_cue(appearance: object) -> object:
    return replace(appearance, texture="") if isinstance(appearance, ps.State) else appearance


def ceilings(folder: str | Path) -> dict[str, float]:
    """Micro F1 over the changes of every pair in `folder`/truth.jsonl, for each oracle, and how often nothing changes.

    The keys are those of ORACLES and "nothing has changed" (a share, not an F1).
    """
    pairs = list(read_pairs(folder))
    truth = [changes(before, after) for before, after, _, _ in pairs]
    result = {name: micro_f1(truth, answers(pairs, name)) for name in ORACLES}
    return result | {"nothing has changed": sum(not items for items in truth) / max(len(truth), 1)}


def answers(pairs: list[Pair], oracle: str) -> list[set[Item]]:
    """The oracle's answer to each pair: the set of changes it names."""
    beliefs = [belief(pair, oracle) for pair in pairs]
    truth = [changes(before, after) for before, after, _, _ in pairs]
    threshold = best_threshold(truth, beliefs)
    return [{item for item, p in each.items() if p >= threshold} for each in beliefs]


Pair = tuple[ps.States, ps.States, int, int]
"""Reference states, main states, interval [days], order of the reference in its patient's timeline (0 = first)."""


def read_pairs(folder: str | Path, split: str | None = None) -> Iterator[Pair]:
    """Consecutive studies of each patient of a generated folder (of one split if given), as `Pair`s."""
    before: dict | None = None
    with open(Path(folder) / "truth.jsonl", "rb") as lines:
        for line in lines:
            row = orjson.loads(line)
            if before and before["subject_id"] == row["subject_id"] and split in (None, row["split"]):
                yield pair(before, row)
            before = row


def pair(before: dict, after: dict) -> Pair:
    """The pair that two rows of truth.jsonl make."""
    return study_states(before), study_states(after), after["day"] - before["day"], before["order"] - 1


def study_states(row: dict) -> ps.States:
    """The states of a row of truth.jsonl."""
    found, constants = row["findings"], row.get("constants", {})
    absent = {f: ps.State(constant=constants.get(f, "")) for f in ps.FINDINGS}
    return {f: ps.State(True, **found[f]) if f in found else absent[f] for f in ps.FINDINGS}


def changes(before: ps.States, after: ps.States) -> set[Item]:
    """The changes between two studies, at most one a finding."""
    items = (ps.change(finding, before[finding], after[finding]) for finding in ps.FINDINGS)
    return {item for item in items if item}


def belief(pair: Pair, oracle: str) -> dict[Item, float]:
    """Posterior probability of every change, given the oracle's view of the pair."""
    sees, knows_days = ORACLES[oracle]
    before, after, days, order = pair
    kinds = [ps.day_class(days)] if knows_days else list(ps.DAY_CLASS_SHARE)
    # The interval's class is shared by the findings, so the views of all of them are evidence about it.
    tables: dict[str, list[Any]] = {
        kind: [
            _given(finding, oracle, kind, order).get(
                sees(ps.appearance(finding, before[finding]), ps.appearance(finding, after[finding]))
            )
            for finding in ps.FINDINGS
        ]
        for kind in kinds
    }
    weight = {k: ps.DAY_CLASS_SHARE[k] * np.prod([t[0] if t else 0.0 for t in tables[k]]) for k in kinds}
    total = sum(weight.values())
    posterior: dict[Item, float] = defaultdict(float)
    for kind in kinds:
        for table in tables[kind] if weight[kind] else ():
            for item, p in table[1].items():
                posterior[item] += weight[kind] / total * p
    return posterior


@cache
def _given(finding: str, oracle: str, kind: str, order: int) -> dict[object, tuple[float, dict[Item, float]]]:
    """seen → (its probability, {change: probability given it}) of one finding over an interval of class `kind`."""
    sees, _ = ORACLES[oracle]
    first, table, every = start(finding, order), ps.transition(finding, kind), ps.states(finding)
    seen: dict[object, float] = defaultdict(float)
    joint: dict[object, dict[Item, float]] = defaultdict(lambda: defaultdict(float))
    for i, before in enumerate(every):
        for j, after in enumerate(every):
            if p := first[i] * table[i, j]:
                what = sees(ps.appearance(finding, before), ps.appearance(finding, after))
                seen[what] += p
                if item := ps.change(finding, before, after):
                    joint[what][item] += p
    return {what: (p, {item: q / p for item, q in joint[what].items()}) for what, p in seen.items()}


@cache
def start(finding: str, order: int) -> np.ndarray:
    """Probabilities of a finding's states at the study at this position in the timeline."""
    if order == 0:
        return ps.first(finding)
    step = sum(share * ps.transition(finding, kind) for kind, share in ps.DAY_CLASS_SHARE.items())
    return start(finding, order - 1) @ step


def best_threshold(truth: list[set[Item]], beliefs: list[dict[Item, float]]) -> float:
    """The probability from which naming every change gives the highest micro F1 on the set."""
    scored = sorted(((p, item in true) for true, each in zip(truth, beliefs) for item, p in each.items()), reverse=True)
    total, hits, best, threshold = sum(map(len, truth)), 0, -1.0, 1.0
    for named, (p, hit) in enumerate(scored, 1):
        hits += hit
        last_of_its_value = named == len(scored) or scored[named][0] < p
        if last_of_its_value and (f1 := 2 * hits / (named + total)) > best:
            best, threshold = f1, p
    return threshold


def micro_f1(truth: list[set[Item]], named: list[set[Item]]) -> float:
    """F1 over all changes of all pairs; 0 where there is none on either side."""
    hits = sum(len(a & b) for a, b in zip(truth, named))
    total = sum(map(len, truth)) + sum(map(len, named))
    return 2 * hits / total if total else 0.0
