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
from lumen_hpc.language.reader import LATER_IMAGE, Facts, places_in, read
from lumen_hpc.language.sentences import sentence
from lumen_hpc.language.words import Names, canonical_name, knows, numbers_of, unknown_words, words

_OPPOSITES = {"absent present", "down up", "new resolved", "changed same", "not-resolved resolved"}


def check(kind: str, question: str, short_answer: str, long_answer: str) -> list[str]:
    """Reasons why a long answer is not faithful to its short answer; empty if it is (sections 2.2 and 2.4).

    A reason is a category, or `category: detail`.
    `kind` is one of the seven question types, or `prediction` with the difference as its short answer. Findings,
    polarity, side, place, level, type, view and direction of change must be equal, and every word must have its place
    in one complete parse. Raises UserError for a type that does not exist.
    """
    question = question if question.rstrip().endswith("?") else f"{question.rstrip(' .')}?"
    try:
        reference_sentence = sentence(kind, question, short_answer)
    except UserError as error:
        return [f"unreadable short answer: {type(error).__name__}"]
    if kind not in CHANGING and parse_question(kind, question) is None:
        return ["question outside the dataset's templates"]
    if not long_answer.strip():
        return ["empty"]
    names = _extra_names(kind, question, short_answer)
    reference = read(reference_sentence, kind, names)
    answer_facts = _align_names(
        reference, read(_resolve_pronouns(kind, question, short_answer, long_answer), kind, names)
    )
    if reference.problems or reference.unread:
        return [f"unreadable short answer: {problem}" for problem in (*reference.problems, *reference.unread)]
    return list(answer_facts.unread) or [
        *(
            f"unclear: {problem}"
            for problem in answer_facts.problems
            if problem != LATER_IMAGE or not _asks_about_later_image(kind, question)
        ),
        *_wording_faults(kind, question, short_answer, reference, answer_facts),
        *_differences(reference, answer_facts, _has_own_places(kind, short_answer)),
        *_place_faults(kind, question, reference, answer_facts),
    ]


_SUBJECT_PRONOUN = re.compile(
    r"^(?!.* (?:that|which) )(\s*(?:(?:yes|no), )?)(?:it|they|these|this)"
    r"(?= (?:is|are|lies?|appears?|has|have|involves?|occup(?:y|ies)|can)\b)",
    re.IGNORECASE,
)


_POSSESSIVE_PRONOUN = re.compile(
    r"^\s*(?:its|the(?= \w+ is\b)) (level|severity|degree|size|type|location)\b", re.IGNORECASE
)


def _resolve_pronouns(kind: str, question: str, short_answer: str, answer: str) -> str:
    """The answer with the finding of its question in the place of a first pronoun, as in `It is small`.

    Of a type, `compression fracture` is taken as a fracture of type compression, whatever else it may be a name of. A
    place, level or type alone is taken as the whole sentence.
    """
    names_subject = kind in ("location", "level", "type") or (kind == "presence" and "bilateral" in question.lower())
    parsed = parse_question(kind, question) if names_subject else None
    if parsed is None or not parsed.finding:
        return answer
    bare_answer = re.sub(r"^\s*(the answer is )?((in|on|at) the )?", "", answer, flags=re.IGNORECASE)
    if bare_answer.strip(" .").lower() == short_answer.strip(" .").lower() and not is_closed(short_answer):
        return sentence(kind, question, short_answer)
    if kind == "type":
        compound = rf"\b({re.escape(short_answer)}) (?={re.escape(parsed.finding)})"
        answer = re.sub(compound, r"\1 type ", answer, flags=re.IGNORECASE)
    elif kind == "presence":
        one_sided = r"\bunilateral(?:ly)?\b|\bpresent on one side(?: only)?\b"
        answer = re.sub(one_sided, "not bilateral", answer, flags=re.IGNORECASE)
    answer = _POSSESSIVE_PRONOUN.sub(lambda pronoun: f"the {pronoun[1]} of the {parsed.finding}", answer)
    return _SUBJECT_PRONOUN.sub(lambda pronoun: f"{pronoun[1]}the {parsed.finding}", answer)


def _align_names(reference: Facts, answer: Facts) -> Facts:
    """The answer's facts under the reference's names: a synonym is replaced where only one of the two names occurs."""
    findings = {}
    for name, state in answer.findings.items():
        synonyms = (
            ours for ours in reference.findings if ours != name and canonical_name(ours) == canonical_name(name)
        )
        synonym = next(synonyms, name)
        distinct = {name, synonym} <= reference.findings.keys() or answer.findings.get(synonym, state) != state
        findings[name if distinct else synonym] = state
    return replace(answer, findings=findings)


def _extra_names(kind: str, question: str, short_answer: str) -> Names:
    """Names in a question and its answer that the vocabulary lacks, with their roles."""
    findings: list[str | None] = []
    others: list[tuple[str, str]] = []
    with suppress(GrammarError):
        if kind in CHANGING:
            change = parse_difference(short_answer)
            findings += [*change.new, *change.resolved, *(level.finding for level in change.levels)]
            others += [it for level in change.levels for it in _extra_levels(f"{level.before} {level.after}")]
        elif parsed := parse_question(kind, question):
            findings.append(parsed.finding)
            others += [("place", word) for word in unknown_words(parsed.location or "")]
            others += [("place", word) for word in unknown_words(short_answer)] if kind == "location" else []
            others += _extra_levels(short_answer) if kind == "level" else []
            if kind == "type":  # bibasilar, acute: elsewhere a place and a level
                parts = re.split(r", | and ", short_answer.strip(" ."))
                others += [("type", it) for it in parts if any({"type"} != word.roles.keys() for word in words(it))]
            if kind == "abnormality" and not is_closed(short_answer):
                findings += parse_findings(short_answer)
    names = [("finding", name) for name in findings if name and not knows(name)] + others
    return tuple(dict.fromkeys((role, name.lower()) for role, name in names))


def _extra_levels(text: str) -> list[tuple[str, str]]:
    """Names of levels that are no levels in the vocabulary: `increasing` is a change elsewhere."""
    level_words = words(text)
    return [("lvl", it.text) for it in level_words if not it.roles or (it.text in LEVELS and "lvl" not in it.roles)]


_CLOSED_QUESTION_OPENINGS = ("do ", "does ", "is ", "are ", "will ", "can ", "should ", "would ")
"""How a question begins that "Yes, …" answers: "Do you expect any change …?"."""


def _wording_faults(kind: str, question: str, short_answer: str, reference: Facts, answer: Facts) -> list[str]:
    """Faults of the wording itself: its numbers, its opening, its tense."""
    question_numbers = numbers_of(question)
    numbers = (
        answer.numbers
        - question_numbers
        - {f"{int(days) // 365} years" for days in question_numbers & {"365", "730", "1095"}}
    )
    nothing_present = (
        all(state.status in ("absent", "same") for state in reference.findings.values()) and not reference.views
    )
    expected_lead = short_answer.strip().lower() if is_closed(short_answer) else "no" * nothing_present
    if kind == "prediction" and not nothing_present and question.lower().startswith(_CLOSED_QUESTION_OPENINGS):
        expected_lead = "yes"
    faults = {
        f"number not in the question: {', '.join(sorted(numbers))}": numbers,
        f"opening: {answer.lead}": answer.lead not in ("", expected_lead),
        "no prediction": kind == "prediction" and not answer.predicted,
    }
    return [reason for reason, holds in faults.items() if holds]


def _asks_about_later_image(kind: str, question: str) -> bool:
    """True if a question asks for a prediction of a later image: its answer may then speak of one."""
    roles = [word.roles for word in words(question)]
    return kind == "prediction" and any(it.get("main") == "later" or "fromnow" in it for it in roles)


def _has_own_places(kind: str, short_answer: str) -> bool:
    """True if the findings of a short answer carry places of their own, so that each must keep its own."""
    is_list = kind in ("abnormality", *CHANGING)
    return is_list and any({"side", "place"} & word.roles.keys() for word in words(short_answer))


def _differences(reference: Facts, answer: Facts, has_own_places: bool) -> list[str]:
    reasons = [f"left out: {name}" for name in reference.findings if name not in answer.findings]
    reasons += [f"added: {name}" for name in answer.findings if name not in reference.findings]
    for name in sorted(reference.findings.keys() & answer.findings.keys()):
        expected, actual = reference.findings[name], answer.findings[name]
        faults = {
            f"polarity or change: {name} is {actual.status}, not {expected.status}": expected.status != actual.status,
            f"level: {name}": not _same_levels(expected, actual),
            f"type: {name}": expected.types != actual.types,
            f"side or place: {name}": has_own_places and expected.places != actual.places,
        }
        reasons += [reason for reason, holds in faults.items() if holds]
    return reasons + ["view"] * (reference.views != answer.views)


def _same_levels(expected: State, actual: State) -> bool:
    """True if the levels agree; beside a change of level, only the levels of that change may stand."""
    if expected.status != "level":
        return expected.levels == actual.levels
    allowed_levels = {level for change in expected.levels for level in (" to ".join(change), *change)}
    return bool(expected.levels & actual.levels) and allowed_levels.issuperset(map(" to ".join, actual.levels))


def _place_faults(kind: str, question: str, reference: Facts, answer: Facts) -> list[str]:
    """Places must be equal; a difference may also repeat the area that its question asks about."""
    parsed = parse_question(kind, question) if kind == "difference" else None
    area = places_in(parsed.location) if parsed and parsed.location else frozenset()
    places_match = answer.places in (reference.places, reference.places | area) and (
        reference.partial or not answer.partial
    )
    return [] if places_match else ["side or place"]


def score(kind: str, question: str, reference: str, answer: str) -> int:
    """How far an answer states the facts of a reference, from 1 (contradicts it, or shares none) to 10 (equal).

    Between them 1 + 9·F1 over single facts, less the share of the reference's findings that the answer contradicts,
    and at most 9. Words unknown to the reader count neither way.
    """
    names = _extra_names(kind, question, "nothing has changed." if kind in CHANGING else "no")
    reference_facts, answer_facts = (read(text, kind, names, lenient=True) for text in (reference, answer))
    reference_atoms, answer_atoms = _atoms(reference_facts), _atoms(answer_facts)
    if not reference_atoms or not answer_atoms:
        return 10 if " ".join(reference.lower().split()) == " ".join(answer.lower().split()) else 1
    if reference_atoms == answer_atoms:
        return 10
    agreement = 2 * len(reference_atoms & answer_atoms) / (len(reference_atoms) + len(answer_atoms))
    return max(1, min(9, round(1 + 9 * (agreement - _contradicted_share(reference_facts, answer_facts)))))


def _atoms(facts: Facts) -> set[tuple]:
    atoms = {(name, claim) for name, it in facts.findings.items() for claim in (it.status, *it.levels, *it.types)}
    return atoms | {("view", *view) for view in facts.views.items()} | {("place", place) for place in facts.places}


def _contradicted_share(reference: Facts, answer: Facts) -> float:
    """The share of the reference's findings and views that the answer contradicts; a wrong side counts for all."""
    reference_sides, answer_sides = (SIDES & frozenset().union(*facts.places) for facts in (reference, answer))
    if reference_sides and answer_sides and not reference_sides & answer_sides:
        return 1.0
    findings = answer.findings
    contradictions = sum(
        _contradicts(state, findings[name]) for name, state in reference.findings.items() if name in findings
    )
    contradictions += sum(answer.views.get(view, there) != there for view, there in reference.views.items())
    contradictions += (
        bool(reference.views) and all(reference.views.values()) and bool(answer.views.keys() - reference.views.keys())
    )
    return contradictions / max(1, len(reference.findings) + len(reference.views))


def _contradicts(expected: State, actual: State) -> bool:
    reversed_levels = {level[::-1] for level in expected.levels if len(level) == 2} & actual.levels
    is_opposite = " ".join(sorted((expected.status, actual.status))) in _OPPOSITES
    return is_opposite or (bool(reversed_levels) and not expected.levels & actual.levels)
