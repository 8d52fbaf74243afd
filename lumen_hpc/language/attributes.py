"""Places and levels in phrases: `the left and right lower lobes` is two places, `from … to …` two levels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from lumen_hpc.data.diff_vqa import LevelChange
from lumen_hpc.language.parsing import Phrase
from lumen_hpc.language.words import vocabulary

Place = frozenset[str]
"""The names of one place, a side among them; `bilateral` is two places."""
SIDES = frozenset({"left", "right"})
_HEAD_WORD = "head word"
"""One of the names of a place that has a head word of its own, such as lung."""
_ELSEWHERE = "elsewhere"
"""One of the names of a place that takes no side from its neighbour, as in `the right lung and the lower lobes`."""


def places(phrases: Iterable[Phrase], finding: str = "") -> frozenset[Place]:
    """The places that phrases name; a side alone and a place alone in one text belong together.

    The place where a `finding` always is, such as the pleural space of an effusion, does not count.
    """
    implied_names = {_HEAD_WORD, *(home for home, findings in vocabulary()["homes"].items() if finding in findings)}
    name_sets = [part - implied_names for phrase in phrases for part in _place_names(phrase)]
    named_places = {frozenset({side} | part - SIDES) - {""} for part in name_sets for side in part & SIDES or {""}} - {
        frozenset()
    }
    sides = {place for place in named_places if place <= SIDES}
    unsided = {place for place in named_places if not place & SIDES}
    if sides and unsided and named_places == sides | unsided:
        return frozenset(side.union(*unsided) for side in sides)
    sides_repeat = sides == {place & SIDES for place in named_places - sides if place & SIDES}
    return frozenset(named_places - sides if sides_repeat else named_places)  # on the left, in the left lower lobe


def _place_names(phrase: Phrase) -> list[set[str]]:
    """The names of each place in a phrase; a side or head word that is said once holds for its neighbours too."""
    parts: list[set[str]] = [set()]
    explicit_sides = SIDES & set(phrase.roles("side"))
    for word in phrase.words:
        roles = word.roles.keys()
        place = word.roles.get("place", "")
        if roles & {"and", "or", "with", "comma"} or ("in" in roles and parts[-1] & SIDES):
            ends_in_side = parts[-1] <= SIDES | {_HEAD_WORD} and (_HEAD_WORD in parts[-1] or len(parts[-1]) == 1)
            bare_side = "and" in roles and ends_in_side
            parts.append({_ELSEWHERE} if bare_side else set())
        elif roles & {"both", "each"} and explicit_sides:
            continue  # both the left and the right
        elif roles & {"side", "both", "each", "bothways"} or place.startswith("both "):
            side = word.roles.get("side", "both")
            parts[-1] |= SIDES if side == "both" else {side}
        if place in parts[-1] & {"upper", "middle", "lower"}:
            place += " part"  # the lower part of the right lower lobe
        parts[-1] |= {place.removeprefix("both "), _HEAD_WORD * ("weak" in roles)} - {""}
    parts = [part - {_ELSEWHERE} if part & SIDES else part for part in parts if part - {_ELSEWHERE}]
    if len(parts) > 1:  # the right lower lobe and the lungs
        parts = [part if part - {_HEAD_WORD} else {_ELSEWHERE} for part in parts]
    for earlier, later in itertools.pairwise(parts):
        if not later & SIDES:
            later |= earlier & SIDES
    for later, earlier in itertools.pairwise(parts[::-1]):
        if earlier <= SIDES:
            earlier |= later - SIDES
        elif "lobe" in later and earlier <= SIDES | {"upper", "middle", "lower"}:
            earlier.add("lobe")  # but: the left lung and the right lower lobe
    return parts


Levels = frozenset[tuple[str, ...]]


def level_of(phrase: Phrase) -> str:
    """The level that a phrase names: `mild to moderate`."""
    ranks = (" ".join(rank.roles("lvl")) for rank in Phrase([phrase]).all("Rank"))
    return " to ".join(rank for rank in ranks if rank)


def level_ranges(phrases: Iterable[Phrase]) -> Levels:
    """Every way to read the ranges among phrases, such as `from A to B to C`, as (before, after)."""
    ranges: set[tuple[str, ...]] = set()
    for phrase in phrases:
        chain = [level_of(part) for part in phrase.parts if phrase.kind == "Range" and part.kind in ("Rank", "Level")]
        if chain and _begins_with_now(phrase.parts):
            chain.reverse()
        ranges |= {(" to ".join(chain[:k]), " to ".join(chain[k:])) for k in range(1, len(chain))}
    return frozenset(ranges)


def _begins_with_now(parts: Sequence[Phrase]) -> bool:
    """True of `to severe from mild`, `now severe, mild before` and `severe now, mild before`."""
    first, second = parts[:2]
    return first.plays("to", "now") or (first.kind == "Rank" and (second.kind == "OnMain" or second.plays("now")))


def level_direction(before: str, after: str) -> int:
    """+1 if the level rises, -1 if it falls, 0 if the words do not tell."""
    ranks = vocabulary()["ranks"]
    first, last = (" ".join(ranks.get(word, word) for word in level.split()) for level in (before, after))
    return LevelChange("", first, last).direction
