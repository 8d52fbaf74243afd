"""What one clause says: of which findings, when, and what (the rows of grammar.yaml's `clauses`, by their rules)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from lumen_hpc.language.attributes import Levels, level_of, readings
from lumen_hpc.language.parsing import Clause, Phrase, Row, grammar, marked
from lumen_hpc.language.words import Word, canonical

ANY = "any finding"
"""An abnormality, whichever."""
CHANGING = ("difference", "prediction")
NOUNS = ("N", "Turn", "Any", "Change")
MODIFIERS = ("Mod", "Front")
VERBS = ("Did", "NotDid", "Done", "Having")


class Problems(dict[str, None]):
    """Why what was read is not certain, in order."""

    def add(self, problem: str, holds: object) -> None:
        """Notes a problem where its condition holds."""
        if holds:
            self[problem] = None


@dataclass(slots=True)
class Said:
    """What is said of one finding; times are then (the reference image), now (the main image) and ""."""

    name: str
    there: dict[str, set[bool]] = field(default_factory=lambda: defaultdict(set))
    levels: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    readings: Levels = frozenset()
    types: set[str] = field(default_factory=set)
    places: list[Phrase] = field(default_factory=list)
    foretold: bool = False
    """Something is said of its future."""


@dataclass(slots=True)
class Item(Said):
    """A finding where a clause names it, with what its own phrase and its modifiers say of it."""

    phrase: Phrase = field(kw_only=True)
    event: str = ""
    """The change that they tell: `new edema`, `resolution of edema`."""

    def marks(self, predicate: Predicate) -> set[str]:
        """What the table of marks asks of it, beside what its clause says."""
        given = {
            "own": self.event,
            f"own={self.event}": self.event,
            "echoed": self.event in predicate.events,
            "ill": self.name in predicate.ills,
            "promised": self.foretold,
            "item-any": self.name == ANY,
            "item.levels": self.levels,
            "item-denied": any(False in there for there in self.there.values()),
            "item-timed": len(self.there) > 1,
        }
        marks = {mark for mark, holds in given.items() if holds}
        marks.update(f"item.{part.kind}" for part in (self.phrase, *self.phrase.all("Loc", "Organ", "OnImg")))
        return marks.union(f"item.{role}" for word in self.phrase.words for role in word.roles)

    def change(self, event: str) -> None:
        """Adds a change that its phrase tells; two that differ are unclear, but for a change's own direction."""
        refines = self.event == "changed" and event in ("up", "down")
        self.event = event if refines or self.event in ("", event) else "unclear"


def items_of(clause: Clause, subjects: Sequence[Item] = ()) -> list[Item]:
    """The findings of a clause in order, each with what holds for it by its place in a list; else the `subjects`."""
    parts = sorted(clause.parts, key=lambda part: part.kind == "Front")
    own = any(part.kind in NOUNS for part in parts)
    items = [] if own else [Item(item.name, phrase=item.phrase) for item in subjects]
    head: Item | None = None
    heirs: list[tuple[Item, str]] = []
    for i, part in enumerate(parts):
        if part.kind in MODIFIERS:
            single = any(word.text in ("is", "was", "has") for word in part.words) and not part.has("neither", "none")
            shared = not single and all(other.kind not in ("N", "Turn") for other in parts[i:])
            for item in items if shared else items[-1:]:
                _modify(item, part)
        elif part.kind in NOUNS:
            item = _item(part)
            items.append(item)
            if part.kind != "Change" and (item.event or item.levels):
                head = item
            elif head and clause.start != 1 and (head.phrase.kind == "Turn" or "the" not in part.roles("det")):
                heirs.append((item, head.event))  # as the list's first, but for `besides new a, b`
    for item, event in heirs:
        item.event = item.event or event
    named = [item for item in items if item.phrase.kind in ("N", "Turn")]
    for item, some in itertools.product(named, (item for item in items if item not in named)):  # new findings: a and b
        item.foretold |= some.foretold
        item.places += [*located(some.phrase), *some.places]
        for time, there in some.there.items():
            item.there[time] = item.there.get(time) or there
        if some.event == "unclear" or False in some.there.get("", ()) or some.levels or some.types:
            item.event = "unclear"
    return named or items


def _item(phrase: Phrase) -> Item:
    named = next((part for part in phrase.parts if part.kind == "N"), phrase)  # of a turn: resolution of edema
    item = Item(ANY, phrase=phrase, event="changed" * (phrase.kind == "Change"), readings=readings(phrase.parts))
    time = ""
    for part in named.parts:
        if part.kind == "Organ" or part.plays("finding"):
            item.name = (part.roles("organ") or part.roles("finding"))[0]
        elif part.kind in ("Level", "Degree", "Rank"):
            item.levels[time].append(level_of(part))
        elif part.plays("then", "now"):
            time = "then" if part.plays("then") else "now"
            item.there[time].add(True)
        elif part.plays("newadj", "oldadj", "residual"):
            item.change(min(part.roles("newadj") or ["same"]))
        elif part.kind == "Newly":
            item.change("new" if set(part.roles("done")) <= {"new"} else "unclear")
        elif part.plays("type"):
            item.types |= set(part.roles("type"))
    if named is not phrase:
        item.change((phrase.roles("noun") or phrase.roles("going"))[0])
    return item


def _modify(item: Item, mod: Phrase) -> None:
    """`Seen on the reference image`, `previously mild`, `that was absent before but is seen now`."""
    item.places += Phrase([mod]).all("Loc", "Place")
    claim: list[Phrase] = []
    for part in mod.parts:
        if not part.plays("and", "but", "comma"):
            claim.append(part)
        elif any(other.kind != "word" or other.has("now", "then") for other in claim):
            _claim(item, claim)
            claim = []
    if claim:
        _claim(item, claim)


def _claim(item: Item, parts: Sequence[Phrase]) -> None:
    """One claim of a modifier: of an image, a change, a level or that the finding is there."""
    said = Predicate(Clause(parts, says=_MODIFIER, start=0), "")
    then, now, denied = (said.has(mark) for mark in ("at-then", "at-now", "negated"))
    item.foretold |= said.has("future")
    item.types |= said.types
    time = "" if then and now else "then" * then + "now" * now
    if events := said.events | {"new"} if said.has("newly") else said.events:
        item.readings |= said.readings
        item.change(min(events) if events < _CHANGES and not denied else "unclear")
    levels = [level for _, level in said.levels]
    for other in (_item(part) for part in parts if part.kind in ("N", "Any")):
        same = canonical(other.name) in (canonical(item.name), ANY)
        levels += other.levels.get("", []) if same else ["another finding"]
        item.change(other.event or item.event)
        item.types |= other.types
    if not levels and (said.has("N") or (said.has("Any") and not (time or denied or said.has("seen")))):
        return  # cardiomegaly, or enlargement of the heart; edema, the finding you ask about
    if said.has("contrary") or (denied and levels) or (said.ills and item.name not in said.ills):
        item.change("unclear")  # the left base, which is blunted
    elif levels:
        item.levels[time] += levels
    elif time or not events:
        item.there[time].add(not denied)


_MODIFIER = Row("modifier", frozenset(), "", frozenset())
_CHANGES = {"new", "same", "up", "down", "changed"}


def time_of(parts: Sequence[Phrase]) -> str:
    """Which image phrases speak of: then (the reference image), now (the main image), or neither."""
    times: set[str] = set()
    for part in parts:
        if part.kind in ("Ref", "OnRef") or part.plays("then"):
            times.add("then")
        elif part.kind in ("Main", "OnMain") or part.plays("now"):
            times.add("now")
        elif part.kind not in (*NOUNS, *MODIFIERS, "Range", "From", "Unlike", "Review", "Comparison"):
            times.add(time_of(part.parts))
    times -= {""}
    return "both" if len(times) > 1 else min(times, default="")


_LEVELS = {"Level": "", "Degree": "", "To": "now", "From": "then"}
"""Phrases of a level, with its time where they tell it."""


class Predicate:
    """What a clause says beside the findings it names, in an answer to a type of question."""

    def __init__(self, clause: Clause, kind: str, earlier: Predicate | None = None) -> None:
        """`earlier`: that of the clause before it, also of another sentence."""
        before = earlier if clause.start else None
        others = [part for part in clause.parts if part.kind not in (*NOUNS, *MODIFIERS)]
        beside = [*clause.all(*grammar().groups["beside"])]
        self.rule = clause.says.rule
        self.time = time_of(others)
        self.readings = readings(others)
        self.places = located(Phrase(others))
        self.types: set[str] = set()
        self.ills: set[str] = set()
        """The findings that an organ is by its adjective: `enlarged`."""
        self.marks: set[str] = set()
        marks = {f":{self.rule}", f"?{kind}"}
        marks |= {f"main={image}" for part in (clause, *beside) for image in part.roles("main")}
        for part in (*clause.parts, *beside):
            marks |= {part.kind, *(f"{part.kind}.{inner.kind}" for inner in part.parts)}
            marks.update(f"{part.kind}.{role}" for word in part.words for role in word.roles)
        events = self._events(others, clause, marks)
        self.events = events - {"become"}
        """The changes that its verb or adjective can stand for."""
        leveled = [part for part in others if part.kind in _LEVELS]
        self.levels = [(_LEVELS[part.kind] or "now" * ("become" in events), level_of(part)) for part in leveled]
        """(time or "", level) for the levels it names."""
        marks |= clause.says.marks
        for name, other in (("before", before), ("earlier", earlier)):
            marks |= grammar().used & {f"{name}.{mark}" for mark in (other.marks if other else ())}
        if before and "same-image" in clause.says.marks and not self.time:  # `shows a but no b`
            self.time = before.time
            marks |= {"Unlike"} & before.marks
        marks.update(f"first.{role}" for role in clause.parts[0].words[0].roles)
        given = {
            "become": "become" in events,
            "after": before,
            "ends": clause.parts[-1].kind in ("Be", "NotBe") and not beside,
            "readings": self.readings,
            "levels": self.levels,
            "placed": self.places,
            "told": self.events,
            f"@{self.time}": self.time,
        }
        marks |= {mark for mark, holds in given.items() if holds}
        marks |= {f"={event}" for event in events} | {f"=={'+'.join(sorted(self.events))}"}
        self.marks = marked("marks", marks)

    def has(self, *marks: str) -> bool:
        """Whether it has one of these marks."""
        return not self.marks.isdisjoint(marks)

    def _events(self, others: Sequence[Phrase], clause: Clause, marks: set[str]) -> set[str]:
        """Adds the roles that its words play to its marks; the changes that they tell."""
        verbs: list[str] = []
        for part in others:
            for word in part.words if part.kind not in ("Range", "Header", "Review", *_LEVELS) else ():
                played = _played(word, part, clause.says)
                marks.update(played, ["visible"] if played.get("seen") == "seen" else [])
                self.types |= {played["type"]} if "type" in played else set()
                self.ills |= set(played.get("diseased", played.get("ailment", "")).split("/")) - {""}
                if part.kind in VERBS or part.kind == "word":
                    verbs += [played[role] for role in grammar().groups["telling"] if role in played]
        leveled = any(part.kind in ("Range", "To") for part in clause.parts)
        one = {verb for verb in verbs if "/" not in verb} - {""}
        # `subside` and `go` tell a change of level where the level is named
        events = one | {it for verb in verbs if "/" in verb for it in verb.split("/") if (it == "gone") != leveled}
        ranges = Phrase([part for part in others if part.kind == "Range"])
        events |= {*ranges.roles("upadj"), *ranges.roles("downadj")}
        general = {_item(part).event for part in clause.parts if part.kind == "Any"} - {""}
        return events | (general if general <= events or not events else {"unclear"})


def located(phrase: Phrase) -> list[Phrase]:
    """The places that a phrase names, without those that it denies."""
    return [place for place in phrase.all("Loc", "Place", "NotPlace") if place.kind != "NotPlace"]


def _played(word: Word, part: Phrase, row: Row) -> dict[str, str]:
    """The roles that a word plays in a clause: where it is no part of a phrase, those that the clause's row names."""
    if part.kind in VERBS:
        normal = {"normal": word.text} if "normal" in word.text else {}
        return {role: value for role, value in word.roles.items() if role not in grammar().groups["no-verb"]} | normal
    if part.kind != "word":
        return word.roles
    named = {role: value for role, value in word.roles.items() if role in row.names or not row.names}
    alone = [role for role in grammar().groups["alone"] if role in named]
    return {role: named[role] for role in alone or named}
