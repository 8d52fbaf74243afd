"""What a text says of one finding: what all its clauses come to."""

from __future__ import annotations

from dataclasses import dataclass

from lumen_hpc.language.attributes import SIDES, Levels, Place, places, rise
from lumen_hpc.language.clauses import ANY, CHANGING, Finding
from lumen_hpc.language.parsing import doubts, marked


class Problems(dict[str, None]):
    """Why what was read is not certain, in order; each is added where its condition holds."""

    def add(self, problem: str, holds: object) -> None:
        if holds:
            self[problem] = None


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


def state_of(finding: Finding, kind: str, problems: Problems) -> State:
    """What the claims about a finding come to in an answer to a type of question; adds what is in doubt about them."""
    sides = [{side for it in places([place], finding.name) if it <= SIDES for side in it} for place in finding.places]
    one = any(len(named) == 1 for named in sides) and SIDES in sides
    for place in finding.places:
        named = SIDES & {*place.roles("side")}
        both = place.has("each", "both") or "both" in place.roles("side")
        one = one or (both and len(named) == 1) or (place.has("namely") and named == SIDES)
    problems.add("it names both sides and one of them", one)
    events, levels, read, changing = finding.events, finding.levels, finding.readings, kind in CHANGING
    then, now, untimed = ([level for when, level in levels if when == time] for time in ("then", "now", ""))
    if then and (now or untimed) and changing:
        read |= {(then[0], (now or untimed)[0])}
    if read and changing:
        events = events - {"up", "down", "changed"} | {"level"}
        ends = {"then": {before for before, *_ in read}, "now": {after for *_, after in read}}
        levels = [(when, level) for when, level in levels if level not in ends[when or "now"]]
        stray = levels or any(not there for _, there in finding.there)
        problems.add("what it says beside its change is not that of its change", stray)
        way = State("level", read).direction
        problems.add("its direction is not that of its levels", way and finding.events & {"up", "down"} - {way})
    given = {
        "changing": changing,
        f"?{kind}": True,
        f"#{len(events)}": True,
        "any": finding.name == ANY,
        "foretold": finding.foretold,
        "then-level": then,
    }
    claims = {"not-" * (not there) + (when or "there") for when, there in finding.there}
    marks = marked("comes", {mark for mark, holds in given.items() if holds} | claims | events | finding.marks)
    problems.update(doubts(marks))
    status = min({mark[3:] for mark in marks if mark.startswith("-> ")} or events)
    alone = {(level,) for _, level in levels}
    return State(status, read | alone, frozenset(finding.types), places(finding.places, finding.name))
