"""Sides and places in a tagged text: `the left and right lower lobes` is two places, on two sides."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lumen_hpc.language.words import Tag

Place = tuple[str, frozenset[str]]
"""(left, right or "", the places named with it); `bilateral` is both sides."""

LOCAL = ("side", "place", "weak")
_INSIDE = (*LOCAL, "filler", "and", "or", "comma", "to")


@dataclass(slots=True)
class _Part:
    sides: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)
    headed: bool = False
    """It has a head word of its own, such as lung."""


def places(tags: Sequence[Tag]) -> frozenset[Place]:
    """The places that tags name; a side alone and a place alone in one text belong together."""
    found = {place for run in _runs(tags) for part in _parts(run) for place in _spelled(part)}
    sides = {place for place in found if place[0] and not place[1]}
    bare = {place for place in found if place[1] and not place[0]}
    if sides and bare and found == sides | bare:
        return frozenset((side, frozenset().union(*(where for _, where in bare))) for side, _ in sides)
    return frozenset(found - {place for place in sides if any(other[0] == place[0] and other[1] for other in found)})


def _runs(tags: Sequence[Tag]) -> Iterator[list[Tag]]:
    run: list[Tag] = []
    for tag in (*tags, Tag("end", "")):
        if tag.kind in _INSIDE:
            run.append(tag)
        elif run:
            yield run
            run = []


def _parts(run: list[Tag]) -> list[_Part]:
    """A run cut at its separators; a side or a head word said once holds for its neighbours too."""
    parts = [_Part()]
    for tag in run:
        if tag.kind in ("and", "or", "comma"):
            parts.append(_Part())
        elif tag.kind == "weak":
            parts[-1].headed = True
        elif tag.kind == "side":
            parts[-1].sides |= {"left", "right"} if tag.value == "both" else {tag.value}
        elif tag.kind == "place":
            parts[-1].sides |= {"left", "right"} if tag.value.startswith("both ") else set()
            parts[-1].places.add(tag.value.removeprefix("both "))
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
