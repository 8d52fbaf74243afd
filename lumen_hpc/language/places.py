"""Sides and places in phrases: `the left and right lower lobes` is two places, on two sides."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lumen_hpc.language.parsing import Phrase

Place = tuple[str, frozenset[str]]
"""(left, right or "", the places named with it); `bilateral` is both sides."""


@dataclass(slots=True)
class _Part:
    sides: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)
    headed: bool = False
    """It has a head word of its own, such as lung."""


def places(phrases: Iterable[Phrase], finding: str = "") -> frozenset[Place]:
    """The places that phrases name; a side alone and a place alone in one text belong together.

    That a `finding` of the pleura is in the pleural space is no place.
    """
    found = {place for phrase in phrases for part in _parts(phrase) for place in _spelled(part)}
    if finding.startswith("pleural"):
        found = {(side, where - {"pleura"}) for side, where in found} - {("", frozenset())}
    sides = {place for place in found if place[0] and not place[1]}
    bare = {place for place in found if place[1] and not place[0]}
    if sides and bare and found == sides | bare:
        return frozenset((side, frozenset().union(*(where for _, where in bare))) for side, _ in sides)
    return frozenset(found - {place for place in sides if any(other[0] == place[0] and other[1] for other in found)})


def _parts(phrase: Phrase) -> list[_Part]:
    """A phrase cut at its separators; a side or a head word said once holds for its neighbours too."""
    parts = [_Part()]
    explicit = any(word.roles.get("side") in ("left", "right") for word in phrase.leaves())
    for word in phrase.leaves():
        if word.roles.keys() & {"and", "or", "comma"}:
            parts.append(_Part())
        elif "both" in word.roles and explicit:
            continue  # both the left and the right
        elif word.roles.keys() & {"side", "both", "bothways"}:
            side = word.roles.get("side", "both")
            parts[-1].sides |= {"left", "right"} if side == "both" else {side}
        elif "weak" in word.roles:
            parts[-1].headed = True
        elif "place" in word.roles:
            place = word.roles["place"]
            parts[-1].sides |= {"left", "right"} if place.startswith("both ") else set()
            parts[-1].places.add(place.removeprefix("both "))
    parts = [part for part in parts if part.sides or part.places]
    for earlier, later in itertools.pairwise(parts):
        if later.places and not later.sides:
            later.sides = set(earlier.sides)
    for later, earlier in itertools.pairwise(parts[::-1]):
        if earlier.sides and not earlier.places:
            earlier.places = set(later.places)
        elif "lobe" in later.places and not earlier.headed and earlier.places <= {"upper", "middle", "lower"}:
            earlier.places.add("lobe")
    return parts


def _spelled(part: _Part) -> Iterator[Place]:
    for side in sorted(part.sides) or [""]:
        yield side, frozenset(part.places)
