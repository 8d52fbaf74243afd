"""Places and levels in phrases: `the left and right lower lobes` is two places, `from … to …` two levels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from lumen_hpc.data.diff_vqa import LevelChange
from lumen_hpc.language.parsing import Phrase
from lumen_hpc.language.words import vocabulary

Place = frozenset[str]
"""The names of one place, a side among them; `bilateral` is two places."""
SIDES = frozenset({"left", "right"})
_HEAD = "head word"
"""Among the names of a part: it has a head word of its own, such as lung."""
_ELSEWHERE = "elsewhere"
"""Among the names of a part: none of its neighbour, as the lower lobes of `the right lung and the lower lobes`."""


def places(phrases: Iterable[Phrase], finding: str = "") -> frozenset[Place]:
    """The places that phrases name; a side alone and a place alone in one text belong together.

    That a `finding` is where it always is, as an effusion in the pleural space, is no place.
    """
    unsaid = {_HEAD, *(home for home, findings in vocabulary()["homes"].items() if finding in findings)}
    parts = [part - unsaid for phrase in phrases for part in _parts(phrase)]
    found = {frozenset({side} | part - SIDES) - {""} for part in parts for side in part & SIDES or {""}} - {frozenset()}
    sides = {place for place in found if place <= SIDES}
    bare = {place for place in found if not place & SIDES}
    if sides and bare and found == sides | bare:
        return frozenset(side.union(*bare) for side in sides)
    same = sides == {place & SIDES for place in found - sides if place & SIDES}
    return frozenset(found - sides if same else found)  # on the left, in the left lower lobe


def _parts(phrase: Phrase) -> list[set[str]]:
    """A phrase cut at its separators; a side or a head word said once holds for its neighbours too."""
    parts: list[set[str]] = [set()]
    explicit = SIDES & set(phrase.roles("side"))
    for word in phrase.words:
        roles = word.roles.keys()
        place = word.roles.get("place", "")
        if roles & {"and", "or", "with", "comma"} or ("in" in roles and parts[-1] & SIDES):
            whole = "and" in roles and _HEAD in parts[-1] and parts[-1] <= SIDES | {_HEAD}
            parts.append({_ELSEWHERE} if whole else set())
        elif roles & {"both", "each"} and explicit:
            continue  # both the left and the right
        elif roles & {"side", "both", "each", "bothways"} or place.startswith("both "):
            side = word.roles.get("side", "both")
            parts[-1] |= SIDES if side == "both" else {side}
        parts[-1] |= {place.removeprefix("both "), _HEAD * ("weak" in roles)} - {""}
    parts = [part - {_ELSEWHERE} if part & SIDES else part for part in parts if part - {_ELSEWHERE}]
    if len(parts) > 1:  # the right lower lobe and the lungs
        parts = [part if part - {_HEAD} else {_ELSEWHERE} for part in parts]
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


def readings(phrases: Iterable[Phrase]) -> Levels:
    """Every way to read the ranges among phrases, such as `from A to B to C`, as (before, after)."""
    found: set[tuple[str, ...]] = set()
    for phrase in phrases:
        chain = [level_of(part) for part in phrase.parts if phrase.kind == "Range" and part.kind in ("Rank", "Level")]
        if chain and phrase.parts[0].plays("to", "now"):
            chain.reverse()
        found |= {(" to ".join(chain[:k]), " to ".join(chain[k:])) for k in range(1, len(chain))}
    return frozenset(found)


def rise(before: str, after: str) -> int:
    """+1 where the level rises, -1 where it falls, 0 where the words do not tell."""
    ranks = vocabulary()["ranks"]
    first, last = (" ".join(ranks.get(word, word) for word in level.split()) for level in (before, after))
    return LevelChange("", first, last).direction
