"""What one clause says: of which findings, when, and what (the rows of grammar.yaml's `clauses`, by their rules)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lumen_hpc.language.attributes import Levels, level_of, readings
from lumen_hpc.language.parsing import NOUNS, Clause, Phrase, Row
from lumen_hpc.language.words import Word

ANY = "any finding"
"""An abnormality, whichever."""
CHANGING = ("difference", "prediction")
MODIFIERS = ("Mod", "Front")
VERBS = ("Did", "NotDid", "Done")
ADJECTIVES = ("newadj", "sameadj", "difadj", "upadj", "downadj")
_TELLING = ("third", "done", "base", "going", "noun", *ADJECTIVES)
"""Roles whose words stand for a change."""


class Problems(dict[str, None]):
    """Why what was read is not certain, in order."""

    def add(self, problem: str, holds: object) -> None:
        """Notes a problem where its condition holds."""
        if holds:
            self[problem] = None


@dataclass(slots=True)
class Item:
    """A finding where a clause names it, with what its own phrase says of it; times are then, now and "" (none)."""

    name: str
    phrase: Phrase
    event: str = ""
    """The change that its phrase tells: `new edema`, `resolution of edema`."""
    inherited: str = ""
    """The change that the first of its list tells."""
    there: dict[str, bool] = field(default_factory=dict)
    levels: dict[str, list[str]] = field(default_factory=dict)
    readings: Levels = frozenset()
    types: frozenset[str] = frozenset()
    foretold: bool = False
    """Its phrase says something of the future."""
    places: list[Phrase] = field(default_factory=list)
    """The places that its modifiers name."""
    organ: bool = False
    """It is written as an organ, which is no finding until the clause says what the organ is."""

    def change(self, event: str) -> None:
        """Adds a change that its phrase tells; two that differ are unclear."""
        self.event = event if self.event in ("", event) else "unclear"


def apart(clause: Clause) -> Clause:
    """A clause whose last words name the one image that it speaks of: `there was no edema in the reference image`."""
    *others, last = clause.parts
    image = last.kind == "Mod" and last.parts[0].kind in ("OnRef", "OnMain") and len(last.parts) == 1 and last.has("in")
    if clause.says.rule not in ("there", "absent", "gone", "unchanged") or not image or time_of(others):
        return clause
    return replace(clause, parts=[*others, *last.parts])


def items_of(clause: Clause, subjects: Sequence[Item] = (), opened: bool = False) -> list[Item]:
    """The findings of a clause in order, each with what holds for it by its place in a list; else the `subjects`.

    Its first may be new alone where the clause is `opened` by a word such as `besides`.
    """
    parts = sorted(clause.parts, key=lambda part: part.kind == "Front")
    items = [] if clause.names_findings else [Item(item.name, item.phrase) for item in subjects]
    head: Item | None = None
    for i, part in enumerate(parts):
        if part.kind in MODIFIERS:
            singular = any(word.text in ("is", "was", "has") for word in part.words)
            one = singular and not (part.has("neither", "none") or clause.has("neither"))
            last = all(other.kind not in ("N", "Turn") for other in parts[i:])
            shared = part.kind == "Front" or (last and not one)
            for item in items if shared else items[-1:]:
                _modify(item, part)
        elif part.kind in NOUNS:
            item = _item(part)
            items.append(item)
            if part.kind != "Change" and (item.event or item.there or item.levels):
                head = item
            elif head and not opened and (head.phrase.kind == "Turn" or "the" not in part.roles("det")):
                item.inherited = head.event  # it says nothing of its own: what the list's first is, it is too
        elif part.plays("no", "as", "so"):
            head = None
    for item in items:
        item.event = item.event or item.inherited
    named = [item for item in items if item.phrase.kind in ("N", "Turn")]
    for item, some in itertools.product(named, (item for item in items if item not in named)):  # new findings: a and b
        item.there = some.there | item.there
        if some.event == "unclear" or some.there.get("") is False or some.levels or some.types:
            item.event = "unclear"
    return named or items


def _item(phrase: Phrase) -> Item:
    named = next((part for part in phrase.parts if part.kind == "N"), phrase)  # of a turn: resolution of edema
    item = Item(ANY, phrase, "changed" * (phrase.kind == "Change"), readings=readings(phrase.parts))
    time = ""
    for part in named.parts:
        if part.kind == "Organ" or part.plays("finding"):
            item.name, item.organ = (part.roles("organ") or part.roles("finding"))[0], part.kind == "Organ"
        elif part.kind in ("Level", "Degree", "Rank"):
            item.levels.setdefault(time, []).append(level_of(part))
        elif part.plays("then", "now"):
            time = "then" if part.plays("then") else "now"
            item.there[time] = True
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
    """One claim of a modifier: of an image, a level or that the finding is there."""
    whole = Phrase(parts)
    time = time_of(parts) or ("then" if whole.has(*PAST, "having") else "")
    if whole.has(*FUTURE):
        item.foretold = True
        time = "both" if time == "then" else "now"
    if time == "both":
        time, item.event = "", "unclear"
    negations = sum(bool(_NEGATIONS & word.roles.keys()) for word in whole.words)
    denied = negations > 0
    for part in parts:
        if part.kind in VERBS or part.has("oldadj", "residual"):
            item.readings |= readings(parts)
            done = (part.roles("done") or part.roles("base") or ["same"])[-1].split("/")
            event = min(_meant(done, bool(item.readings)), default="")
            item.change(event if event in ("new", "same", "up", "down", "changed") else "unclear")
            return
    if any(part.has("newadj", "newly") for part in parts if part.kind in ("word", "Any")):
        item.change("unclear" if denied else "new")
        if not time:
            return
    levels = [level_of(part) for part in parts if part.kind == "Level"]
    others = [_item(part) for part in parts if part.kind == "N"]
    for other in others:
        levels += other.levels.get("", []) if other.name == item.name else ["another finding"]
    bare = any(part.kind == "Any" for part in parts) and not (time or denied or whole.has("seen"))
    if (others and not levels) or bare:
        return  # cardiomegaly, or enlargement of the heart; edema, the finding you ask about
    organ = item.organ or not whole.has("diseased")  # edema of the left base, which is blunted
    if levels and not denied:
        item.levels.setdefault(time, []).extend(levels)
    elif levels or negations > 1 or item.there.get(time, not denied) == denied or not organ:
        item.event = "unclear"
    else:
        item.there[time] = not denied


PAST = {"saw", "usedto", "couldbe", "was", "had", "did", "couldnot"}
_NEGATIONS = {"not", "couldnot", "neither", "none", "nolonger", "normal", "absent", "lacks", "fails"}


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


FUTURE = {"modal", "expected", "bound", "unlikely", "foresee", "forecast", "likely"}
_LEVELS = {"Level": "", "Degree": "", "To": "now", "From": "then"}
"""Phrases of a level, with its time where they tell it."""


class Predicate:
    """What a clause says beside the findings it names, in an answer to a type of question."""

    def __init__(self, clause: Clause, kind: str) -> None:
        others = [part for part in clause.parts if part.kind not in (*NOUNS, *MODIFIERS)]
        beside = list(clause.all("Place", "OnImg", "Comp"))
        self.rule = clause.says.rule
        self.time = time_of(others)
        self.readings = readings(others)
        self.roles: dict[str, list[str]] = {part.kind: [] for part in clause.parts}
        """What its words stand for, by their roles in it, those of levels apart; and the kinds of its phrases."""
        events = self._events(others, clause)
        self.events = events - {"become"}
        """The changes that its verb or adjective can stand for."""
        self.become = "become" in events
        leveled = [part for part in others if part.kind in _LEVELS]
        self.levels = [(_LEVELS[part.kind] or "now" * self.become, level_of(part)) for part in leveled]
        """(time or "", level) for the levels it names."""
        headings = Phrase([part for part in clause.parts if part.kind in ("Header", "Change")])
        self.future = self.has(*FUTURE) or clause.has("likely") or headings.has(*FUTURE)
        showed = any((part.kind == "Shows" and part.has("showed")) or part.plays("appeared") for part in others)
        self.past = self.has(*PAST) or showed
        self.places = located(Phrase(others))
        self.against = self.has("Unlike") or any(part.has("compared", "comparing") for part in others + beside)
        """It holds one image against another."""
        self.alike = any(adjunct.has("as") for adjunct in beside)
        """It says that something is as on another image."""
        self.partly = any(clause.all("Dim")) or self.has("dim")
        """It speaks of something of its findings, such as their level."""
        self.problems = Problems()
        mods = [part for part in clause.parts if part.kind == "Mod" and any(p.kind in VERBS for p in part.parts)]
        done = any(not mod.has(*FUTURE) for mod in mods)  # edema which has developed
        self.problems.add("it speaks of the past", kind == "prediction" and done)
        only = [part for part in clause.parts if part.kind == "Any" and part.has("only")]
        excluding = self.has("nothingbut") or bool(only)
        if kind in CHANGING:  # the only new finding, the only one that was not there: of its image it says nothing
            turned = any(part.kind == "Mod" and part.has(*_NEGATIONS) for part in clause.parts)
            excluding = not turned and not all(_item(part).event for part in only)
        self.problems.add("it excludes others", excluding and kind != "abnormality")
        self.problems.add("it is complete and has a level", self.has("completely") and (self.readings or leveled))
        last = clause.parts[-1]
        broken = last.kind in ("Be", "NotBe") and not (last.adjuncts or beside or self.time)
        self.problems.add("it breaks off", broken and self.rule in ("there", "notplace"))

    def has(self, *roles: str) -> bool:
        """Whether one of its words plays one of these roles."""
        return not self.roles.keys().isdisjoint(roles)

    def _events(self, others: Sequence[Phrase], clause: Clause) -> set[str]:
        """Gathers the roles that its words play; the changes that they tell."""
        verbs: list[str] = []
        for part in others:
            for word in part.words if part.kind not in ("Range", "Header", "Review", *_LEVELS) else ():
                played = _played(word, part, clause.says)
                for role, value in played.items():
                    self.roles.setdefault(role, []).append(value)
                if part.kind in VERBS or part.kind == "word":
                    verbs += [played[role] for role in _TELLING if role in played]
        named = self.has("Range", "To")
        events = {event for verb in verbs if verb for event in _meant(verb.split("/"), named)}
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
        return {role: value for role, value in word.roles.items() if role not in ("diseased", "going")} | normal
    if part.kind != "word":
        return word.roles
    named = {role: value for role, value in word.roles.items() if role in row.names}
    return {"diseased": named["diseased"]} if "diseased" in named else named


def _meant(events: list[str], level_named: bool) -> list[str]:
    """What one verb can stand for here: `subside` and `go` tell a change of level where the level is named."""
    return [event for event in events if len(events) < 2 or (event == "gone") != level_named]
