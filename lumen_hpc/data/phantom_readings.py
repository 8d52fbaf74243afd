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
from typing import NamedTuple

from lumen_hpc.data import phantom_states as ps
from lumen_hpc.data.diff_vqa import parse_question
from lumen_hpc.data.phantom_ceilings import Item, Pair, changes, micro_f1, read_pairs, start

AMBIGUOUS = tuple(ps.CONSTANTS)
"""The findings that a constant of the patient looks like."""


class Labels(NamedTuple):
    """One way to read a finding: which appearances are called present."""

    present: frozenset[object]
    hits: int
    """True changes that reading both images so and comparing by rule names."""
    named: int
    """Changes that it names."""


def two_readings(pairs: Sequence[Pair]) -> list[set[Item]]:
    """The changes of each pair that the best two separate readings and a rule name.

    A reading calls each finding present or absent, with its level, by what the one image shows; the rule names what
    differs. Every such reading is tried, and the one with the highest micro F1 on these very pairs is taken, so that
    no reader of one image at a time does better on them.
    """
    truth = [changes(before, after) for before, after, _, _ in pairs]
    sure = sum(item[1] not in AMBIGUOUS for items in truth for item in items)
    total = sum(map(len, truth))

    def f1(labels: tuple[Labels, ...]) -> float:
        hits, named = sum(each.hits for each in labels), sum(each.named for each in labels)
        return 2 * (sure + hits) / max(total + sure + named, 1)

    best = max(product(*(list(_labels(finding, pairs)) for finding in AMBIGUOUS)), key=f1)
    readings = dict(zip(AMBIGUOUS, best, strict=True))
    return [
        {item for item in true if item[1] not in AMBIGUOUS}
        | {item for f in AMBIGUOUS if (item := _compared(f, before[f], after[f], readings[f].present))}
        for true, (before, after, _, _) in zip(truth, pairs, strict=True)
    ]


def _labels(finding: str, pairs: Sequence[Pair]) -> Iterator[Labels]:
    """Every way to call the appearances of a finding present or absent."""
    looks = sorted({ps.appearance(finding, state) for state in ps.states(finding)}, key=str)
    for chosen in product((False, True), repeat=len(looks)):
        present = frozenset(look for look, called in zip(looks, chosen, strict=True) if called)
        hits = named = 0
        for before, after, _, _ in pairs:
            if item := _compared(finding, before[finding], after[finding], present):
                named += 1
                hits += item == ps.change(finding, before[finding], after[finding])
        yield Labels(present, hits, named)


def _compared(finding: str, before: ps.State, after: ps.State, present: frozenset[object]) -> Item | None:
    one, other = (ps.appearance(finding, state) in present for state in (before, after))
    return None if one == other else ("new" if other else "resolved", finding)


def presence(finding: str, state: ps.State, order: int) -> float:
    """P(present) of a finding, given what one image shows of it; `order`: the study's place in its timeline from 0."""
    alike = [k for k, other in enumerate(ps.states(finding)) if _alike(finding, state, other)]
    p = start(finding, order)[alike]
    return float(p[[ps.states(finding)[k].present for k in alike]].sum() / p.sum())


def likeliest(states: ps.States, order: int) -> ps.States:
    """Each finding's likeliest state, given what the image shows of it."""

    def read(finding: str, state: ps.State) -> ps.State:
        every = ps.states(finding)
        alike = [k for k, other in enumerate(every) if _alike(finding, state, other)]
        return every[max(alike, key=lambda k: start(finding, order)[k])]

    return {finding: read(finding, state) for finding, state in states.items()}


def _alike(finding: str, one: ps.State, other: ps.State) -> bool:
    return ps.appearance(finding, one) == ps.appearance(finding, other)


def decided(kind: str, question: str, states: ps.States) -> bool:
    """Whether the image decides a diagnostic question of this type: all states that look the same answer it alike."""
    parsed = parse_question(kind, question)
    finding = parsed.finding if parsed else None
    if kind == "abnormality" and not finding:
        possible = [{state.present for state in _looks_like(f, states[f])} for f in ps.FINDINGS]
        return {True} in possible or all(each == {False} for each in possible)
    if finding not in AMBIGUOUS:
        return True
    alike = _looks_like(finding, states[finding])
    if kind == "location":
        return len({state.where for state in alike if state.present}) <= 1
    return len({state.present for state in alike}) == 1


def _looks_like(finding: str, state: ps.State) -> list[ps.State]:
    return [other for other in ps.states(finding) if _alike(finding, state, other)]


def guess(question: str, states: ps.States, order: int) -> bool:
    """The likeliest answer of one image to a closed question whether a finding is there (or any is).

    One present and one absent finding of a study are asked about, so that being asked is evidence too.
    """
    finding = parsed.finding if (parsed := parse_question("presence", question)) else None
    p = {f: presence(f, states[f], order) for f in ps.FINDINGS}
    if finding not in p:
        absent = 1.0
        for each in p.values():
            absent *= 1 - each
        return absent < 0.5
    weight = {True: 0.0, False: 0.0}
    for combination in product((True, False), repeat=len(ps.FINDINGS)):
        known = dict(zip(ps.FINDINGS, combination, strict=True))
        chance = 1.0
        for f, present in known.items():
            chance *= p[f] if present else 1 - p[f]
        weight[known[finding]] += chance / sum(present == known[finding] for present in known.values())
    return weight[True] >= weight[False]


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
    seen = [both(before, after) for before, after, _, _ in pairs]
    return Ceiling(micro_f1(truth, seen), micro_f1(truth, two_readings(pairs)), len(pairs))


def both(before: ps.States, after: ps.States) -> set[Item]:
    """What two images together show: the changes that all states of the same looks, of one patient, agree on."""
    found: set[Item] = set()
    for f in ps.FINDINGS:
        alike = product(_looks_like(f, before[f]), _looks_like(f, after[f]))
        possible = {ps.change(f, one, two) for one, two in alike if one.constant == two.constant}
        if len(possible) == 1 and (item := possible.pop()):
            found.add(item)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="holds the phantoms' truth.jsonl")
    parser.add_argument("split", nargs="?", help="train, val or test; all of them if left out")
    arguments = parser.parse_args()
    found = ceiling(arguments.folder, arguments.split)
    print(f"change F1 over {found.pairs} pairs:")
    print(f"  a reader of both images                   {found.pair:.3f}")
    print(f"  the best two separate readings and a rule {found.two_readings:.3f}")


if __name__ == "__main__":
    main()
