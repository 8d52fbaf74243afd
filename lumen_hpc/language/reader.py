"""Reads what a text about a chest radiograph says: findings with their state, side, place, level, type and change.

Two readings of one grammar (grammar.yaml). The strict one, for what may enter a training record, takes a sentence only
if every word of it has its place in one complete parse; what it cannot read for certain becomes a problem. The lenient
one, for scoring what a model says, reads what it can and leaves out the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from lumen_hpc.language import parsing
from lumen_hpc.language.clauses import ANY, CHANGING, NOUNS, Item, Telling, items_of, telling
from lumen_hpc.language.levels import Levels, rise
from lumen_hpc.language.parsing import Clause, Phrase
from lumen_hpc.language.places import Place, places
from lumen_hpc.language.words import LONGEST, Names, Word, tidied, words


@dataclass(frozen=True, slots=True)
class State:
    """What a text says of one finding."""

    status: str
    """present or absent; of a change new, gone, same, level, up, down or changed; not-… for its denial; stated."""
    levels: Levels = frozenset()
    """(level,); of a level change every way to read `from … to …` as (before, after)."""
    types: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()


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
_DENIALS = ("absent", "notevent", "notplace")
_INHERITS = (
    "S ",
    "holder do",
    "holder Shows neither",
    "(holder | S)",
    "(Ref | Main | Img | it",
    "none",
    "(having",
    "(upadj",
)


@dataclass(slots=True)
class Said:
    """All that a text says of one finding; times are then (the reference image), now (the main image) and ""."""

    there: dict[str, set[bool]] = field(default_factory=lambda: {"then": set(), "now": set(), "": set()})
    levels: dict[str, list[str]] = field(default_factory=lambda: {"then": [], "now": [], "": []})
    events: set[str] = field(default_factory=set)
    readings: Levels = frozenset()
    types: frozenset[str] = frozenset()
    places: list[Phrase] = field(default_factory=list)
    present: bool = False
    foretold: bool = False
    named: bool = False
    """It is named, not only implied by an adjective such as `abnormal`."""


class _Reading:
    """Gathers what the sentences of one text say."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.said: dict[str, Said] = {}
        self.views: dict[str, bool] = {}
        self.places: list[Phrase] = []
        self.denied: list[Phrase] = []
        self.problems: list[str] = []
        self.unread: list[str] = []
        self.subjects: list[Item] = []
        self.last: Clause | None = None
        self.told: Telling | None = None

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
            said = telling(clause)
            if clause.row.startswith("List to"):
                said.future = self.told is not None and self.told.future  # `a is expected to appear and b to resolve`
            if clause.row.startswith("Nots (") and self.told is not None and not said.time:
                said.time, said.unlike = self.told.time, self.told.unlike  # `shows a but no b`
            if clause.rule in ("follows", "supplants") and len(items) > 1:
                for item in items:
                    item.event = "new" if (item is items[0]) == (clause.rule == "supplants") else "gone"
            for item in items:
                self.tell(said, item)
            self.told = said
            self.subjects = items
        self.last = clause

    def takes_up(self, clause: Clause) -> bool:
        """Whether a clause without findings speaks of those of the clause before; across sentences by pronoun alone."""
        pronoun = any(word.roles.keys() & _PRONOUNS for part in clause.parts for word in part.leaves())
        return clause.row.startswith(_INHERITS) and (clause.start > 0 or pronoun)

    def view(self, clause: Clause) -> None:
        said = clause.rule == "view"
        told = telling(clause)
        if told.future or told.time:
            self.problems.append("it speaks of another time")
        for phrase in clause.parts:
            for view in phrase.roles("view") if phrase.kind == "View" else ():
                if self.views.setdefault(view, said) != said:
                    self.problems.append(f"it says of the {view} view both that it is and that it is not")

    def tell(self, told: Telling, item: Item) -> None:
        """Adds what a clause says of one finding."""
        said = self.said.setdefault(item.name, Said())
        time = self.time(told, item)
        said.named |= bool(item.phrase.parts)
        if told.future and self.kind != "prediction":
            self.problems.append("it speaks of what may be")
        turning = told.events or told.newly or told.readings or item.event or told.rule in ("gone", "unchanged")
        if told.time == "then" and (told.future or (turning and self.kind == "difference")):
            self.problems.append("it confuses the two images")
        if told.past and (told.future or (told.rule == "there" and turning)):
            self.problems.append("it speaks of the past")
        if told.lasting and self.kind not in CHANGING:
            self.problems.append("it speaks of another time")
        if told.row in ("S Be", "S NotBe (Loc | lie)?") and told.empty:
            self.problems.append("it breaks off")
        weak = item.phrase.roles("plain") or (self.kind not in CHANGING and item.phrase.roles("newadj"))
        if told.rule in _DENIALS and (told.sure or weak):
            self.problems.append("its denial is weakened")
        if (
            item.name != ANY
            and not item.taken_up
            and item.organ != (told.diseased or told.normal)
            and not (item.organ and item.there)
        ):
            self.problems.append("it does not say what an organ is")
        for when, there in item.there.items():
            said.there["then" if self.kind == "prediction" else when].add(there)
        for when, levels in item.levels.items():
            said.levels[self.when(when)] += levels
        said.readings |= item.readings | told.readings
        said.types |= item.types | told.types
        said.places += [p for p in item.phrase.all("Loc", "Place", "NotPlace") if p.kind != "NotPlace"] + told.places
        said.foretold |= told.future
        later = told.to or told.readings or (told.levels and (told.become or time == "now"))
        if later and said.levels[""] and told.rule in ("level", "event"):
            said.levels["then"] += said.levels[""]
            said.levels[""] = []
        if told.to:
            said.levels["now"].append(told.to)
        if told.before:
            said.levels["then"].append(told.before)
        said.levels[time if not told.become else "now"] += told.levels
        getattr(self, f"_{told.rule}")(told, item, said, time)

    def time(self, told: Telling, item: Item) -> str:
        time = told.time
        if time == "both":
            self.problems += ["it speaks of both images at once"] if told.rule != "unchanged" else []
            time = ""
        if self.kind == "prediction":
            if told.future:
                return "now"
            return "then" if time in ("", "now") else time
        if not time and told.past:
            return "then"
        return time

    def when(self, time: str) -> str:
        return "then" if time == "now" and self.kind == "prediction" else time

    # One method a rule of grammar.yaml's clauses.

    def _there(self, told: Telling, item: Item, said: Said, time: str) -> None:
        if item.event:
            said.events.add(item.event)
        elif told.newly:
            said.events.add("new")
        elif told.still:
            said.events.add("same")
        elif told.events or told.unlike:
            said.events |= told.events or {"new"}
        else:
            said.there[time].add(True)
            said.present |= told.present and self.kind == "difference"

    def _absent(self, told: Telling, item: Item, said: Said, time: str) -> None:
        if item.there.get(time) is False:
            self.problems.append("it denies a denial")
        if item.event:
            said.events.add(f"not-{item.event}")
        elif self.kind == "difference" and ((told.missing and time != "then") or told.unlike):
            said.events.add("gone")
        else:
            said.there[time].add(False)
            said.present |= told.present and self.kind == "difference"

    def _gone(self, told: Telling, item: Item, said: Said, time: str) -> None:
        said.events.add("gone" if time != "then" and not item.event else "unclear")

    def _event(self, told: Telling, item: Item, said: Said, time: str) -> None:
        said.events |= self.events(told, item, said)
        if item.event and not told.events:
            said.events.add(item.event)
        if time == "then" or (item.event and told.events and item.event not in told.events):
            said.events.add("unclear")

    def _notevent(self, told: Telling, item: Item, said: Said, time: str) -> None:
        for event in self.events(told, item, said):
            stays = {"same": "changed" if told.adjective else "gone", "changed": "same"}
            said.events.add(stays.get(event, f"not-{event}"))

    def events(self, told: Telling, item: Item, said: Said) -> set[str]:
        """The change that a verb or adjective tells; of `go` or `subside` a change of level where it names one."""
        events = set(told.events)
        if "third" in told.row and not events & {"same", "changed"}:
            return {"unclear"}  # `edema resolves` tells a habit, not a change
        if len(events) > 1:
            events -= {"gone"} if said.readings or told.to else events - {"gone"}
        if told.become and (told.diseased or told.normal or not told.levels):
            events.add("gone" if told.normal else "new")
        if told.newly:
            events &= {"new"}
        return events if events or told.levels or item.event else {"unclear"}

    def _level(self, told: Telling, item: Item, said: Said, time: str) -> None:
        said.events |= {item.event} - {""}
        if told.events or told.become:
            changing = self.kind in CHANGING
            said.events |= self.events(told, item, said) if changing else {"changed"}

    _notplace = _absent

    def _ranges(self, told: Telling, item: Item, said: Said, time: str) -> None:
        said.levels[time].append(" to ".join(min(told.readings)))
        said.readings -= told.readings

    def _unchanged(self, told: Telling, item: Item, said: Said, time: str) -> None:
        fitting = {"sameadj": {"same"}, "newadj": {"new", "gone"}, "no Change turned": {"new"}}
        fit = next((events for words, events in fitting.items() if words in told.row), {"changed"})
        said.events.add("same" if told.events == fit or ("newadj" not in told.row and not told.events) else "unclear")

    _place = _type = _follows = _supplants = _there

    # What it comes to.

    def state(self, name: str, said: Said) -> State:
        levels: Levels = frozenset((level,) for levels in said.levels.values() for level in levels)
        where = places(said.places, name)
        if self.kind in CHANGING:
            status, levels = self.changed(said)
        else:
            there = set().union(*said.there.values())
            if said.there["then"] or said.levels["then"] or said.foretold:
                self.problems.append("it speaks of another time")
            if len(there) > 1 or len(said.events) > 1:
                self.problems.append("it says two things of one finding")
            status = min(said.events, default="present" if there != {False} else "absent")
            levels |= said.readings
        return State(status, levels, said.types, where)

    def changed(self, said: Said) -> tuple[str, Levels]:
        events, levels, read = set(said.events), said.levels, said.readings
        if levels["then"] and (levels["now"] or levels[""]):
            now = levels["now"] or levels[""]
            read |= {(" to ".join(dict.fromkeys(levels["then"])), " to ".join(dict.fromkeys(now)))}
            levels = {"": levels[""] if levels["now"] else []}
        stray: Levels = frozenset((level,) for told in levels.values() for level in told)
        if read:
            if any(level not in {before for before, *_ in read} for level in levels.get("then", ())):
                self.problems.append("its level before is not that of its change")
            for event, sign in (("up", 1), ("down", -1)):
                if event in events and all(rise(*reading) == -sign for reading in read):
                    self.problems.append("its direction is not that of its levels")
            events = events - {"up", "down", "changed"} | {"level"}
        return self.event(events, said), read | stray

    def event(self, events: set[str], said: Said) -> str:
        """The one event that fits all that is said of a finding."""
        there = said.there
        if events == {"not-new", "not-gone"}:
            return "same"
        if any(len(told) > 1 for told in there.values()) or len(events) > 1:
            self.problems.append("it says two things of one finding")
            events = {"level"} if "level" in events else {"unclear"} if {"new", "gone"} <= events else events
        event = min(events, default="")
        now = there["now"] | there[""]
        if (event == "new" and (True in there["then"] or False in now)) or (
            event == "gone" and (False in there["then"] or True in now)
        ):
            self.problems.append("it confuses the two images")
        if event:
            return event
        if there["then"] and now:
            return {(False, True): "new", (True, False): "gone", (True, True): "same"}.get(
                (min(there["then"]), min(now)), "absent"
            )
        if said.present or (self.kind == "prediction" and there["now"] == {True}):
            return "new" if True in now else "gone"
        return "stated" if True in now | there["then"] else "absent"

    def facts(self, found: list[Word], lead: str) -> Facts:
        """What the whole text says."""
        findings = {name: self.state(name, said) for name, said in self.said.items()}
        others = [state.status for name, state in findings.items() if name != ANY]
        if ANY in findings and others and findings[ANY].status in others and not self.said[ANY].named:
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
            foretold=all(said.foretold for said in self.said.values()),
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
