"""What a text says of one finding: gathered clause by clause, and what it comes to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from lumen_hpc.language.attributes import SIDES, Levels, Place, places, rise
from lumen_hpc.language.clauses import ADJECTIVES, ANY, CHANGING, Item, Predicate, Problems, located
from lumen_hpc.language.parsing import Phrase


@dataclass(frozen=True, slots=True)
class State:
    """What a text says of one finding."""

    status: str
    """present or absent; of a change new, gone, same, level, up, down or changed; not-… for its denial; stated."""
    levels: Levels = frozenset()
    """(level,); of a level change every way to read `from … to …` as (before, after)."""
    types: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()

    @property
    def direction(self) -> str:
        """up or down where every reading of its levels is."""
        rises = {rise(*level) for level in self.levels if self.status == "level" and len(level) == 2}
        return {1: "up", -1: "down"}.get(min(rises), "") if len(rises) == 1 else ""


@dataclass(slots=True)
class Finding:
    """All that a text says of one finding; times are then (the reference image), now (the main image) and ""."""

    name: str
    kind: str
    """The question's type."""
    problems: Problems
    """Why what the text says is not certain; those of this finding are added."""
    there: dict[str, set[bool]] = field(default_factory=lambda: defaultdict(set))
    levels: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    events: set[str] = field(default_factory=set)
    readings: Levels = frozenset()
    types: set[str] = field(default_factory=set)
    places: list[Phrase] = field(default_factory=list)
    present: bool = False
    foretold: bool = False
    witnessed: bool = False
    """A clause says that it is there, or that it is not."""
    named: bool = False
    """It is named, not only implied by an adjective such as `abnormal`."""

    def add(self, predicate: Predicate, item: Item) -> None:
        """Adds what a clause says of the finding."""
        self.problems |= predicate.problems
        self.doubt(predicate, item)
        rule, foretelling = predicate.rule, self.kind == "prediction"
        time = predicate.time.replace("both", "") or ("then" if predicate.past else "")
        if foretelling:
            time = "now" if predicate.future else "then"
        self.named |= bool(item.phrase.parts)
        self.foretold |= predicate.future or item.foretold
        self.readings |= item.readings | predicate.readings
        self.types |= item.types | set(predicate.roles.get("type", ()))
        self.places += [*located(item.phrase), *item.places, *predicate.places]
        untimed = time if rule == "there" else "then" if foretelling else ""
        if item.there.keys() in ({"then"}, {"now"}):
            (untimed,) = item.there  # `the mild edema of the reference image`
        for when, there in item.there.items():
            self.there[when or ("then" if foretelling else untimed)].add(there)
        stated = [(when or time, level) for when, level in predicate.levels]
        turned = predicate.readings or any(when == "now" for when, _ in stated)
        for when, levels in item.levels.items():
            self.levels[when or untimed or "then" * bool(turned)] += levels  # a moderate effusion has shrunk to small
        for when, level in stated:
            self.levels[when].append(level)
        self.events |= getattr(self, f"_{rule}")(predicate, item, time)

    def doubt(self, predicate: Predicate, item: Item) -> None:
        """Notes why a clause does not tell this for certain: mood, tense, image, a weakened denial."""
        has, rule, time, future = predicate.has, predicate.rule, predicate.time, predicate.future
        one_image, foretelling = self.kind not in CHANGING, self.kind == "prediction"
        turning = bool(predicate.events or predicate.readings or predicate.become or item.event or has("newly"))
        turning |= rule in ("gone", "unchanged")
        lasting = has("stay", "remained", "staybase", "still", "now", "then", "newly") or item.phrase.has("interval")
        lasting |= has("been") and (rule == "there" or has("there"))
        weak = has("clearly", "completely", "newly") or item.phrase.has("plain")
        able = has("can") and not has("see", "conclude", "expected", "rated", "lie")
        denial = rule in ("absent", "notevent", "notplace", "unchanged")
        counts = ("all", "numeral") if self.name == ANY else ("count",)
        doubt = self.problems.add
        maybe = (future or item.foretold) and not foretelling
        doubt("it speaks of what may be", maybe or (able and "seen" not in predicate.roles.get("seen", ())))
        doubt("it confuses the images", time == "both" and (rule != "unchanged" or foretelling))
        of_old = future or has("Unlike") or (self.kind == "difference" and turning)
        doubt("it confuses the images", (time == "then" and of_old) or (time == "now" and foretelling and not future))
        doubt("it speaks of the past", predicate.past and (future or (rule == "there" and turning)))
        doubt("it speaks of another time", one_image and lasting)
        changed = (predicate.events | {item.event}) - {"same", ""} or item.levels
        doubt("it is still so that it changed", (has("still") or predicate.alike) and changed)
        doubt("it counts what it does not name", item.phrase.has(*counts))
        doubt("its denial is weakened", denial and (weak or (one_image and item.phrase.has("newadj"))))
        doubt("it does not say what an organ is", item.organ != has("diseased", "normal") and self.name != ANY)

    # One method a rule of grammar.yaml's clauses: the changes that it tells.

    def _there(self, predicate: Predicate, item: Item, time: str) -> set[str]:
        if item.event:
            return {item.event}
        if predicate.has("newly", "still"):
            return {"new" if predicate.has("newly") else "same"}
        if predicate.events or predicate.has("Unlike"):
            return predicate.events or {"new"}
        if time or not {"then", "now"} <= item.there.keys():  # else its modifiers say it of both images
            self.seen(True, predicate, time)
        return set()

    _place = _type = _follows = _supplants = _there

    def _presented(self, predicate: Predicate, item: Item, time: str) -> set[str]:
        return {item.event} - {""}  # its modifiers say the rest

    def _absent(self, predicate: Predicate, item: Item, time: str) -> set[str]:
        self.problems.add("it denies a denial or a level", item.there.get(time) is False or len(item.there) > 1)
        if item.event and not (item.event == "same" and item.phrase.has("residual")):
            return {f"not-{item.event}"}
        if item.event or self.lost(predicate, item, time):
            return {"gone"}
        return self.seen(False, predicate, time)

    def lost(self, predicate: Predicate, item: Item, time: str) -> bool:
        """Whether a denial tells that the finding was there: `compared with …`, `the edema will not be seen`."""
        if self.kind == "prediction":
            return predicate.future and ("the" in item.phrase.roles("det") or predicate.has("absent"))
        return self.kind == "difference" and time != "then" and (predicate.has("lacks", "Change") or predicate.against)

    def seen(self, there: bool, predicate: Predicate, time: str) -> set[str]:
        """No change, but that it is there or is not."""
        self.there[time].add(there)
        self.witnessed = True
        self.present |= predicate.has("now")
        if predicate.has("only"):
            self.there["now" if time == "then" else "then"].add(not there)
        return set()

    def _notplace(self, predicate: Predicate, item: Item, time: str) -> set[str]:
        if not predicate.places:
            return self._absent(predicate, item, time)
        self.problems.add("it denies a place of what has a place", any(item.phrase.all("Loc")))
        return {"not-placed"}

    def _gone(self, predicate: Predicate, item: Item, time: str) -> set[str]:
        return {"gone" if time != "then" and not item.event and predicate.events <= {"gone"} else "unclear"}

    def _event(self, predicate: Predicate, item: Item, time: str) -> set[str]:
        turning = item.event and predicate.has("happened")  # a decrease has occurred
        events = set() if turning else predicate.events
        told = self.changes(predicate, item) if not turning else set()
        twice = events and item.event and (item.phrase.kind == "Turn" or item.event not in events)
        return told | {item.event * (not events), "unclear" * bool(twice or time == "then")} - {""}

    def _notevent(self, predicate: Predicate, item: Item, time: str) -> set[str]:
        if predicate.has("existbase") and (predicate.time or self.kind not in CHANGING):
            return self.seen(False, predicate, time)  # it does not appear on this image
        stays = {
            "same": "changed" if predicate.has(*ADJECTIVES) else "gone",
            "changed": "not-level" if predicate.partly else "same",
        }
        return {stays.get(event, f"not-{event}") for event in self.changes(predicate, item)}

    def changes(self, predicate: Predicate, item: Item) -> set[str]:
        """The change that a verb or adjective tells."""
        if predicate.has("third") and not predicate.events & {"same", "changed"}:
            return {"unclear"}  # `edema resolves` tells a habit, not a change
        if predicate.become and predicate.has("seen", "diseased", "normal"):
            return predicate.events | {"gone" if predicate.has("normal") else "new"}
        return predicate.events or ({"unclear"} if not predicate.levels and not item.event else set())

    def _level(self, predicate: Predicate, item: Item, time: str) -> set[str]:
        colon = self.kind not in CHANGING and predicate.has("colon") and not predicate.has("from")
        if predicate.readings and (colon or predicate.has("rangesfrom")):  # of one level
            self.levels[time].append(" to ".join(min(predicate.readings)))
            self.readings -= predicate.readings
        events = {item.event} - {""}
        if predicate.events or predicate.become:
            return events | (self.changes(predicate, item) if self.kind in CHANGING else {"changed"})
        stays = self.kind in CHANGING and predicate.has("stay", "remained", "staybase")
        return events | {"same"} if stays else events

    def _unchanged(self, predicate: Predicate, item: Item, time: str) -> set[str]:
        events = predicate.events
        denied = {"new"} if predicate.has("Change") else {"new", "gone"} if predicate.has("newadj") else {"changed"}
        fit = events in (set(), {"same"} if predicate.has("sameadj") else denied) or {"new", "gone"} <= events
        if predicate.has("nothing") and events in ({"new"}, {"gone"}):
            return {f"not-{min(events)}"}
        return {"same" if fit and not predicate.become else "unclear"}

    def state(self) -> State:
        """What it comes to, over the whole text."""
        sides = [frozenset().union(*(it for it in places([place]) if it <= SIDES)) for place in self.places]
        both = ({*place.roles("side")} for place in self.places if place.has("each") or "both" in place.roles("side"))
        one = any(len(named) == 1 for named in sides) and SIDES in sides
        one = one or any(len(SIDES & named) == 1 for named in both)
        self.problems.add("it names both sides and one of them", one)
        if self.kind in CHANGING:
            status, levels = self.changed()
            return State(status, levels, frozenset(self.types), places(self.places, self.name))
        there = set().union(*self.there.values())
        self.problems.add("it speaks of another time", self.there["then"] or self.levels["then"] or self.foretold)
        self.problems.add("it says two things of one finding", len(there) > 1 or len(self.events) > 1)
        status = min(self.events, default="present" if there != {False} else "absent")
        return State(status, _alone(self.levels) | self.readings, frozenset(self.types), places(self.places, self.name))

    def changed(self) -> tuple[str, Levels]:
        """Its change, and the levels that it is between."""
        events, levels, read = set(self.events), self.levels, self.readings
        now = levels["now"] or levels[""]
        if levels["then"] and now:
            read |= {(" to ".join(dict.fromkeys(levels["then"])), " to ".join(dict.fromkeys(now)))}
            levels = {"": levels[""]} if levels["now"] else {}
        if read:
            ends = {"then": {before for before, *_ in read}, "now": {after for *_, after in read}}
            stray = any(level not in ends[when or "now"] for when, named in levels.items() for level in named)
            stray = stray or any(False in there for there in self.there.values())
            self.problems.add("what it says beside its change is not that of its change", stray)
            directions = {sign for event, sign in (("up", 1), ("down", -1)) if event in events}
            wrong = any(all(rise(*reading) == -sign for reading in read) for sign in directions)
            self.problems.add("its direction is not that of its levels", wrong)
            events = events - {"up", "down", "changed"} | {"level"}
        return self.event(events), read | _alone(levels)

    def event(self, events: set[str]) -> str:
        """The one event that fits all claims about a finding."""
        events = events - {"changed"} if events & {"new", "gone"} else events
        whole = events == {"same", "not-level"} or {"not-new", "not-gone"} <= events
        if whole and events <= {"not-new", "not-gone", "not-level", "same"}:
            return "same"
        then, now = self.there["then"], self.there["now"] | self.there[""]
        for event in events & {"new", "gone"}:
            then, now = then | {event == "gone"}, now | {event == "new"}
        self.problems.add("it says two things of one finding", max(len(then), len(now), len(events)) > 1)
        seen = events == {"same"} and self.witnessed and self.name == ANY
        self.problems.add("it says more than that nothing has changed", seen)
        if events:
            return "level" if "level" in events else "unclear" if {"new", "gone"} <= events else min(events)
        if then and now:
            turns = {(False, True): "new", (True, False): "gone", (True, True): "same"}
            return turns.get((min(then), min(now)), "absent")
        if self.present or (self.kind == "prediction" and self.there["now"] == {True}):
            return "new" if True in now else "gone"
        return "stated" if True in now | then else "absent"


def _alone(levels: dict[str, list[str]]) -> Levels:
    return frozenset((level,) for named in levels.values() for level in named)
