"""Reads what a text about a chest radiograph says: findings with their state, side, place, level, type and change.

Two readings of one grammar (grammar.yaml). The strict one, for what may enter a training record, takes a sentence only
if every word of it has its place in one complete parse; what it cannot read for certain becomes a problem. The lenient
one, for scoring what a model says, reads what it can and leaves out the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from lumen_hpc.language import parsing
from lumen_hpc.language.attributes import SIDES, Place, places
from lumen_hpc.language.clauses import ANY, Item, Predicate, Problems, items_of
from lumen_hpc.language.findings import Finding, State
from lumen_hpc.language.parsing import Clause, Phrase
from lumen_hpc.language.words import LONGEST, Names, Word, tidied, vocabulary, words

MORE = "it speaks of other findings beside those it names"
"""A problem of `edema and one abnormality`, whose number could be that of the names."""
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
    lead: str
    """yes or no, where the text opens with it; else empty."""
    partial: bool
    """It denies every finding, or what lies elsewhere, of a part of the image, such as `the lungs`."""
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
    lead = "".join(role for word in found[:1] for role in ("yes", "no")[: 1 + ended] if role in word.roles)
    found = found[(1 + ended) * bool(lead) :]
    reading = _Reading(kind, lenient, {lead} - {""})
    reading.unread.add(f"longer than {LONGEST:,} characters", len(text) > LONGEST)
    for sentence in sentences_of(found):
        reading.add(sentence)
    return reading.facts(found)


def sentences_of(found: list[Word]) -> Iterator[list[Word]]:
    """The words of a text cut at its full stops and semicolons."""
    for stop, sentence in itertools.groupby(found, lambda word: "stop" in word.roles):
        if not stop:
            yield list(sentence)


@dataclass(slots=True)
class _Reading:
    """Gathers what the sentences of one text say."""

    kind: str
    lenient: bool
    leads: set[str]
    """yes or no, where it says so."""
    problems: Problems = field(default_factory=Problems)
    unread: Problems = field(default_factory=Problems)
    findings: dict[str, Finding] = field(default_factory=dict)
    views: dict[str, bool] = field(default_factory=dict)
    places: list[Phrase] = field(default_factory=list)
    denied: list[Phrase] = field(default_factory=list)
    subjects: list[Item] = field(default_factory=list)
    """What the clause before speaks of, without those of `the former` and `the latter`."""
    counts: set[str] = field(default_factory=set)
    """Number words that are not those of the findings in their clause."""
    predicate: Predicate | None = None
    """What the clause before says."""

    def add(self, sentence: list[Word]) -> None:
        """Reads one sentence, clause by clause."""
        unknown = dict.fromkeys(word.text for word in sentence if not word.roles)
        self.unread.add(f"unknown words: {', '.join(unknown)}", unknown)
        if unknown and not self.lenient:
            return
        phrases = parsing.phrases_of([word for word in sentence if word.roles])
        self.unread.add(f"a sentence of more than {parsing.LONGEST} phrases", phrases[parsing.LONGEST :])
        phrases = phrases[: parsing.LONGEST]
        parses = parsing.strict(phrases)
        self.unread.add("no complete parse", not parses)
        if not parses:
            parses = [parsing.lenient(phrases, certain=self.kind != "prediction")] if self.lenient else [[]]
        cuts = {tuple(clause.start for clause in parse) for parse in parses}
        self.problems.add("it can be read in more than one way", len(cuts) > 1)
        beside = any(phrases[max(clause.start - 1, 0)].plays("with") for clause in parses[0])
        beside = beside and not any(clause.own("as") for clause in parses[0])  # with edema as a new finding
        kinds = {phrase.kind for clause in parses[0] for phrase in clause.all("Any", "N")}
        self.problems.add(MORE, beside and kinds == {"Any", "N"})
        for clause in parses[0]:
            self.clause(clause)
        self.problems.add("it breaks off", any(c.own("notonly") and not c.own("butalso") for c in parses[0][-1:]))

    def clause(self, clause: Clause) -> None:
        """Takes in what one clause says."""
        for place in clause.all("Loc", "Place", "NotPlace"):
            (self.denied if place.kind == "NotPlace" else self.places).append(place)
        predicate = Predicate(clause, self.kind, self.predicate)
        self.problems.update(parsing.doubts(predicate.marks))
        if self.lenient and self.kind != "prediction" and predicate.has("modal"):
            return  # what may be is no claim
        if clause.says.rule == "verdict":
            return self.leads.update(clause.roles("closed"))
        if clause.says.rule in ("view", "notview"):
            affirmed = clause.says.rule == "view"
            views = [view for phrase in clause.all("View") for view in phrase.roles("view")]
            both = any(self.views.setdefault(view, affirmed) != affirmed for view in views)
            return self.problems.add("it says of a view both that it is and that it is not", both)
        items = self.items(clause, predicate)
        self.problems.add(MORE, self.more(clause, predicate, items))
        self.subjects = self.subjects if clause.own("former", "latter") else items
        self.predicate = predicate
        for item in items:
            finding = Finding(item.name, kind=self.kind, problems=self.problems)
            self.findings.setdefault(item.name, finding).add(predicate, item)

    def items(self, clause: Clause, predicate: Predicate) -> list[Item]:
        """The findings of a clause: its own, else those of the clause before."""
        rule = clause.says.rule
        taken_up = self.subjects if clause.says.pattern.startswith(("S ", "~")) else ()
        if clause.own("former", "latter"):
            taken_up = self.subjects[clause.own("latter") :][:1] if len(self.subjects) == 2 else ()
        items = items_of(clause, taken_up)
        for part in clause.parts:
            named = part.kind in ("Any", "Number", "Change")
            own = named and items and items[0].name != ANY
            numbers = {*part.roles("count"), *("1" for _ in part.roles("numeral") if named)}
            self.problems.add("it counts what it does not name", own and not numbers <= _count(items))
            self.counts |= set() if own else numbers
        if self.kind == "abnormality" and predicate.has("Any.only", "nothingbut"):
            self.counts.add(str(len(items)))
        predicate.marks.add(f"#{len(items)}")
        if not items and (rule == "unchanged" or not clause.says.pattern.startswith("S")):
            return [Item(ANY, phrase=Phrase((), "Any"))]
        self.problems.add("it has no subject", not items or (clause.own("other") and not self.subjects))
        for i, item in enumerate(items if rule in ("follows", "supplants") else ()):
            item.event = "new" if (i == 0) == (rule == "supplants") else "gone"
        return items

    def more(self, clause: Clause, predicate: Predicate, items: list[Item]) -> bool:
        """Whether it says of findings in general what is not of those it has named: `edema and one abnormality`."""
        named = {item.name for item in items} - {ANY}
        kinds = ["and" if part.plays("and", "or", "with") else part.kind for part in clause.parts]
        kinds = [kind for kind in kinds if kind in ("and", "Any", "N")]
        joined = {("Any", "and", "N"), ("N", "and", "Any")} & {*zip(kinds, kinds[1:], kinds[2:])}
        general = any(item.phrase.parts for item in items) or predicate.has("normal", "diseased", "abnormal")
        return bool(joined) or (not named and general and not self.findings.keys() <= {ANY})

    def facts(self, found: list[Word]) -> Facts:
        """What the whole text says."""
        findings = {name: finding.state() for name, finding in self.findings.items()}
        others = [state for name, state in findings.items() if name != ANY]
        if others and ANY in findings:
            general = findings[ANY].status
            counted = self.counts & _count(others)  # two abnormalities are seen: a and b
            implied = counted or (general != "gone" and "named" not in self.findings[ANY].marks)
            alike = {"changed", *(state.status for state in others if implied)}
            if general in alike or {general} == {state.direction for state in others}:
                del findings[ANY]  # but: an image that is `now normal` has lost every finding
        where = places(self.places, next(iter(findings), ""))
        denied = places(self.denied)
        part = any(p.roles("weak")[-1:] == ["part"] for p in self.places if not p.has("side", "place", "bothways"))
        silent = findings.keys() & {*vocabulary()["outside"]}
        absent = all(state.status == "absent" for state in findings.values())
        self.problems.add("it says both yes and no", len(self.leads) > 1)
        self.problems.add("it leaves a place open", not absent and any(place.has("or") for place in self.places))
        within = any(a <= b and a & SIDES == b & SIDES for a in denied for b in where)
        self.problems.add("it denies a place", within or (denied and not where))
        self.problems.add("it counts what it does not name", self.counts - _count(set(findings) - {ANY}))
        return Facts(
            findings=findings,
            views=self.views,
            places=frozenset().union(*(state.places for state in findings.values())) or where,
            numbers=frozenset(_numbers(found)),
            lead=max(self.leads, default=""),
            partial=part and bool(silent or (ANY in findings and findings[ANY].status in ("absent", "same"))),
            foretold=all(finding.foretold for finding in self.findings.values()),
            problems=tuple(self.problems),
            unread=tuple(self.unread),
        )


def _count(findings: Collection) -> set[str]:
    """The words for how many they are."""
    return {str(len(findings)), "many" * (len(findings) > 1)}


def places_in(text: str) -> frozenset[Place]:
    """The places that a text names, whatever it claims about them."""
    phrases = parsing.phrases_of([word for word in words(text) if word.roles])
    return places([*Phrase(phrases).all("Loc")])


@lru_cache(maxsize=1 << 12)
def numbers_of(text: str) -> frozenset[str]:
    """The numbers in a text, those of hours, months and years with their unit."""
    return frozenset(_numbers(words(text)))


def _numbers(found: list[Word]) -> Iterator[str]:
    for word, following in zip(found, [*found, None][1:], strict=True):
        if "number" in word.roles:
            unit = following.text.split()[0] if following is not None and "days" in following.roles else "days"
            yield word.text if unit.startswith("day") else f"{word.text} {unit}"
