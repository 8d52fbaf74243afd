"""What a text says of one finding: gathered clause by clause, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from lumen_hpc.language.attributes import Levels, Place, places, rise
from lumen_hpc.language.clauses import ADJECTIVES, ANY, CHANGING, Item, Predicate, located
from lumen_hpc.language.parsing import Phrase

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
    there: dict[str, set[bool]] = field(default_factory=lambda: {"then": set(), "now": set(), "": set()})
    levels: dict[str, list[str]] = field(default_factory=lambda: {"then": [], "now": [], "": []})
    events: set[str] = field(default_factory=set)
    readings: Levels = frozenset()
    types: frozenset[str] = frozenset()
    places: list[Phrase] = field(default_factory=list)
    present: bool = False
    foretold: bool = False
    witnessed: bool = False
    """A clause says that it is there, or that it is not."""
    named: bool = False
    """It is named, not only implied by an adjective such as `abnormal`."""
    problems: list[str] = field(default_factory=list)
    """Why the claim is not certain."""

    def add(self, predicate: Predicate, item: Item) -> None:
        """Adds what a clause says of the finding."""
        self.problems += self.doubts(predicate, item)
        rule, foretelling = predicate.row.rule, self.kind == "prediction"
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
        for when, levels in item.levels.items():
            self.levels[when or untimed] += levels
        self._add_levels(predicate, [] if untimed else item.levels.get("", []), time)
        getattr(self, f"_{rule}")(predicate, item, time)

    def _add_levels(self, predicate: Predicate, undated: list[str], time: str) -> None:
        """Adds the levels that a clause names; a level named after it makes an undated one that of before."""
        named = predicate.levels
        stated = [named[kind] for kind in ("Level", "Degree") if kind in named]
        if "To" in named or predicate.readings or (stated and (predicate.become or time == "now")):
            self.levels["then"] += undated  # a moderate effusion has shrunk to small
            self.levels[""] = self.levels[""][: len(self.levels[""]) - len(undated)]
        for when, kind in (("now", "To"), ("then", "From")):
            self.levels[when] += [named[kind]] if kind in named else []
        self.levels["now" if predicate.become else time] += stated

    def doubts(self, predicate: Predicate, item: Item) -> list[str]:
        """Why a clause does not tell this for certain: mood, tense, image, a weakened denial."""
        has, rule, time, future = predicate.has, predicate.row.rule, predicate.time, predicate.future
        one_image, foretelling = self.kind not in CHANGING, self.kind == "prediction"
        turning = bool(predicate.events or predicate.readings or predicate.become or item.event or has("newly"))
        turning |= rule in ("gone", "unchanged")
        lasting = has("stay", "remained", "staybase", "still", "now", "then", "newly") or item.phrase.has("interval")
        lasting |= has("been") and (rule == "there" or has("there"))
        weak = has("clearly", "completely", "newly") or item.phrase.has("plain")
        able = has("can") and not has("see", "conclude", "expected", "rated", "lie")
        counts = ("all", "numeral") if self.name == ANY else ("count",)
        reasons = {
            "it speaks of what may be": ((future or item.foretold) and not foretelling)
            or (able and "seen" not in predicate.roles.get("seen", ())),
            "it confuses the images": (time == "both" and (rule != "unchanged" or foretelling))
            or (time == "then" and (future or predicate.unlike or (self.kind == "difference" and turning)))
            or (time == "now" and foretelling and not future),
            "it speaks of the past": (predicate.past and (future or (rule == "there" and turning)))
            or (foretelling and predicate.done),
            "it speaks of another time": one_image and lasting,
            "it excludes others": predicate.exclusive and one_image and self.kind != "abnormality",
            "it is still so that it changed": (has("still") or predicate.alike)
            and bool((predicate.events | {item.event}) - {"same", ""} or item.levels),
            "it is complete and has a level": has("completely") and bool(predicate.readings or predicate.levels),
            "it counts what it does not name": item.phrase.has(*counts),
            "it breaks off": predicate.broken and rule in ("there", "notplace"),
            "its denial is weakened": rule in _DENIALS and (weak or (one_image and item.phrase.has("newadj"))),
            "it does not say what an organ is": item.organ != has("diseased", "normal") and self.name != ANY,
        }
        return [reason for reason, holds in reasons.items() if holds]

    # One method a rule of grammar.yaml's clauses.

    def _there(self, predicate: Predicate, item: Item, time: str) -> None:
        if item.event:
            self.events.add(item.event)
        elif predicate.has("newly", "still"):
            self.events.add("new" if predicate.has("newly") else "same")
        elif predicate.events or predicate.unlike:
            self.events |= predicate.events or {"new"}
        elif time or not {"then", "now"} <= item.there.keys():  # else its modifiers say it of both images
            self.seen(True, predicate, time)

    _place = _type = _follows = _supplants = _there

    def _presented(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events |= {item.event} - {""}  # its modifiers say the rest

    def _absent(self, predicate: Predicate, item: Item, time: str) -> None:
        if item.there.get(time) is False or len(item.there) > 1:
            self.problems.append("it denies a denial or a level")
        if item.event and not (item.event == "same" and item.phrase.has("residual")):
            self.events.add(f"not-{item.event}")
        elif item.event or self.lost(predicate, item, time):
            self.events.add("gone")
        else:
            self.seen(False, predicate, time)

    def lost(self, predicate: Predicate, item: Item, time: str) -> bool:
        """Whether a denial tells that the finding was there: `compared with …`, `the edema will not be seen`."""
        if self.kind == "prediction":
            return predicate.future and ("the" in item.phrase.roles("det") or predicate.has("absent"))
        return self.kind == "difference" and time != "then" and (predicate.has("lacks", "Change") or predicate.against)

    def seen(self, there: bool, predicate: Predicate, time: str) -> None:
        self.there[time].add(there)
        self.witnessed = True
        self.present |= predicate.has("now")
        if predicate.has("only"):
            self.there["now" if time == "then" else "then"].add(not there)

    def _notplace(self, predicate: Predicate, item: Item, time: str) -> None:
        if not predicate.places:
            self._absent(predicate, item, time)
        else:
            self.problems += ["it denies a place of what has a place"] if any(item.phrase.all("Loc")) else []
            self.events.add("not-placed")

    def _gone(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events.add("gone" if time != "then" and not item.event and predicate.events <= {"gone"} else "unclear")

    def _event(self, predicate: Predicate, item: Item, time: str) -> None:
        turning = item.event and predicate.has("happened")  # a decrease has occurred
        events = set() if turning else predicate.events
        self.events |= self.changes(predicate, item) if not turning else set()
        self.events |= {item.event} - {""} if not events else set()
        twice = events and item.event and (item.phrase.kind == "Turn" or item.event not in events)
        self.events |= {"unclear"} if twice or time == "then" else set()

    def _notevent(self, predicate: Predicate, item: Item, time: str) -> None:
        stays = {"same": "changed" if predicate.has(*ADJECTIVES) else "gone", "changed": "same"}
        if predicate.has("existbase") and (predicate.time or self.kind not in CHANGING):
            self.seen(False, predicate, time)  # it does not appear on this image
            return
        stays |= {"changed": "not-level"} if predicate.partly else {}
        self.events |= {stays.get(event, f"not-{event}") for event in self.changes(predicate, item)}

    def changes(self, predicate: Predicate, item: Item) -> set[str]:
        """The change that a verb or adjective tells."""
        if predicate.has("third") and not predicate.events & {"same", "changed"}:
            return {"unclear"}  # `edema resolves` tells a habit, not a change
        if predicate.become and predicate.has("seen", "diseased", "normal"):
            return predicate.events | {"gone" if predicate.has("normal") else "new"}
        return predicate.events or ({"unclear"} if not predicate.levels and not item.event else set())

    def _level(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events |= {item.event} - {""}
        if self.kind not in CHANGING and predicate.readings and predicate.has("colon") and not predicate.has("from"):
            self._ranges(predicate, item, time)
        if predicate.events or predicate.become:
            self.events |= self.changes(predicate, item) if self.kind in CHANGING else {"changed"}
        elif self.kind in CHANGING and predicate.has("stay", "remained", "staybase"):
            self.events.add("same")

    def _ranges(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events |= {item.event} - {""}
        self.levels[time].append(" to ".join(min(predicate.readings)))
        self.readings -= predicate.readings

    def _unchanged(self, predicate: Predicate, item: Item, time: str) -> None:
        events = predicate.events
        denied = {"new"} if predicate.has("Change") else {"new", "gone"} if predicate.has("newadj") else {"changed"}
        fit = events in (set(), {"same"} if predicate.has("sameadj") else denied) or {"new", "gone"} <= events
        if predicate.has("nothing") and events in ({"new"}, {"gone"}):
            self.events.add(f"not-{min(events)}")
        else:
            self.events.add("same" if fit and not predicate.become else "unclear")

    def state(self) -> State:
        """What it comes to, over the whole text."""
        sides = [{side for side, where in places([place]) if side and not where} for place in self.places]
        both = ({*place.roles("side")} for place in self.places if place.has("each") or "both" in place.roles("side"))
        one = any(len(named) == 1 for named in sides) and {"left", "right"} in sides
        if one or any(len(named & {"left", "right"}) == 1 for named in both):
            self.problems.append("it names both sides and one of them")
        if self.kind in CHANGING:
            status, levels = self.changed()
            return State(status, levels, self.types, places(self.places, self.name))
        there = set().union(*self.there.values())
        if self.there["then"] or self.levels["then"] or self.foretold:
            self.problems.append("it speaks of another time")
        if len(there) > 1 or len(self.events) > 1:
            self.problems.append("it says two things of one finding")
        status = min(self.events, default="present" if there != {False} else "absent")
        return State(status, _alone(self.levels) | self.readings, self.types, places(self.places, self.name))

    def changed(self) -> tuple[str, Levels]:
        """Its change, and the levels that it is between."""
        events, levels, read = set(self.events), self.levels, self.readings
        now = levels["now"] or levels[""]
        if levels["then"] and now:
            read |= {(" to ".join(dict.fromkeys(levels["then"])), " to ".join(dict.fromkeys(now)))}
            levels = {"": levels[""] if levels["now"] else []}
        if read:
            ends = {"then": {before for before, *_ in read}, "now": {after for *_, after in read}}
            stray = any(level not in ends[when or "now"] for when, named in levels.items() for level in named)
            if stray or any(False in there for there in self.there.values()):
                self.problems.append("what it says beside its change is not that of its change")
            directions = {sign for event, sign in (("up", 1), ("down", -1)) if event in events}
            if any(all(rise(*reading) == -sign for reading in read) for sign in directions):
                self.problems.append("its direction is not that of its levels")
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
        if len(then) > 1 or len(now) > 1 or len(events) > 1:
            self.problems.append("it says two things of one finding")
        if events == {"same"} and self.witnessed and self.name == ANY:
            self.problems.append("it says more than that nothing has changed")
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
