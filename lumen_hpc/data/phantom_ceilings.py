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
View = Callable[[object, object], object]
"""An oracle's view of one finding, from its appearance (`phantom_states.appearance`) before and after."""

FULL = "reference, days and cue"
ORACLES: dict[str, tuple[View, bool]] = {
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
    return result | {"nothing has changed": sum(not changes_of_pair for changes_of_pair in truth) / max(len(truth), 1)}


def answers(pairs: list[Pair], oracle: str) -> list[set[Item]]:
    """The oracle's answer to each pair: the set of changes it names."""
    beliefs = [belief(pair, oracle) for pair in pairs]
    truth = [changes(before, after) for before, after, _, _ in pairs]
    threshold = best_threshold(truth, beliefs)
    return [{item for item, p in belief.items() if p >= threshold} for belief in beliefs]


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
    findings, constants = row["findings"], row.get("constants", {})
    absent_states = {f: ps.State(constant=constants.get(f, "")) for f in ps.FINDINGS}
    return {f: ps.State(True, **findings[f]) if f in findings else absent_states[f] for f in ps.FINDINGS}


def changes(before: ps.States, after: ps.States) -> set[Item]:
    """The changes between two studies, at most one per finding."""
    items = (ps.change(finding, before[finding], after[finding]) for finding in ps.FINDINGS)
    return {item for item in items if item}


def belief(pair: Pair, oracle: str) -> dict[Item, float]:
    """Posterior probability of every change, given the oracle's view of the pair."""
    view, knows_days = ORACLES[oracle]
    before, after, days, order = pair
    interval_classes = [ps.day_class(days)] if knows_days else list(ps.DAY_CLASS_SHARE)
    # All findings share the interval's class, so the view of each one is evidence about it.
    tables: dict[str, list[Any]] = {
        interval_class: [
            _posteriors(finding, oracle, interval_class, order).get(
                view(ps.appearance(finding, before[finding]), ps.appearance(finding, after[finding]))
            )
            for finding in ps.FINDINGS
        ]
        for interval_class in interval_classes
    }
    class_weights = {
        name: ps.DAY_CLASS_SHARE[name] * np.prod([table[0] if table else 0.0 for table in tables[name]])
        for name in interval_classes
    }
    total = sum(class_weights.values())
    posterior: dict[Item, float] = defaultdict(float)
    for interval_class in interval_classes:
        for table in tables[interval_class] if class_weights[interval_class] else ():
            for item, p in table[1].items():
                posterior[item] += class_weights[interval_class] / total * p
    return posterior


@cache
def _posteriors(finding: str, oracle: str, kind: str, order: int) -> dict[object, tuple[float, dict[Item, float]]]:
    """seen → (its probability, {change: probability given it}) of one finding over an interval of class `kind`."""
    view, _ = ORACLES[oracle]
    initial, transitions, states = state_probabilities(finding, order), ps.transition(finding, kind), ps.states(finding)
    view_probability: dict[object, float] = defaultdict(float)
    joint: dict[object, dict[Item, float]] = defaultdict(lambda: defaultdict(float))
    for i, before in enumerate(states):
        for j, after in enumerate(states):
            if p := initial[i] * transitions[i, j]:
                seen = view(ps.appearance(finding, before), ps.appearance(finding, after))
                view_probability[seen] += p
                if item := ps.change(finding, before, after):
                    joint[seen][item] += p
    return {seen: (p, {item: q / p for item, q in joint[seen].items()}) for seen, p in view_probability.items()}


@cache
def state_probabilities(finding: str, order: int) -> np.ndarray:
    """Probabilities of a finding's states at the study at this position in the timeline."""
    if order == 0:
        return ps.initial(finding)
    step = sum(share * ps.transition(finding, kind) for kind, share in ps.DAY_CLASS_SHARE.items())
    return state_probabilities(finding, order - 1) @ step


def best_threshold(truth: list[set[Item]], beliefs: list[dict[Item, float]]) -> float:
    """The probability from which naming every change gives the highest micro F1 on the set."""
    ranked = sorted(
        ((p, item in true) for true, belief in zip(truth, beliefs) for item, p in belief.items()), reverse=True
    )
    total, hits, best, threshold = sum(map(len, truth)), 0, -1.0, 1.0
    for count, (p, is_hit) in enumerate(ranked, 1):
        hits += is_hit
        last_of_its_value = count == len(ranked) or ranked[count][0] < p
        if last_of_its_value and (f1 := 2 * hits / (count + total)) > best:
            best, threshold = f1, p
    return threshold


def micro_f1(truth: list[set[Item]], predictions: list[set[Item]]) -> float:
    """F1 over all changes of all pairs; 0 if neither side has any."""
    hits = sum(len(true_changes & named_changes) for true_changes, named_changes in zip(truth, predictions))
    total = sum(map(len, truth)) + sum(map(len, predictions))
    return 2 * hits / total if total else 0.0
