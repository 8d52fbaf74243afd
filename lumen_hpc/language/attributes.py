"""Places and levels in phrases: `the left and right lower lobes` is two places, `from … to …` two levels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lumen_hpc.data.diff_vqa import severity
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
    parts = [part for phrase in phrases for part in _parts(phrase)]
    found = {(side, frozenset(part.places)) for part in parts for side in part.sides or {""}}
    if finding.startswith("pleural"):
        found = {(side, where - {"pleura"}) for side, where in found} - {("", frozenset())}
    sides = {place for place in found if place[0] and not place[1]}
    bare = {place for place in found if place[1] and not place[0]}
    if sides and bare and found == sides | bare:
        return frozenset((side, frozenset().union(*(where for _, where in bare))) for side, _ in sides)
    same = {side for side, _ in sides} == {side for side, where in found if side and where}
    return frozenset(found - sides if same else found)  # on the left, in the left lower lobe


def _parts(phrase: Phrase) -> list[_Part]:
    """A phrase cut at its separators; a side or a head word said once holds for its neighbours too."""
    parts = [_Part()]
    explicit = {"left", "right"} & set(phrase.roles("side"))
    for word in phrase.words:
        place = word.roles.get("place", "")
        if word.roles.keys() & {"and", "or", "comma"} or ("in" in word.roles and parts[-1].sides):
            parts.append(_Part())
        elif word.roles.keys() & {"both", "each"} and explicit:
            continue  # both the left and the right
        elif word.roles.keys() & {"side", "both", "each", "bothways"} or place.startswith("both "):
            side = word.roles.get("side", "both")
            parts[-1].sides |= {"left", "right"} if side == "both" else {side}
        parts[-1].headed |= "weak" in word.roles
        parts[-1].places |= {place.removeprefix("both ")} - {""}
    parts = [part for part in parts if part.sides or part.places]
    for earlier, later in itertools.pairwise(parts):
        if later.places and not later.sides:
            later.sides = set(earlier.sides)
    for later, earlier in itertools.pairwise(parts[::-1]):
        if earlier.headed:
            continue  # the left lung and the right lower lobe
        if earlier.sides and not earlier.places:
            earlier.places = set(later.places)
        elif "lobe" in later.places and earlier.places <= {"upper", "middle", "lower"}:
            earlier.places.add("lobe")
    return parts


Levels = frozenset[tuple[str, ...]]
_RANKED = {"tiny": "minimal", "slight": "mild", "minor": "mild", "extensive": "severe", "marked": "severe"}
"""Words for a level by such as the dataset's ranks hold; they lack all but `minor`, which they rank with minimal."""


def level_of(phrase: Phrase) -> str:
    """The level that a phrase names: `mild to moderate`."""
    ranks = [" ".join(rank.roles("lvl")) for rank in ([phrase] if phrase.kind == "Rank" else phrase.all("Rank"))]
    return " to ".join(rank for rank in ranks if rank)


def readings(phrases: Iterable[Phrase]) -> Levels:
    """Every way to read the ranges among phrases, such as `from A to B to C`, as (before, after)."""
    return frozenset(reading for phrase in phrases if phrase.kind == "Range" for reading in _readings(phrase))


def _readings(phrase: Phrase) -> Iterator[tuple[str, str]]:
    ends: dict[str, list[str]] = {}
    marker = "from"
    for part in phrase.parts:
        if part.has("from", "then", "was") and part.word:
            marker = "from"
        elif part.has("to", "now") and part.word:
            marker = "to"
        elif part.kind in ("Rank", "Level"):
            ends.setdefault(marker, []).append(level_of(part))
    chain = [*ends.get("from", []), *ends.get("to", [])]
    return ((" to ".join(chain[:k]), " to ".join(chain[k:])) for k in range(1, len(chain)))


def rise(before: str, after: str) -> int:
    """+1 where the level rises, -1 where it falls, 0 where the words do not tell."""
    first, last = (severity(" ".join(_RANKED.get(word, word) for word in level.split())) for level in (before, after))
    return 0 if first is None or last is None else (last > first) - (last < first)
