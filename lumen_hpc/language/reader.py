"""Reads what a text about a chest radiograph says: findings with their state, side, place, level, type and change.

Two readings of one grammar (grammar.yaml). The strict one, for what may enter a training record, takes a sentence only
if every word of it has its place in one complete parse; what it cannot read for certain becomes a problem. The lenient
one, for scoring what a model says, reads what it can and leaves out the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from lumen_hpc.language import parsing
from lumen_hpc.language.clauses import ANY, CHANGING, NOUNS, Item, Predicate, items_of, predicate_of
from lumen_hpc.language.findings import Finding, State
from lumen_hpc.language.parsing import Clause, Phrase
from lumen_hpc.language.places import Place, places
from lumen_hpc.language.words import LONGEST, Names, Word, tidied, words


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
    foretold: bool
    """Of every finding it says something of the future."""
    problems: tuple[str, ...]
    """Why what was read is not certain."""
    unread: tuple[str, ...]
    """What has no place in a complete parse: unknown words, and whole sentences."""


@lru_cache(maxsize=1 << 14)
def read(text: str, kind: str, names: Names = (), lenient: bool = False) -> Facts:
    """What a text says, as an answer to a question of this type. `names`: (role, word) beyond the vocabulary."""
    found = words(tidied(text) if lenient else text, names)
    lead = ""
    if found and (found[0].text == "yes" or (found[0].text == "no" and (len(found) == 1 or _ends(found[1])))):
        lead = found[0].text
        found = found[2:] if len(found) > 1 and _ends(found[1]) else found[1:]
    reading = _Reading(kind)
    if len(text) > LONGEST:
        reading.unread.append(f"longer than {LONGEST:,} characters")
    for sentence in sentences_of(found):
        reading.add(sentence, lenient)
    return reading.facts(found, lead)


def _ends(word: Word) -> bool:
    return word.text in (",", ".", ";", ":")


def sentences_of(found: list[Word]) -> Iterator[list[Word]]:
    """The words of a text cut at its full stops and semicolons."""
    sentence: list[Word] = []
    for word in found:
        if "stop" not in word.roles:
            sentence.append(word)
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


_PRONOUNS = {"it", "they", "this", "both", "all", "none", "neither"}
_TAKES_UP = ("S ", "~")
"""How a row of the grammar begins whose subject may be that of the clause before."""


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
        self.predicate: Predicate | None = None

    def add(self, sentence: list[Word], lenient: bool) -> None:
        """Reads one sentence, clause by clause."""
        if unknown := [word.text for word in sentence if not word.roles]:
            self.unread.append(f"unknown words: {', '.join(dict.fromkeys(unknown))}")
            if not lenient:
                return
        phrases = parsing.phrases_of([word for word in sentence if word.roles])
        if self.kind == "prediction" and any(
            True for phrase in phrases for word in phrase.leaves() if "main" in word.roles
        ):
            self.problems.append("it speaks of a later image")
        elsewhen = {"prediction": (), "difference": ("Span",)}.get(self.kind, ("Span", "Comp"))
        if elsewhen and any(True for _ in Phrase("", "", phrases).all(*elsewhen)):
            self.problems.append("it speaks of another time")
        parses = parsing.strict(phrases)
        if not parses:
            self.unread.append("no complete parse")
            if not lenient:
                return
            parses = [parsing.lenient(phrases)]
        if len({tuple(clause.start for clause in parse) for parse in parses}) > 1:
            self.problems.append("it can be read in more than one way")
        for clause in parses[0]:
            self.clause(clause)

    def clause(self, clause: Clause) -> None:
        """Takes in what one clause says."""
        if clause.rule == "likewise":
            if self.last is None:
                self.problems.append("it likens to nothing")
                return
            rest = [part for part in self.last.parts if part.kind not in NOUNS]
            clause = replace(clause, rule=self.last.rule, parts=[p for p in clause.parts if p.kind in NOUNS] + rest)
        for place in Phrase("", "", clause.parts).all("Loc", "Place", "NotPlace"):
            (self.denied if place.kind == "NotPlace" else self.places).append(place)
        if clause.rule in ("view", "notview"):
            self.view(clause)
        else:
            items = items_of(clause, self.subjects if self.takes_up(clause) else ())
            if clause.rule == "unchanged" or (not items and not clause.row.startswith("S")):
                items = [Item(ANY, Phrase("Any", ""))]
            if not items:
                self.problems.append("it has no subject")
            if self.kind not in CHANGING:
                _plain(items)
            predicate = predicate_of(clause)
            if clause.row.startswith("List to"):
                predicate.future |= (
                    self.predicate is not None and self.predicate.future
                )  # `a is expected to appear and b to resolve`
            if clause.row.startswith("Nots (") and self.predicate is not None and not predicate.time:
                predicate.time, predicate.unlike = self.predicate.time, self.predicate.unlike  # `shows a but no b`
            if clause.rule in ("follows", "supplants") and len(items) > 1:
                for item in items:
                    item.event = "new" if (item is items[0]) == (clause.rule == "supplants") else "gone"
            for item in items:
                self.findings.setdefault(item.name, Finding(item.name, self.kind)).add(predicate, item)
            self.predicate = predicate
            self.subjects = items
        self.last = clause

    def takes_up(self, clause: Clause) -> bool:
        """Whether a clause without findings speaks of those of the clause before; across sentences by pronoun alone."""
        pronoun = any(word.roles.keys() & _PRONOUNS for part in clause.parts for word in part.leaves())
        return clause.row.startswith(_TAKES_UP) and (clause.start > 0 or pronoun)

    def view(self, clause: Clause) -> None:
        affirmed = clause.rule == "view"
        predicate = predicate_of(clause)
        if predicate.future or predicate.time:
            self.problems.append("it speaks of another time")
        for phrase in clause.parts:
            for view in phrase.roles("view") if phrase.kind == "View" else ():
                if self.views.setdefault(view, affirmed) != affirmed:
                    self.problems.append(f"it says of the {view} view both that it is and that it is not")

    def facts(self, found: list[Word], lead: str) -> Facts:
        """What the whole text says."""
        findings = {name: finding.state() for name, finding in self.findings.items()}
        self.problems += [problem for finding in self.findings.values() for problem in finding.problems]
        others = [state.status for name, state in findings.items() if name != ANY]
        if ANY in findings and others and findings[ANY].status in others and not self.findings[ANY].named:
            del findings[ANY]
        where, denied = places(self.places), places(self.denied)
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
            foretold=all(finding.foretold for finding in self.findings.values()),
            problems=tuple(dict.fromkeys(self.problems)),
            unread=tuple(dict.fromkeys(self.unread)),
        )


def _plain(items: list[Item]) -> None:
    """`Additional` tells no change where there is one image."""
    if {word for item in items for word in item.phrase.roles("newadj")} == {"additional"}:
        for item in items:
            item.event = "" if item.event == "new" else item.event


def places_in(text: str) -> frozenset[Place]:
    """The places that a text names, whatever is said of them."""
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
