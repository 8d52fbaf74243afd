"""The fact check: does a long answer say what the short answer says, and nothing else?

Both the grammar's own sentence and the long answer are read (reader.py), and what they say must be equal.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace

from lumen_hpc.data.diff_vqa import LEVELS, GrammarError, is_closed, parse_difference, parse_findings, parse_question
from lumen_hpc.errors import UserError
from lumen_hpc.language.attributes import SIDES
from lumen_hpc.language.clauses import CHANGING
from lumen_hpc.language.findings import State
from lumen_hpc.language.reader import LATER, Facts, places_in, read
from lumen_hpc.language.sentences import sentence
from lumen_hpc.language.words import Names, canonical, knows, numbers_of, unknown, words

_OPPOSITE = {("absent", "present"), ("gone", "new"), ("down", "up"), ("same", "changed"), ("not-gone", "gone")}


def check(kind: str, question: str, short_answer: str, long_answer: str) -> list[str]:
    """Reasons why a long answer is not faithful to its short answer; empty if it is (sections 2.2 and 2.4).

    A reason is a category, or `category: detail`.
    `kind` is one of the seven question types, or `prediction` with the difference as its short answer. Findings,
    polarity, side, place, level, type, view and direction of change must be equal, and every word must have its place
    in one complete parse. Raises UserError for a type that does not exist.
    """
    question = question if question.rstrip().endswith("?") else f"{question.rstrip(' .')}?"
    try:
        own = sentence(kind, question, short_answer)
    except UserError as error:
        return [f"unreadable short answer: {type(error).__name__}"]
    if kind not in CHANGING and parse_question(kind, question) is None:
        return ["question outside the dataset's templates"]
    if not long_answer.strip():
        return ["empty"]
    names = _names(kind, question, short_answer)
    given = read(own, kind, names)
    answer = _renamed(given, read(_named(kind, question, short_answer, long_answer), kind, names))
    if given.problems or given.unread:
        return [f"unreadable short answer: {problem}" for problem in (*given.problems, *given.unread)]
    return list(answer.unread) or [
        *(f"unclear: {problem}" for problem in answer.problems if problem != LATER or not _later(kind, question)),
        *_wording(kind, question, short_answer, given, answer),
        *_differences(given, answer, _placed(kind, short_answer)),
        *_misplaced(kind, question, given, answer),
    ]


_IT = re.compile(
    r"^(?!.* (?:that|which) )\s*(?:it|they|these|this)"
    r"(?= (?:is|are|lies?|appears?|has|have|involves?|occup(?:y|ies)|can)\b)",
    re.IGNORECASE,
)


_ITS = re.compile(r"^\s*(?:its|the(?= \w+ is\b)) (level|severity|degree|size|type|location)\b", re.IGNORECASE)


def _named(kind: str, question: str, short_answer: str, answer: str) -> str:
    """The answer with the finding of its question in the place of a first pronoun, as in `It is small`.

    Of a type, `compression fracture` is taken as a fracture of type compression, whatever else it may be a name of. A
    place, level or type alone is taken as the whole sentence.
    """
    meant = kind in ("location", "level", "type") or (kind == "presence" and "bilateral" in question.lower())
    parsed = parse_question(kind, question) if meant else None
    if parsed is None or not parsed.finding:
        return answer
    alone = re.sub(r"^\s*(the answer is )?((in|on|at) the )?", "", answer, flags=re.IGNORECASE)
    if alone.strip(" .").lower() == short_answer.strip(" .").lower() and not is_closed(short_answer):
        return sentence(kind, question, short_answer)
    if kind == "type":
        compound = rf"\b({re.escape(short_answer)}) (?={re.escape(parsed.finding)})"
        answer = re.sub(compound, r"\1 type ", answer, flags=re.IGNORECASE)
    elif kind == "presence":
        one_side = r"\bunilateral(?:ly)?\b|\bpresent on one side(?: only)?\b"
        answer = re.sub(one_side, "not bilateral", answer, flags=re.IGNORECASE)
    answer = _ITS.sub(lambda found: f"the {found[1]} of the {parsed.finding}", answer)
    return _IT.sub(lambda _: f"the {parsed.finding}", answer)


def _renamed(given: Facts, answer: Facts) -> Facts:
    """The answer's facts, with a finding's other name put for it where only one of the two names is in play."""
    findings = {}
    for name, state in answer.findings.items():
        alike = (ours for ours in given.findings if ours != name and canonical(ours) == canonical(name))
        other = next(alike, name)
        apart = {name, other} <= given.findings.keys() or answer.findings.get(other, state) != state
        findings[name if apart else other] = state
    return replace(answer, findings=findings)


def _names(kind: str, question: str, short_answer: str) -> Names:
    """Names in a question and its answer that the vocabulary does not hold, with the roles they play."""
    findings: list[str | None] = []
    others: list[tuple[str, str]] = []
    with suppress(GrammarError):
        if kind in CHANGING:
            change = parse_difference(short_answer)
            findings += [*change.new, *change.resolved, *(level.finding for level in change.levels)]
            others += [it for level in change.levels for it in _levels(f"{level.before} {level.after}")]
        elif parsed := parse_question(kind, question):
            findings.append(parsed.finding)
            others += [("place", word) for word in unknown(parsed.location or "")]
            others += [("place", word) for word in unknown(short_answer)] if kind == "location" else []
            others += _levels(short_answer) if kind == "level" else []
            if kind == "type":  # bibasilar, acute: elsewhere a place and a level
                parts = re.split(r", | and ", short_answer.strip(" ."))
                others += [("type", it) for it in parts if any({"type"} != word.roles.keys() for word in words(it))]
            if kind == "abnormality" and not is_closed(short_answer):
                findings += parse_findings(short_answer)
    names = [("finding", name) for name in findings if name and not knows(name)] + others
    return tuple(dict.fromkeys((role, name.lower()) for role, name in names))


def _levels(text: str) -> list[tuple[str, str]]:
    """Names of levels that the vocabulary does not hold as such: `increasing` is a change elsewhere."""
    found = words(text)
    return [("lvl", it.text) for it in found if not it.roles or (it.text in LEVELS and "lvl" not in it.roles)]


_CLOSED = ("do ", "does ", "is ", "are ", "will ", "can ", "should ", "would ")
"""How a question begins that "Yes, …" answers: "Do you expect any change …?"."""


def _wording(kind: str, question: str, short_answer: str, given: Facts, answer: Facts) -> list[str]:
    """What is wrong with the words themselves, whatever they say of findings."""
    asked = numbers_of(question)
    numbers = answer.numbers - asked - {f"{int(days) // 365} years" for days in asked & {"365", "730", "1095"}}
    nothing = all(state.status in ("absent", "same") for state in given.findings.values()) and not given.views
    lead = short_answer.strip().lower() if is_closed(short_answer) else "no" * nothing
    if kind == "prediction" and not nothing and question.lower().startswith(_CLOSED):
        lead = "yes"
    wrong = {
        f"number not in the question: {', '.join(sorted(numbers))}": numbers,
        f"opening: {answer.lead}": answer.lead not in ("", lead),
        "no prediction": kind == "prediction" and not answer.foretold,
    }
    return [reason for reason, holds in wrong.items() if holds]


def _later(kind: str, question: str) -> bool:
    """True if a question asks for a prediction of a later image, which its answer may then speak of."""
    roles = [word.roles for word in words(question)]
    return kind == "prediction" and any(it.get("main") == "later" or "fromnow" in it for it in roles)


def _placed(kind: str, short_answer: str) -> bool:
    """True if the findings of a short answer carry places of their own, so that each must keep its own."""
    several = kind in ("abnormality", *CHANGING)
    return several and any({"side", "place"} & word.roles.keys() for word in words(short_answer))


def _differences(given: Facts, answer: Facts, placed: bool) -> list[str]:
    reasons = [f"left out: {name}" for name in given.findings if name not in answer.findings]
    reasons += [f"added: {name}" for name in answer.findings if name not in given.findings]
    for name in sorted(given.findings.keys() & answer.findings.keys()):
        ours, theirs = given.findings[name], answer.findings[name]
        differ = {
            f"polarity or change: {name} is {theirs.status}, not {ours.status}": ours.status != theirs.status,
            f"level: {name}": not _same_levels(ours, theirs),
            f"type: {name}": ours.types != theirs.types,
            f"side or place: {name}": placed and ours.places != theirs.places,
        }
        reasons += [reason for reason, holds in differ.items() if holds]
    return reasons + ["view"] * (given.views != answer.views)


def _same_levels(ours: State, theirs: State) -> bool:
    """A change of level must be named, and beside it only the levels that it is between."""
    if ours.status != "level":
        return ours.levels == theirs.levels
    named = {level for change in ours.levels for level in (" to ".join(change), *change)}
    return bool(ours.levels & theirs.levels) and named.issuperset(map(" to ".join, theirs.levels))


def _misplaced(kind: str, question: str, given: Facts, answer: Facts) -> list[str]:
    """Places must be equal; a difference may also repeat the area that its question asks about."""
    parsed = parse_question(kind, question) if kind == "difference" else None
    area = places_in(parsed.location) if parsed and parsed.location else frozenset()
    fit = answer.places in (given.places, given.places | area) and (given.partial or not answer.partial)
    return [] if fit else ["side or place"]


def score(kind: str, question: str, reference: str, answer: str) -> int:
    """How far an answer states the facts of a reference, from 1 (contradicts it, or shares none) to 10 (equal).

    Between them 1 + 9·F1 over single facts, less the share of the reference's findings that the answer contradicts,
    and at most 9. Words unknown to the reader count neither way.
    """
    names = _names(kind, question, "nothing has changed." if kind in CHANGING else "no")
    truth, claims = (read(text, kind, names, lenient=True) for text in (reference, answer))
    ours, theirs = _atoms(truth), _atoms(claims)
    if not ours or not theirs:
        return 10 if " ".join(reference.lower().split()) == " ".join(answer.lower().split()) else 1
    if ours == theirs:
        return 10
    agreement = 2 * len(ours & theirs) / (len(ours) + len(theirs))
    return max(1, min(9, round(1 + 9 * (agreement - _contradicted(truth, claims)))))


def _atoms(facts: Facts) -> set[tuple]:
    atoms = {(name, claim) for name, it in facts.findings.items() for claim in (it.status, *it.levels, *it.types)}
    return atoms | {("view", *view) for view in facts.views.items()} | {("place", place) for place in facts.places}


def _contradicted(truth: Facts, claims: Facts) -> float:
    """The share of the reference's findings and views that the answer contradicts; a wrong side counts for all."""
    sides, other_sides = (SIDES & frozenset().union(*facts.places) for facts in (truth, claims))
    if sides and other_sides and not sides & other_sides:
        return 1.0
    findings = claims.findings
    wrong = sum(_contrary(state, findings[name]) for name, state in truth.findings.items() if name in findings)
    wrong += sum(claims.views.get(view, there) != there for view, there in truth.views.items())
    wrong += bool(truth.views) and all(truth.views.values()) and bool(claims.views.keys() - truth.views.keys())
    return wrong / max(1, len(truth.findings) + len(truth.views))


def _contrary(ours: State, theirs: State) -> bool:
    turned = {level[::-1] for level in ours.levels if len(level) == 2} & theirs.levels
    opposite = tuple(sorted((ours.status, theirs.status))) in _OPPOSITE
    return opposite or (bool(turned) and not ours.levels & theirs.levels)
