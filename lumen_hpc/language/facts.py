"""The fact check: does a long answer say what the short answer says, and nothing else?

Both the grammar's own sentence and the long answer are read (reader.py), and what they say must be equal.
"""

from __future__ import annotations

import re
from dataclasses import replace

from lumen_hpc.data.diff_vqa import GrammarError, is_closed, parse_difference, parse_findings, parse_question
from lumen_hpc.errors import UserError
from lumen_hpc.language.places import places
from lumen_hpc.language.reader import SIDES, Facts, State, read
from lumen_hpc.language.sentences import sentence
from lumen_hpc.language.words import equal, knows, tags

_COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}
_OPPOSITE = {("absent", "present"), ("gone", "new"), ("down", "up"), ("same", "changed"), ("not-gone", "gone")}


def check(kind: str, question: str, short_answer: str, long_answer: str) -> list[str]:
    """Reasons why a long answer is not faithful to its short answer; empty if it is (sections 2.2 and 2.4).

    A reason is a category, or `category: detail`.
    `kind` is one of the seven question types, or `prediction` with the difference as its short answer. Findings,
    polarity, side, place, level, type, view and direction of change must be equal, and no word may be unknown to the
    reader. Raises UserError for a type that does not exist.
    """
    question = question if question.rstrip().endswith("?") else f"{question.rstrip(' .')}?"
    try:
        own = sentence(kind, question, short_answer)
    except UserError as error:
        return [f"unreadable short answer: {type(error).__name__}"]
    if kind not in ("difference", "prediction") and parse_question(kind, question) is None:
        return ["question outside the dataset's templates"]
    names = _names(kind, question, short_answer)
    wanted, said = read(own, kind, names), read(_named(kind, question, short_answer, long_answer), kind, names)
    said = _renamed(wanted, said)
    if not long_answer.strip():
        return ["empty"]
    return [
        *_wording(kind, question, short_answer, wanted, said),
        *(f"unclear: {problem}" for problem in said.problems if problem != SIDES or SIDES not in wanted.problems),
        *_differences(wanted, said, _placed(kind, short_answer)),
        *_misplaced(kind, question, wanted, said),
    ]


_IT = re.compile(
    r"^\s*(?:it|they|these|this)(?= (?:is|are|lies?|appears?|has|have|involves?|occup(?:y|ies))\b)", re.IGNORECASE
)


def _named(kind: str, question: str, short_answer: str, answer: str) -> str:
    """The answer with the finding of its question in the place of a first pronoun, as in `It is small`.

    Of a type, `compression fracture` is taken as a fracture of type compression, whatever else it may be a name of.
    """
    meant = kind in ("location", "level", "type") or (kind == "presence" and "bilateral" in question.lower())
    parsed = parse_question(kind, question) if meant else None
    if parsed is None or not parsed.finding:
        return answer
    if kind == "type":
        compound = rf"\b({re.escape(short_answer)}) (?={re.escape(parsed.finding)})"
        answer = re.sub(compound, r"\1 type ", answer, flags=re.IGNORECASE)
    return _IT.sub(lambda _: f"the {parsed.finding}", answer)


def _renamed(wanted: Facts, said: Facts) -> Facts:
    """What was said, with a finding's other name put for it where only one of the two names is in play."""
    findings = {}
    for name, state in said.findings.items():
        other = next((ours for ours in wanted.findings if ours != name and equal(ours) == equal(name)), name)
        findings[name if {name, other} <= wanted.findings.keys() or other in said.findings else other] = state
    return replace(said, findings=findings)


def _names(kind: str, question: str, short_answer: str) -> tuple[str, ...]:
    """Findings of a question and its answer that the vocabulary does not hold."""
    names: list[str | None] = []
    try:
        if kind in ("difference", "prediction"):
            change = parse_difference(short_answer)
            names += [*change.new, *change.resolved, *(level.finding for level in change.levels)]
        else:
            parsed = parse_question(kind, question)
            names.append(parsed.finding if parsed else None)
            if kind == "abnormality" and not is_closed(short_answer):
                names += parse_findings(short_answer)
    except GrammarError:
        pass
    return tuple(name for name in dict.fromkeys(names) if name and not knows(name))


def _wording(kind: str, question: str, short_answer: str, wanted: Facts, said: Facts) -> list[str]:
    """What is wrong with the words themselves, whatever they say of findings."""
    reasons = []
    if added := said.unknown - wanted.unknown:
        reasons.append(f"unknown words: {', '.join(sorted(added))}")
    if left_out := wanted.unknown - said.unknown:
        reasons.append(f"left out: {', '.join(sorted(left_out))}")
    if numbers := said.numbers - {tag.value for tag in tags(question) if tag.kind == "number"}:
        reasons.append(f"number not in the question: {', '.join(sorted(numbers))}")
    if said.counts - {_COUNTS.get(len(said.findings)), *(("several", "various") if len(said.findings) > 1 else ())}:
        reasons.append(f"another count: {', '.join(sorted(said.counts))}")
    nothing = all(state.status in ("absent", "same") for state in wanted.findings.values()) and not wanted.views
    if said.lead and said.lead != (short_answer.strip().lower() if is_closed(short_answer) else "no" * nothing):
        reasons.append(f"opening: {said.lead}")
    if kind == "prediction":
        if said.later_image:
            reasons.append("later image")
        if not said.foretold:
            reasons.append("no prediction")
    elif said.expectation:
        reasons.append("expectation or doubt")
    return reasons


def _placed(kind: str, short_answer: str) -> bool:
    """True if the findings of a short answer carry places of their own, so that each must keep its own."""
    listed = kind in ("abnormality", "difference", "prediction")
    return listed and any(tag.kind in ("side", "place") for tag in tags(short_answer))


def _differences(wanted: Facts, said: Facts, placed: bool) -> list[str]:
    reasons = [f"left out: {name}" for name in wanted.findings if name not in said.findings]
    reasons += [f"added: {name}" for name in said.findings if name not in wanted.findings]
    for name in wanted.findings.keys() & said.findings.keys():
        ours, theirs = wanted.findings[name], said.findings[name]
        if ours.status != theirs.status:
            reasons.append(f"polarity or change: {name} is {theirs.status}, not {ours.status}")
        if not _same_levels(ours, theirs):
            reasons.append(f"level: {name}")
        if ours.types != theirs.types:
            reasons.append(f"type: {name}")
    if wanted.views != said.views:
        reasons.append("view")
    if placed and _each_place(wanted) != _each_place(said):
        reasons.append("side or place of one finding")
    return reasons


def _same_levels(ours: State, theirs: State) -> bool:
    """A change of level must be told, and beside it only the levels that it is between."""
    if ours.status != "level":
        return ours.levels == theirs.levels
    between = {(level,) for change in ours.levels for level in change}
    return bool(ours.levels & theirs.levels) and all(len(level) > 1 or level in between for level in theirs.levels)


def _misplaced(kind: str, question: str, wanted: Facts, said: Facts) -> list[str]:
    """Places must be equal; a difference may also repeat the area that its question asks about."""
    parsed = parse_question(kind, question) if kind == "difference" else None
    area = places(tags(parsed.location)) if parsed and parsed.location else frozenset()
    return [] if said.places in (wanted.places, wanted.places | area) else ["side or place"]


def _each_place(facts: Facts) -> dict[str, frozenset]:
    return {name: state.places for name, state in facts.findings.items()}


def score(kind: str, question: str, reference: str, answer: str) -> int:
    """How far an answer states the facts of a reference, from 1 (contradicts it, or shares none) to 10 (equal).

    Between them 1 + 9·F1 over single facts, less the share of the reference's findings that the answer contradicts,
    and at most 9. Words unknown to the reader count neither way.
    """
    names = _names(kind, question, "nothing has changed." if kind in ("difference", "prediction") else "no")
    wanted, said = read(reference, kind, names), read(answer, kind, names)
    ours, theirs = _atoms(wanted), _atoms(said)
    if not ours or not theirs:
        return 10 if " ".join(reference.lower().split()) == " ".join(answer.lower().split()) else 1
    if ours == theirs:
        return 10
    agreement = 2 * len(ours & theirs) / (len(ours) + len(theirs))
    return max(1, min(9, round(1 + 9 * (agreement - _contradicted(wanted, said)))))


def _atoms(facts: Facts) -> set[tuple]:
    atoms: set[tuple] = {("view", view, said) for view, said in facts.views.items()}
    atoms |= {("place", *place) for place in facts.places}
    for name, state in facts.findings.items():
        atoms |= {(name, state.status), *((name, level) for level in state.levels)}
        atoms |= {(name, type_) for type_ in state.types}
    return atoms


def _contradicted(wanted: Facts, said: Facts) -> float:
    """The share of the reference's findings and views that the answer contradicts; a wrong side counts for all."""
    sides, other_sides = ({side for side, _ in facts.places if side} for facts in (wanted, said))
    if sides and other_sides and not sides & other_sides:
        return 1.0
    both = wanted.findings.keys() & said.findings.keys()
    wrong = sum(_contrary(wanted.findings[name], said.findings[name]) for name in both)
    wrong += sum(said.views.get(view, told) != told for view, told in wanted.views.items())
    wrong += bool(wanted.views) and all(wanted.views.values()) and bool(said.views.keys() - wanted.views.keys())
    return wrong / max(1, len(wanted.findings) + len(wanted.views))


def _contrary(ours: State, theirs: State) -> bool:
    if tuple(sorted((ours.status, theirs.status))) in _OPPOSITE:
        return True
    turned = {tuple(reversed(level)) for level in ours.levels if len(level) == 2}
    return bool(turned & theirs.levels) and not ours.levels & theirs.levels
