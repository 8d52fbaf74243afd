"""Reads what a text about a chest radiograph says: findings with their state, side, place, level, type and change.

Two readings of one grammar (grammar.yaml). The strict one, for what may enter a training record, takes a sentence only
if every word of it has its place in one complete parse; what it cannot read for certain becomes a problem. The lenient
one, for scoring what a model says, reads what it can and leaves out the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from lumen_hpc.language import parsing
from lumen_hpc.language.attributes import Place, places
from lumen_hpc.language.clauses import ANY, FUTURE, NOUNS, Item, Predicate, apart, items_of, predicate_of
from lumen_hpc.language.findings import Finding, State
from lumen_hpc.language.parsing import Clause, Phrase
from lumen_hpc.language.words import LONGEST, Names, Word, tidied, words

LATER = "it speaks of a later image"
"""A problem, except where the question speaks of one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a text says."""

    findings: dict[str, State]
    views: dict[str, bool]
    """False: the text says that it is not this view."""
    places: frozenset[Place]
    """All places named, whichever finding they belong to."""
    numbers: frozenset[str]
    counts: frozenset[str]
    """Number words."""
    lead: str
    """yes or no, where the text opens with it; else empty."""
    partial: bool
    """It denies every finding, or change, of a part of the image that it does not name, such as `the lungs`."""
    foretold: bool
    """Of every finding it says something of the future."""
    problems: tuple[str, ...]
    """Why what was read is not certain."""
    unread: tuple[str, ...]
    """What has no place in a complete parse: unknown words, and whole sentences."""


@lru_cache(maxsize=1 << 14)
def read(text: str, kind: str, names: Names = (), lenient: bool = False) -> Facts:
    """What a text says, as an answer to a question of this type. `names`: (role, word) beyond the vocabulary."""
    found = words(tidied(text) if lenient else text, names, kind == "prediction")
    ended = all(word.text in (",", ".", ";", ":") for word in found[1:2])
    opening = found[0].roles.keys() & ({"yes", "no"} if ended else {"yes"}) if found else ()
    lead = "".join(opening)
    found = found[(1 + ended) * bool(lead) :]
    reading = _Reading(kind)
    if len(text) > LONGEST:
        reading.unread.append(f"longer than {LONGEST:,} characters")
    for sentence in sentences_of(found):
        reading.add(sentence, lenient)
    return reading.facts(found, lead)


def sentences_of(found: list[Word]) -> Iterator[list[Word]]:
    """The words of a text cut at its full stops and semicolons."""
    for stop, sentence in itertools.groupby(found, lambda word: "stop" in word.roles):
        if not stop:
            yield list(sentence)


DENIALS = ("absent", "gone", "notevent")
_NUMBER = {"it": 1, "both": 2, "neither": 2}
"""How many findings a pronoun stands for."""
_ELSEWHEN = {"prediction": ("Once",), "difference": ("Span", "Ahead")}
"""Phrases of another time than the answer to a type of question can speak of."""
_PRONOUNS = {"it", "they", "this", "both", "all", "none", "neither", "do", "did", "there"}


class _Reading:
    """Gathers what the sentences of one text say."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.findings: dict[str, Finding] = {}
        self.views: dict[str, bool] = {}
        self.places: list[Phrase] = []
        self.denied: list[Phrase] = []
        self.problems: list[str] = []
        self.unread: list[str] = []
        self.subjects: list[Item] = []
        self.last: Clause | None = None
        self.sentence = 0
        """Clauses read of this sentence."""
        self.predicate: Predicate | None = None

    def add(self, sentence: list[Word], lenient: bool) -> None:
        """Reads one sentence, clause by clause."""
        if unknown := [word.text for word in sentence if not word.roles]:
            self.unread.append(f"unknown words: {', '.join(dict.fromkeys(unknown))}")
            if not lenient:
                return
        phrases = parsing.phrases_of([word for word in sentence if word.roles])
        main = {word.roles["main"] for phrase in phrases for word in phrase.leaves() if "main" in word.roles}
        main -= {"visit"} if self.kind == "prediction" else set()
        if main and self.kind != "difference" and (self.kind == "prediction" or main != {"main"}):
            self.problems.append(LATER if main == {"later"} else "it speaks of the main image")
        if any(True for _ in Phrase("", "", phrases).all(*_ELSEWHEN.get(self.kind, ("Span", "Ahead", "Comp", "Ref")))):
            self.problems.append("it speaks of another time")
        parses = parsing.strict(phrases)
        if not parses:
            self.unread.append("no complete parse")
            if not lenient:
                return
            parses = [parsing.lenient(phrases)]
        if len({tuple(clause.start for clause in parse) for parse in parses}) > 1:
            self.problems.append("it can be read in more than one way")
        for self.sentence, clause in enumerate(parses[0]):
            self.clause(clause)

    def clause(self, clause: Clause) -> None:
        """Takes in what one clause says."""
        likened = clause.row.rule == "likewise"
        if likened:
            alike = self.last and _auxiliaries(clause.parts) & _auxiliaries(self.last.parts)
            nor = any(part.roles("notso") for part in clause.parts if part.kind not in NOUNS)
            if self.last is None or not alike or (nor and self.last.row.rule not in DENIALS):
                self.problems.append("it likens one thing to another")
                return
            rest = [part for part in self.last.parts if part.kind not in NOUNS]
            clause = replace(clause, row=self.last.row, parts=[p for p in clause.parts if p.kind in NOUNS] + rest)
        clause = apart(clause)
        for place in Phrase("", "", clause.parts).all("Loc", "Place", "NotPlace"):
            (self.denied if place.kind == "NotPlace" else self.places).append(place)
        if clause.row.rule in ("view", "notview"):
            self.view(clause)
        else:
            predicate = predicate_of(clause)
            if self.predicate and clause.start and "same mood" in clause.row.marks:  # a is expected to appear, b to go
                predicate.future |= self.predicate.future
            if self.predicate and "same image" in clause.row.marks and not predicate.time:  # `shows a but no b`
                predicate.time, predicate.unlike = self.predicate.time, self.predicate.unlike
                predicate.against |= predicate.unlike
            items = self.items(clause)
            events = predicate.events | {item.event for item in items}
            if events & {"new", "gone"} and any(Phrase("", "", clause.parts).all("Dim")):
                self.problems.append("it speaks of something of a finding")  # new in size
            if "naming" in clause.row.marks and [item.name for item in self.subjects] == [ANY]:
                self.name()
            self.subjects = [*(self.subjects if likened else ()), *items]  # …, as is b; neither was there before
            self.predicate = predicate
            for item in items:
                self.findings.setdefault(item.name, Finding(item.name, self.kind)).add(predicate, item)
        self.last = clause

    def name(self) -> None:
        """Drops abnormalities that the clause before counted, where this one names them: `These are a and b`."""
        if self.kind == "abnormality" and replace(self.findings[ANY].state(), places=frozenset()) == State("present"):
            self.problems += self.findings.pop(ANY).problems

    def items(self, clause: Clause) -> list[Item]:
        """The findings of a clause: its own, else those of the clause before, across sentences by pronoun alone."""
        rule = clause.row.rule
        pronoun = any(word.roles.keys() & _PRONOUNS for part in clause.parts for word in part.leaves())
        taken_up = self.subjects if clause.row.takes_up and (clause.start > 0 or pronoun) else ()
        items = items_of(clause, taken_up, opened=self.sentence == 0 and clause.start > 0)
        numbers = [
            _NUMBER[role] for part in clause.parts if part.word for role in part.word.roles.keys() & _NUMBER.keys()
        ]
        own = any(part.kind in NOUNS for part in clause.parts)
        if items and not own and any(number != len(items) for number in numbers):
            self.problems.append("its pronoun is of another number")
        every = any(part.word is not None and part.roles("or") for part in clause.parts)  # no finding has … or changed
        of_them = any(Phrase("", "", clause.parts).all("Dim"))
        some = (any(map(_some, items)) and rule == "unchanged") or of_them
        if some and not every and (rule == "unchanged" or (rule == "notevent" and items and items[0].name == ANY)):
            self.problems.append("it speaks of some findings, or of something of them")
        if rule == "unchanged" or (not items and not clause.row.pattern.startswith("S")):
            return [Item(ANY, Phrase("Any", ""))]
        if not items:
            self.problems.append("it has no subject")
        more = {word for item in items for word in item.phrase.roles("newadj")} == {"additional"}
        for i, item in enumerate(items):
            if rule in ("follows", "supplants") and len(items) > 1:
                item.event = "new" if (i == 0) == (rule == "supplants") else "gone"
            elif item.event == "new" and more and self.kind == "abnormality":
                item.event = ""  # `additional` tells no change where there is one image
        return items

    def view(self, clause: Clause) -> None:
        affirmed, predicate = clause.row.rule == "view", predicate_of(clause)
        views = [view for phrase in clause.parts if phrase.kind == "View" for view in phrase.roles("view")]
        if predicate.future or predicate.time:
            self.problems.append("it speaks of another time")
        if any(self.views.setdefault(view, affirmed) != affirmed for view in views):
            self.problems.append("it says of a view both that it is and that it is not")

    def facts(self, found: list[Word], lead: str) -> Facts:
        """What the whole text says."""
        findings = {name: finding.state() for name, finding in self.findings.items()}
        self.problems += [problem for finding in self.findings.values() for problem in finding.problems]
        others = [state.status for name, state in findings.items() if name != ANY]
        implied = ANY in findings and others and findings[ANY].status in others and not self.findings[ANY].named
        if implied and findings[ANY].status != "gone":  # an image that is `now normal` has lost every finding
            del findings[ANY]
        where, denied = places(self.places), places(self.denied)
        unnamed = [p for p in self.places if not any(p.roles(role) for role in ("side", "place", "bothways"))]
        weak = [value for place in unnamed for value in place.roles("weak")]
        if any(place.roles("or") for place in self.places) and any(s.status != "absent" for s in findings.values()):
            self.problems.append("it leaves a place open")
        if denied and (not where or denied & where):
            self.problems.append("it denies a place")
        return Facts(
            findings=findings,
            views=self.views,
            places=frozenset().union(*(state.places for state in findings.values())) or where,
            numbers=frozenset(_numbers(found)),
            counts=frozenset(word.text for word in found if "count" in word.roles),
            lead=lead,
            partial=ANY in findings and findings[ANY].status in ("absent", "same") and "part" in weak,
            foretold=all(finding.foretold for finding in self.findings.values()),
            problems=tuple(dict.fromkeys(self.problems)),
            unread=tuple(dict.fromkeys(self.unread)),
        )


def _some(item: Item) -> bool:
    names = item.phrase.roles("abnormality") if item.phrase.kind == "Any" else []
    return bool(names) and bool(item.event or item.levels or item.types or not names[-1].endswith("s"))


def _auxiliaries(parts: Sequence[Phrase]) -> set[str]:
    """The roles of a clause's auxiliary verbs, those of the future as one."""
    roles = {role for part in parts if part.kind not in NOUNS for word in part.leaves() for role in word.roles}
    return roles & {"be", "have", "do", "show"} | ({"modal"} if roles & FUTURE else set())


def places_in(text: str) -> frozenset[Place]:
    """The places that a text names, whatever it claims about them."""
    phrases = parsing.phrases_of([word for word in words(text) if word.roles])
    return places([part for phrase in phrases for part in [phrase, *phrase.all("Loc")] if part.kind == "Loc"])


@lru_cache(maxsize=1 << 12)
def numbers_of(text: str) -> frozenset[str]:
    """The numbers in a text, those of hours, months and years with their unit."""
    return frozenset(_numbers(words(text)))


def _numbers(found: list[Word]) -> Iterator[str]:
    for word, following in zip(found, [*found, None][1:], strict=True):
        if "number" in word.roles:
            unit = following.text.split()[0] if following is not None and "days" in following.roles else "days"
            yield word.text if unit.startswith("day") else f"{word.text} {unit}"
