"""The state of one finding in a text: what all clauses together say of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lumen_hpc.language.attributes import SIDES, Levels, Place, level_direction, places
from lumen_hpc.language.clauses import ANY, CHANGING, Finding
from lumen_hpc.language.parsing import derive_marks, doubts

_MISCOUNTED = re.compile(
    r"\ban? (?:left|right) (?:\w+ )?(?:lung|lobe|side)$"
    r"|(?<!and )(?<!and the )\b(?:left|right) (?:(?:upper|middle|mid|lower) )?(?:lungs|lobes|sides)$"
)
"""A lung, lobe or side of which there is one: `a left lung`, `the right lower lobes`."""


class Problems(dict[str, None]):
    """Reasons for doubt, in order; each is added if its condition holds."""

    def add(self, problem: str, holds: object) -> None:
        if holds:
            self[problem] = None


STATUSES = (
    "absent", "changed", "down", "resolved", "level", "new", "up", "not-changed", "not-down", "not-resolved",
    "not-level", "not-new", "not-placed", "not-same", "not-unclear", "not-up", "present", "same", "mentioned",
    "unclear",
)  # fmt: skip
"""What a finding can be; of several, the first counts. `mentioned`: it is there, and no change is stated."""


@dataclass(frozen=True, slots=True)
class State:
    """The state of one finding in a text."""

    status: str
    """One of `STATUSES`."""
    levels: Levels = frozenset()
    """(level,); for a change of level every way to read `from … to …` as (before, after)."""
    types: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()

    @property
    def direction(self) -> str:
        """`up` or `down` if every reading of its levels is; else empty."""
        rises = {level_direction(*level) for level in self.levels if self.status == "level" and len(level) == 2}
        return {1: "up", -1: "down"}.get(min(rises), "") if len(rises) == 1 else ""


def state_of(finding: Finding, kind: str, problems: Problems) -> State:
    """The state of a finding by all claims in an answer to a type of question; adds what is in doubt to `problems`."""
    elsewhere = kind not in CHANGING and any(there for _, there in finding.presence)  # what is denied lies elsewhere
    place_phrases = finding.places + ([] if elsewhere else finding.denied_places)
    sides_by_place = [
        {side for it in places([place], finding.name) if it <= SIDES for side in it} for place in place_phrases
    ]
    one_side = any(len(named_sides) == 1 for named_sides in sides_by_place) and SIDES in sides_by_place
    for place in place_phrases:
        named_sides = SIDES & {*place.roles("side")}
        names_both = place.has("each", "both") or "both" in place.roles("side")
        one_side = one_side or (names_both and len(named_sides) == 1) or (place.has("namely") and named_sides == SIDES)
    problems.add("it names both sides and one of them", one_side)
    place_texts = (" ".join(word.text for word in it.words) for place in place_phrases for it in place.all("Loc"))
    problems.add("it names some of several", any(map(_MISCOUNTED.search, place_texts)))
    events, levels, ranges, changing = finding.events, finding.levels, finding.ranges, kind in CHANGING
    then, now, untimed = ([level for when, level in levels if when == time] for time in ("then", "now", ""))
    if then and (now or untimed) and changing:
        ranges |= {(then[0], (now or untimed)[0])}
    if ranges and changing:
        events = events - {"up", "down", "changed"} | {"level"}
        ends = {"then": {before for before, *_ in ranges}, "now": {after for *_, after in ranges}}
        levels = [(when, level) for when, level in levels if level not in ends[when or "now"]]
        contradictory = levels or any(not there for _, there in finding.presence)
        problems.add("what it says beside its change is not that of its change", contradictory)
        range_direction = State("level", ranges).direction
        problems.add(
            "its direction is not that of its levels",
            range_direction and finding.events & {"up", "down"} - {range_direction},
        )
    conditions = {
        "changing": changing,
        f"?{kind}": True,
        f"#{len(events)}": True,
        "any": finding.name == ANY,
        "predicted": finding.predicted,
        "then-level": then,
    }
    claims = {"not-" * (not there) + (when or "present") for when, there in finding.presence}
    marks = derive_marks(
        "comes", {mark for mark, holds in conditions.items() if holds} | claims | events | finding.marks
    )
    problems.update(doubts(marks))
    statuses = {mark[3:] for mark in marks if mark.startswith("-> ")} or events
    status = min(statuses, key=STATUSES.index)
    single_levels = {(level,) for _, level in levels}
    return State(status, ranges | single_levels, frozenset(finding.types), places(place_phrases, finding.name))
