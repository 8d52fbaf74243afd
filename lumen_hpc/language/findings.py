"""What a text says of one finding: gathered clause by clause, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from lumen_hpc.language.attributes import Levels, Place, places, rise
from lumen_hpc.language.clauses import ADJECTIVES, ANY, CHANGING, Item, Predicate
from lumen_hpc.language.parsing import Phrase

_OTHER = {"then": "now", "now": "then"}
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
    witnessed: bool = False
    """A clause says that it is there, or that it is not."""
    named: bool = False
    """It is named, not only implied by an adjective such as `abnormal`."""
    problems: list[str] = field(default_factory=list)
    """Why the claim is not certain."""

    def add(self, predicate: Predicate, item: Item) -> None:
        """Adds what a clause says of the finding."""
        self.problems += self.doubts(predicate, item)
        rule, named = predicate.row.rule, predicate.levels
        time = "now" if predicate.future else "then"
        if self.kind != "prediction":
            time = predicate.time.replace("both", "") or ("then" if predicate.past else "")
        self.named |= bool(item.phrase.parts)
        self.foretold |= predicate.future or item.foretold
        self.readings |= item.readings | predicate.readings
        self.types |= item.types | set(predicate.roles.get("type", ()))
        self.places += [p for p in item.phrase.all("Loc", "Place", "NotPlace") if p.kind != "NotPlace"]
        self.places += [*item.places, *predicate.places]
        untimed = "then" if self.kind == "prediction" else ""
        if "shown" in item.there:  # in this image
            item.there[untimed] = item.there.pop("shown")
        if rule == "there" and (time or self.kind != "prediction"):
            untimed = time
        if rule == "absent" and item.there.get(""):
            del item.there[""]  # `no abnormality that can be seen`
        if item.there and not item.levels.keys() - {""} and "" not in item.there and len(item.there) == 1:
            untimed = min(item.there)  # `the mild edema of the reference image`
        for when, there in item.there.items():
            self.there[when or untimed].add(there)
        for when, levels in item.levels.items():
            self.levels[when or untimed] += levels
        stated = [named[kind] for kind in ("Level", "Degree") if kind in named]
        later = "To" in named or predicate.readings or (stated and (predicate.become or time == "now"))
        if later and rule in ("level", "event"):
            before = [] if untimed else item.levels.get("", [])  # a moderate effusion has shrunk to small
            self.levels["then"] += before
            self.levels[""] = self.levels[""][: len(self.levels[""]) - len(before)]
        for when, kind in (("now", "To"), ("then", "From")):
            self.levels[when] += [named[kind]] if kind in named else []
        self.levels["now" if predicate.become else time] += stated
        getattr(self, f"_{rule}")(predicate, item, time)

    def doubts(self, predicate: Predicate, item: Item) -> list[str]:
        """Why a clause does not tell this for certain: mood, tense, image, a weakened denial."""
        has, rule = predicate.has, predicate.row.rule
        one_image = self.kind not in CHANGING
        turning = bool(predicate.events or has("newly") or predicate.readings or item.event)
        turning |= predicate.become or rule in ("gone", "unchanged")
        lasting = has("stay", "remained", "staybase", "still", "now", "then", "newly")
        lasting |= (
            predicate.dated
            or (has("been") and (rule == "there" or has("there")))
            or bool(item.phrase.roles("interval"))
        )
        weak = has("clearly", "completely", "newly") or (has("all") and has("no", "nothing"))
        weak |= bool(item.phrase.roles("plain") or (one_image and item.phrase.roles("newadj")))
        able = has("can") and not has("see", "conclude", "expected", "rated", "lie")
        able &= "seen" not in predicate.roles.get("seen", ())
        organ = item.organ != has("diseased", "normal") and not (item.organ and item.diseased)
        counts = ("all", "numeral") if self.name == ANY else ("count",)
        reasons = {
            "it speaks of what may be": ((predicate.future or item.foretold) and self.kind != "prediction") or able,
            "it confuses the two images": predicate.time == "then"
            and (predicate.future or predicate.unlike or (turning and self.kind == "difference")),
            "it speaks of both images at once": predicate.time == "both"
            and (rule != "unchanged" or self.kind == "prediction"),
            "it speaks of a later image as if it were seen": self.kind == "prediction"
            and predicate.time == "now"
            and not predicate.future,
            "it speaks of the past": predicate.past and (predicate.future or (rule == "there" and turning)),
            "it speaks of another time": one_image and lasting,
            "it excludes others": predicate.exclusive and one_image and self.kind != "abnormality",
            "it is still so that it changed": (has("still") or predicate.alike)
            and bool((predicate.events | {item.event}) - {"same", ""} or item.levels),
            "it is complete and has a level": has("completely") and bool(predicate.readings or predicate.levels),
            "it counts what it does not name": any(item.phrase.roles(count) for count in counts),
            "it breaks off": predicate.broken and rule in ("there", "notplace"),
            "its denial is weakened": weak and rule in _DENIALS,
            "it does not say what an organ is": organ and self.name != ANY,
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
        if item.there.get(time) is False or item.levels or len(item.there) > 1:
            self.problems.append("it denies a denial or a level")
        if item.event:
            self.events.add(f"not-{item.event}")
        elif self.lost(predicate, item, time):
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
        if predicate.has("only") and time in _OTHER:
            self.there[_OTHER[time]].add(not there)
        self.present |= predicate.has("now") and self.kind == "difference"

    def _notplace(self, predicate: Predicate, item: Item, time: str) -> None:
        if self.kind in CHANGING or not predicate.places:
            self._absent(predicate, item, time)
        else:
            self.problems += ["it denies a place of what has a place"] if any(item.phrase.all("Loc")) else []
            self.events.add("not-placed")

    def _gone(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events.add("gone" if time != "then" and not item.event and predicate.events <= {"gone"} else "unclear")

    def _event(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events |= self.changes(predicate, item) | ({item.event} - {""} if not predicate.events else set())
        turns = predicate.events and item.phrase.kind == "Turn"
        if time == "then" or turns or (item.event and predicate.events and item.event not in predicate.events):
            self.events.add("unclear")

    def _notevent(self, predicate: Predicate, item: Item, time: str) -> None:
        adjective = predicate.has(*ADJECTIVES)
        for event in self.changes(predicate, item):
            stays = {"same": "changed" if adjective else "gone", "changed": "same"}
            self.events.add(stays.get(event, f"not-{event}"))

    def changes(self, predicate: Predicate, item: Item) -> set[str]:
        """The change that a verb or adjective tells."""
        events = set(predicate.events)
        if predicate.has("third") and not events & {"same", "changed"}:
            return {"unclear"}  # `edema resolves` tells a habit, not a change
        if predicate.become and predicate.has("seen", "diseased", "normal"):
            events.add("gone" if predicate.has("normal") else "new")
        if predicate.has("newly"):
            events &= {"new"}
        return events if events or predicate.levels or item.event else {"unclear"}

    def _level(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events |= {item.event} - {""}
        if predicate.events or predicate.become:
            self.events |= self.changes(predicate, item) if self.kind in CHANGING else {"changed"}
        elif self.kind in CHANGING and predicate.has("stay", "remained", "staybase"):
            self.events.add("same")

    def _ranges(self, predicate: Predicate, item: Item, time: str) -> None:
        self.events |= {item.event} - {""}
        self.levels[time].append(" to ".join(min(predicate.readings)))
        self.readings -= predicate.readings

    def _unchanged(self, predicate: Predicate, item: Item, time: str) -> None:
        denied = {"new"} if predicate.has("Change") else {"new", "gone"} if predicate.has("newadj") else {"changed"}
        fit = predicate.events == ({"same"} if predicate.has("sameadj") else denied) or not predicate.events
        fit |= {"new", "gone"} <= predicate.events and predicate.has("or")
        if predicate.has("nothing") and predicate.events in ({"new"}, {"gone"}):
            self.events.add(f"not-{min(predicate.events)}")
        else:
            self.events.add("same" if fit and not predicate.become else "unclear")

    def state(self) -> State:
        """What it comes to, over the whole text."""
        levels: Levels = frozenset((level,) for levels in self.levels.values() for level in levels)
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
        return State(status, levels, self.types, places(self.places, self.name))

    def changed(self) -> tuple[str, Levels]:
        events, levels, read = set(self.events), self.levels, self.readings
        now = levels["now"] or levels[""]
        if levels["then"] and now:
            read |= {(" to ".join(dict.fromkeys(levels["then"])), " to ".join(dict.fromkeys(now)))}
            levels = {"": levels[""] if levels["now"] else []}
        stray: Levels = frozenset((level,) for predicate in levels.values() for level in predicate)
        if read:
            ends = {"then": {before for before, *_ in read}, "now": {after for *_, after in read}}
            stray_ends = any(level not in ends[when or "now"] for when, named in levels.items() for level in named)
            if stray_ends or any(False in there for there in self.there.values()):
                self.problems.append("what it says beside its change is not that of its change")
            for event, sign in (("up", 1), ("down", -1)):
                if event in events and all(rise(*reading) == -sign for reading in read):
                    self.problems.append("its direction is not that of its levels")
            events = events - {"up", "down", "changed"} | {"level"}
        return self.event(events), read | stray

    def event(self, events: set[str]) -> str:
        """The one event that fits all claims about a finding."""
        there = self.there
        if events == {"not-new", "not-gone"}:
            return "same"
        if any(len(claims) > 1 for claims in (there["then"], there["now"] | there[""])) or len(events) > 1:
            self.problems.append("it says two things of one finding")
            events = {"level"} if "level" in events else {"unclear"} if {"new", "gone"} <= events else events
        event, then, now = min(events, default=""), there["then"], there["now"] | there[""]
        if self.name == ANY and event == "same" and self.witnessed:
            self.problems.append("it says more than that nothing has changed")
        if event in ("new", "gone") and ((event == "gone") in now or (event == "new") in then):
            self.problems.append("it confuses the two images")
        if event:
            return event
        if then and now:
            turns = {(False, True): "new", (True, False): "gone", (True, True): "same"}
            return turns.get((min(then), min(now)), "absent")
        if self.present or (self.kind == "prediction" and there["now"] == {True}):
            return "new" if True in now else "gone"
        return "stated" if True in now | then else "absent"
