"""What a text says of one finding: gathered clause by clause, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from lumen_hpc.language.clauses import ANY, CHANGING, Item, Predicate
from lumen_hpc.language.levels import Levels, rise
from lumen_hpc.language.parsing import Phrase
from lumen_hpc.language.places import Place, places

_DENIALS = ("absent", "notevent", "notplace", "unchanged")


@dataclass(frozen=True, slots=True)
class State:
    """What a text says of one finding."""

    status: str
    """present or absent; of a change new, gone, same, level, up, down or changed; not-… for its denial; stated."""
    levels: Levels = frozenset()
    """(level,); of a level change every way to read `from … to …` as (before, after)."""
    types: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()


@dataclass(slots=True)
class Finding:
    """All that a text says of one finding; times are then (the reference image), now (the main image) and ""."""

    name: str
    kind: str
    """The question's type."""
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
    problems: list[str] = field(default_factory=list)
    """Why what is said is not certain."""

    def add(self, predicate: Predicate, item: Item) -> None:
        """Adds what a clause says of the finding."""
        self.problems += self.doubts(predicate, item)
        time = self.time(predicate)
        self.named |= bool(item.phrase.parts)
        self.foretold |= predicate.future
        self.readings |= item.readings | predicate.readings
        self.types |= item.types | predicate.types
        self.places += [
            p for p in item.phrase.all("Loc", "Place", "NotPlace") if p.kind != "NotPlace"
        ] + predicate.places
        for when, there in item.there.items():
            self.there["then" if self.kind == "prediction" else when].add(there)
        for when, levels in item.levels.items():
            self.levels["then" if when == "now" and self.kind == "prediction" else when] += levels
        later = predicate.to or predicate.readings or (predicate.levels and (predicate.become or time == "now"))
        if later and self.levels[""] and predicate.rule in ("level", "event"):
            self.levels["then"] += self.levels[""]  # a moderate effusion has shrunk to small
            self.levels[""] = []
        self.levels["now"] += [predicate.to] if predicate.to else []
        self.levels["then"] += [predicate.before] if predicate.before else []
        self.levels["now" if predicate.become else time] += predicate.levels
        getattr(self, f"_{predicate.rule}")(predicate, item, time)

    def doubts(self, predicate: Predicate, item: Item) -> list[str]:
        """Why a clause does not tell this for certain: mood, tense, image, a weakened denial."""
        changing = self.kind in CHANGING
        turning = (
            predicate.events
            or predicate.newly
            or predicate.readings
            or item.event
            or predicate.rule in ("gone", "unchanged")
        )
        weak = predicate.sure or item.phrase.roles("plain") or (not changing and item.phrase.roles("newadj"))
        organ = item.organ != (predicate.diseased or predicate.normal) and not (item.organ and item.there)
        reasons = {
            "it speaks of what may be": predicate.future and self.kind != "prediction",
            "it confuses the two images": predicate.time == "then"
            and (predicate.future or (turning and self.kind == "difference")),
            "it speaks of both images at once": predicate.time == "both" and predicate.rule != "unchanged",
            "it speaks of the past": predicate.past and (predicate.future or (predicate.rule == "there" and turning)),
            "it speaks of another time": predicate.lasting and not changing,
            "it is still so that it changed": predicate.still and bool(predicate.events - {"same"}),
            "it breaks off": predicate.empty and predicate.row in ("S Be", "S NotBe (Loc | lie)?"),
            "its denial is weakened": weak and predicate.rule in _DENIALS,
            "it does not say what an organ is": organ and self.name != ANY and not item.taken_up,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def time(self, predicate: Predicate) -> str:
        """The image that a clause speaks of."""
        if self.kind == "prediction":
            return "now" if predicate.future else "then"
        return predicate.time.replace("both", "") or ("then" if predicate.past else "")

    # One method a rule of grammar.yaml's clauses.

    def _there(self, predicate: Predicate, item: Item, time: str) -> None:
        if item.event:
            self.events.add(item.event)
        elif predicate.newly:
            self.events.add("new")
        elif predicate.still:
            self.events.add("same")
        elif predicate.events or predicate.unlike:
            self.events |= predicate.events or {"new"}
        else:
            self.there[time].add(True)
            self.present |= predicate.present and self.kind == "difference"

    def _absent(self, predicate: Predicate, item: Item, time: str) -> None:
        if item.there.get(time) is False:
            self.problems.append("it denies a denial")
        if item.event:
            self.events.add(f"not-{item.event}")
        elif self.kind == "difference" and ((predicate.missing and time != "then") or predicate.unlike):
            self.events.add("gone")
        else:
            self.there[time].add(False)
            self.present |= predicate.present and self.kind == "difference"

    def _gone(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events.add("gone" if time != "then" and not item.event else "unclear")

    def _event(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events |= self.changes(predicate, item)
        if item.event and not predicate.events:
            self.events.add(item.event)
        if time == "then" or (item.event and predicate.events and item.event not in predicate.events):
            self.events.add("unclear")

    def _notevent(self, predicate: Predicate, item: Item, time: str) -> None:
        for event in self.changes(predicate, item):
            stays = {"same": "changed" if predicate.adjective else "gone", "changed": "same"}
            self.events.add(stays.get(event, f"not-{event}"))

    def changes(self, predicate: Predicate, item: Item) -> set[str]:
        """The change that a verb or adjective tells; of `go` or `subside` a change of level where it names one."""
        events = set(predicate.events)
        if "third" in predicate.row and not events & {"same", "changed"}:
            return {"unclear"}  # `edema resolves` tells a habit, not a change
        if len(events) > 1:
            events -= {"gone"} if self.readings or predicate.to else events - {"gone"}
        if predicate.become and (predicate.seen or predicate.diseased or predicate.normal):
            events.add("gone" if predicate.normal else "new")
        if predicate.newly:
            events &= {"new"}
        return events if events or predicate.levels or item.event else {"unclear"}

    def _level(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events |= {item.event} - {""}
        if predicate.events or predicate.become:
            changing = self.kind in CHANGING
            self.events |= self.changes(predicate, item) if changing else {"changed"}

    _notplace = _absent

    def _ranges(self, predicate: Predicate, item: Item, time: str) -> None:
        self.levels[time].append(" to ".join(min(predicate.readings)))
        self.readings -= predicate.readings

    def _unchanged(self, predicate: Predicate, item: Item, time: str) -> None:
        if predicate.become:
            self.events.add("unclear")
        fitting = {"sameadj": {"same"}, "newadj": {"new", "gone"}, "no Change turned": {"new"}}
        fit = next((events for words, events in fitting.items() if words in predicate.row), {"changed"})
        self.events.add(
            "same" if predicate.events == fit or ("newadj" not in predicate.row and not predicate.events) else "unclear"
        )

    _place = _type = _follows = _supplants = _there

    def state(self) -> State:
        """What it comes to, over the whole text."""
        levels: Levels = frozenset((level,) for levels in self.levels.values() for level in levels)
        where = places(self.places, self.name)
        if self.kind in CHANGING:
            status, levels = self.changed()
        else:
            there = set().union(*self.there.values())
            if self.there["then"] or self.levels["then"] or self.foretold:
                self.problems.append("it speaks of another time")
            if len(there) > 1 or len(self.events) > 1:
                self.problems.append("it says two things of one finding")
            status = min(self.events, default="present" if there != {False} else "absent")
            levels |= self.readings
        return State(status, levels, self.types, where)

    def changed(self) -> tuple[str, Levels]:
        events, levels, read = set(self.events), self.levels, self.readings
        if levels["then"] and (levels["now"] or levels[""]):
            now = levels["now"] or levels[""]
            read |= {(" to ".join(dict.fromkeys(levels["then"])), " to ".join(dict.fromkeys(now)))}
            levels = {"": levels[""] if levels["now"] else []}
        stray: Levels = frozenset((level,) for predicate in levels.values() for level in predicate)
        if read:
            if any(level not in {before for before, *_ in read} for level in levels.get("then", ())):
                self.problems.append("its level before is not that of its change")
            for event, sign in (("up", 1), ("down", -1)):
                if event in events and all(rise(*reading) == -sign for reading in read):
                    self.problems.append("its direction is not that of its levels")
            events = events - {"up", "down", "changed"} | {"level"}
        return self.event(events), read | stray

    def event(self, events: set[str]) -> str:
        """The one event that fits all that is said of a finding."""
        there = self.there
        if events == {"not-new", "not-gone"}:
            return "same"
        if any(len(predicate) > 1 for predicate in there.values()) or len(events) > 1:
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
        if self.present or (self.kind == "prediction" and there["now"] == {True}):
            return "new" if True in now else "gone"
        return "stated" if True in now | there["then"] else "absent"
