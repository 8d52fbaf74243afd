"""What a reader of one phantom image at a time can know at best: the opponent that a comparison has to beat.

Some of what an image shows is the patient's own and the same in every image (`phantom_states.CONSTANTS`): a large heart
without cardiomegaly, a spot that is no nodule. One image cannot tell it from the finding; a pair shows what changed. So
two separate readings and a subtraction have a ceiling, computed here, and some questions about one image have no
answer in it.

    python -m lumen_hpc.data.phantom_readings FOLDER        # of a folder that holds the phantoms' truth.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from lumen_hpc.data import phantom_states as ps
from lumen_hpc.data.diff_vqa import parse_question
from lumen_hpc.data.phantom_ceilings import Item, Pair, changes, micro_f1, read_pairs, state_probabilities

AMBIGUOUS = tuple(ps.CONSTANTS)
"""The findings that a constant of the patient looks like."""


class Reading(NamedTuple):
    """One way to read a finding: which appearances are called present."""

    present: frozenset[object]
    hits: int
    """True changes that reading both images so and comparing by rule names."""
    named_changes: int
    """Changes that it names."""


def two_readings(pairs: Sequence[Pair]) -> list[set[Item]]:
    """The changes of each pair that the best two separate readings and a rule name.

    A reading calls each finding present or absent, with its level, by what the one image shows; the rule names what
    differs. Every such reading is tried, and the one with the highest micro F1 on these very pairs is taken, so that
    no reader of one image at a time does better on them.
    """
    truth = [changes(before, after) for before, after, _, _ in pairs]
    certain = sum(item[1] not in AMBIGUOUS for items in truth for item in items)
    total = sum(map(len, truth))

    def f1(choice: tuple[Reading, ...]) -> float:
        hits, named_count = sum(reading.hits for reading in choice), sum(reading.named_changes for reading in choice)
        return 2 * (certain + hits) / max(total + certain + named_count, 1)

    best_readings = max(product(*(list(_readings(finding, pairs)) for finding in AMBIGUOUS)), key=f1)
    present_looks = dict(zip(AMBIGUOUS, best_readings, strict=True))
    return [
        {item for item in true if item[1] not in AMBIGUOUS}
        | {item for f in AMBIGUOUS if (item := _named_change(f, before[f], after[f], present_looks[f].present))}
        for true, (before, after, _, _) in zip(truth, pairs, strict=True)
    ]


def _readings(finding: str, pairs: Sequence[Pair]) -> Iterator[Reading]:
    """Every way to call the appearances of a finding present or absent."""
    looks = sorted({ps.appearance(finding, state) for state in ps.states(finding)}, key=str)
    for called_present in product((False, True), repeat=len(looks)):
        present = frozenset(look for look, is_called in zip(looks, called_present, strict=True) if is_called)
        hits = named_count = 0
        for before, after, _, _ in pairs:
            if item := _named_change(finding, before[finding], after[finding], present):
                named_count += 1
                hits += item == ps.change(finding, before[finding], after[finding])
        yield Reading(present, hits, named_count)


def _named_change(finding: str, before: ps.State, after: ps.State, present: frozenset[object]) -> Item | None:
    called_before, called_after = (ps.appearance(finding, state) in present for state in (before, after))
    return None if called_before == called_after else ("new" if called_after else "resolved", finding)


def presence(finding: str, state: ps.State, order: int) -> float:
    """P(present) of a finding, given what one image shows of it; `order`: the study's place in its timeline from 0."""
    lookalikes = [k for k, other in enumerate(ps.states(finding)) if _look_alike(finding, state, other)]
    p = state_probabilities(finding, order)[lookalikes]
    return float(p[[ps.states(finding)[k].present for k in lookalikes]].sum() / p.sum())


def likeliest(states: ps.States, order: int) -> ps.States:
    """Each finding's likeliest state, given what the image shows of it."""

    def read(finding: str, state: ps.State) -> ps.State:
        all_states = ps.states(finding)
        lookalikes = [k for k, other in enumerate(all_states) if _look_alike(finding, state, other)]
        return all_states[max(lookalikes, key=lambda k: state_probabilities(finding, order)[k])]

    return {finding: read(finding, state) for finding, state in states.items()}


def _look_alike(finding: str, one: ps.State, other: ps.State) -> bool:
    return ps.appearance(finding, one) == ps.appearance(finding, other)


def is_decidable(kind: str, question: str, states: ps.States) -> bool:
    """Whether the image decides a diagnostic question of this type: all states that look the same answer it alike."""
    parsed = parse_question(kind, question)
    finding = parsed.finding if parsed else None
    if kind == "abnormality" and not finding:
        possible = [{state.present for state in _lookalikes(f, states[f])} for f in ps.FINDINGS]
        return {True} in possible or all(presence_values == {False} for presence_values in possible)
    if finding not in AMBIGUOUS:
        return True
    lookalikes = _lookalikes(finding, states[finding])
    if kind == "location":
        return len({state.where for state in lookalikes if state.present}) <= 1
    return len({state.present for state in lookalikes}) == 1


def _lookalikes(finding: str, state: ps.State) -> list[ps.State]:
    return [other for other in ps.states(finding) if _look_alike(finding, state, other)]


def likeliest_answer(question: str, states: ps.States, order: int) -> bool:
    """The likeliest answer, by one image, to the closed question whether a finding (or any finding) is present.

    One present and one absent finding of a study are asked about, so that being asked is evidence too.
    """
    finding = parsed.finding if (parsed := parse_question("presence", question)) else None
    p = {f: presence(f, states[f], order) for f in ps.FINDINGS}
    if finding not in p:
        no_finding = 1.0
        for probability in p.values():
            no_finding *= 1 - probability
        return no_finding < 0.5
    weights = {True: 0.0, False: 0.0}
    for combination in product((True, False), repeat=len(ps.FINDINGS)):
        presences = dict(zip(ps.FINDINGS, combination, strict=True))
        chance = 1.0
        for f, present in presences.items():
            chance *= p[f] if present else 1 - p[f]
        weights[presences[finding]] += chance / sum(present == presences[finding] for present in presences.values())
    return weights[True] >= weights[False]


@dataclass(frozen=True)
class Ceiling:
    """Micro F1 over the changes of every pair of a folder."""

    pair: float
    """Of a reader that sees both images: 1, since the pair shows every change."""
    two_readings: float
    pairs: int


def ceiling(folder: str, split: str | None = None) -> Ceiling:
    """What two separate readings and a rule reach at best, beside a reader of the pair; of one split if given."""
    pairs = list(read_pairs(folder, split))
    truth = [changes(before, after) for before, after, _, _ in pairs]
    visible = [visible_changes(before, after) for before, after, _, _ in pairs]
    return Ceiling(micro_f1(truth, visible), micro_f1(truth, two_readings(pairs)), len(pairs))


def visible_changes(before: ps.States, after: ps.States) -> set[Item]:
    """What two images together show: the changes that all states of the same looks, of one patient, agree on."""
    visible: set[Item] = set()
    for f in ps.FINDINGS:
        possible_pairs = product(_lookalikes(f, before[f]), _lookalikes(f, after[f]))
        possible = {ps.change(f, one, other) for one, other in possible_pairs if one.constant == other.constant}
        if len(possible) == 1 and (item := possible.pop()):
            visible.add(item)
    return visible


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="holds the phantoms' truth.jsonl")
    parser.add_argument("split", nargs="?", help="train, val or test; all of them if left out")
    arguments = parser.parse_args()
    if not (Path(arguments.folder) / "truth.jsonl").is_file():
        parser.error(f"{arguments.folder} has no truth.jsonl; lumen_hpc.data.phantom.write makes a folder of phantoms")
    result = ceiling(arguments.folder, arguments.split)
    print(f"change F1 over {result.pairs} pairs:")
    print(f"  a reader of both images                   {result.pair:.3f}")
    print(f"  the best two separate readings and a rule {result.two_readings:.3f}")


if __name__ == "__main__":
    main()
