"""What a text says of one finding: gathered clause by clause, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from lumen_hpc.language.attributes import SIDES, Levels, Place, places, rise
from lumen_hpc.language.clauses import ANY, CHANGING, Item, Predicate, Problems, Said, located
from lumen_hpc.language.parsing import doubts, marked


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
class Finding(Said):
    """All that a text says of one finding."""

    kind: str = field(kw_only=True)
    """The question's type."""
    problems: Problems = field(kw_only=True)
    """Why what the text says is not certain; those of this finding are added."""
    events: set[str] = field(default_factory=set)
    marks: set[str] = field(default_factory=set)
    """`named`, not only implied by an adjective such as `abnormal`; `witnessed`, `said-now` as in the table `comes`."""

    def add(self, predicate: Predicate, item: Item) -> None:
        """Adds what a clause says of the finding."""
        marks = marked("says", predicate.marks | item.marks(predicate) | self.marks)
        self.problems.update(doubts(marks))
        said = {mark[3:] for mark in marks if mark.startswith("-> ")}
        rule, foretelling = predicate.rule, self.kind == "prediction"
        time = "then" if "at-then" in marks else "now" if "at-now" in marks else ""
        self.marks |= {"named"} if item.phrase.parts and rule != "unchanged" else set()
        self.foretold |= not marks.isdisjoint(("future", "promised"))
        self.types |= item.types | predicate.types
        self.places += [*located(item.phrase), *item.places, *predicate.places]
        untimed = time if rule == "there" else "then" if foretelling else ""
        if item.there.keys() in ({"then"}, {"now"}):
            (untimed,) = item.there  # `the mild edema of the reference image`
            time = time or untimed if rule == "level" else time
        stated = [(when or time, level) for when, level in predicate.levels]
        for when, there in item.there.items():
            self.there[when or ("then" if foretelling else untimed)] |= there
        turned = predicate.readings or any(when == "now" for when, _ in stated)
        for when, levels in item.levels.items():
            self.levels[when or untimed or "then" * bool(turned)] += levels  # a moderate effusion has shrunk to small
        if "one-level" in marks:
            stated.append((time, " to ".join(min(predicate.readings))))
        self.readings |= item.readings | (predicate.readings if "one-level" not in marks else frozenset())
        for when, level in stated:
            self.levels[when].append(level)
        for claim in {"there", "not there"} & said:
            self.there[time].add(claim == "there")
            self.marks |= {"witnessed", *({"said-now"} if "now" in marks else ())}
            if "only" in marks:
                self.there["now" if time == "then" else "then"].add(claim != "there")
        meant = {"own": {item.event}, "its": predicate.events, "not own": {f"not-{item.event}"}}
        self.events |= set().union(*(meant.get(event, {event}) for event in said - {"there", "not there"}))

    def state(self) -> State:
        """What it comes to, over the whole text."""
        sides = [frozenset().union(*(it for it in places([place], self.name) if it <= SIDES)) for place in self.places]
        pairs = [place for place in self.places if place.has("each", "both") or "both" in place.roles("side")]
        one = any(len(named) == 1 for named in sides) and SIDES in sides
        one = one or any(len(SIDES & {*place.roles("side")}) == 1 for place in pairs)
        one = one or any(place.has("namely") and {*place.roles("side")} >= SIDES for place in self.places)
        self.problems.add("it names both sides and one of them", one)
        changing = self.kind in CHANGING
        events, levels, read = self.changed() if changing else (self.events, self.levels, self.readings)
        given = {
            "changing": changing,
            f"?{self.kind}": True,
            f"#{len(events)}": True,
            "any": self.name == ANY,
            "foretold": self.foretold,
            "then-level": self.levels["then"],
        }
        claims = {"not-" * (not it) + (when or "there") for when, there in self.there.items() for it in there}
        marks = marked("comes", {mark for mark, holds in given.items() if holds} | claims | events | self.marks)
        self.problems.update(doubts(marks))
        status = min({mark[3:] for mark in marks if mark.startswith("-> ")} or events)
        alone = {(level,) for named in levels.values() for level in named}
        return State(status, read | alone, frozenset(self.types), places(self.places, self.name))

    def changed(self) -> tuple[set[str], dict[str, list[str]], Levels]:
        """Its changes, its levels by time, and those that it is between."""
        events, levels, read = self.events, self.levels, self.readings
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
        return events - ({"changed"} if events & {"new", "gone"} else set()), levels, read
