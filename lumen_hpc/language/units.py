"""Cuts a tagged text into units: one finding each, with the tags around it up to the next finding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from lumen_hpc.language.statements import CHANGES, IMAGES, PAST, ROLES
from lumen_hpc.language.words import SEPARATORS, Tag

ANY = "any finding"
"""An abnormality, whichever."""
CUES = (*CHANGES, "no", "seen", "from")
_ABSENT = {"missing", "absent", "absence", "lost", "disappeared", "vanished", "disappears", "gone"}
_FROM_REFERENCE = Tag("from reference", "")


@dataclass(slots=True)
class Unit:
    """One finding, with the tags before it and those after it up to the next finding."""

    finding: str
    joined: list[str]
    """Kinds of the separators before it; `and` alone binds it to its neighbour, `, and` may open a new clause."""
    before: list[Tag]
    after: list[Tag] = field(default_factory=list)

    @property
    def cues(self) -> tuple[list[str], list[str]]:
        """The kinds of cue before the finding, and after it."""
        return tuple([tag.kind for tag in side if tag.kind in CUES] for side in (self.before, self.after))

    @property
    def bare(self) -> bool:
        """Nothing is said of it here: the rest of its list must tell."""
        kinds = {tag.kind for tag in (*self.before, *self.after)}
        return not any(self.cues) and not ("level" in kinds and kinds & {*ROLES, "become", "past"})

    @property
    def only_seen(self) -> bool:
        """All that is said of it here is that it is seen, as at the end of `new a and b are seen`."""
        before, after = self.cues
        return not before and set(after) == {"seen"}

    def inherits(self, status: str, ahead: Unit) -> bool:
        """Whether a change told of the unit ahead holds here too, where this finding is only said to be seen.

        So it is in `new a and b are seen` and in `no longer shows a and b of the reference image`, but not in `there
        is a new a, and b is seen`.
        """
        return self.only_seen and "seen" not in ahead.cues[0] and status == ("gone" if self.on_reference else "new")

    @property
    def led_by_reference(self) -> bool:
        """The reference image is named before it, as in `on the reference image, …`."""
        return any(tag.kind == "reference" and tag.value.split()[-1] in IMAGES for tag in self.before)

    @property
    def on_reference(self) -> bool:
        """The reference image is named after it."""
        return any(tag.kind == "reference" for tag in self.after)


def settled(found: list[Tag], kind: str) -> list[Tag]:
    """The tags with the words whose meaning hangs on the question's type or on their neighbours decided."""
    settled: list[Tag] = []
    for i, tag in enumerate(found):
        following = found[i + 1] if i + 1 < len(found) else Tag("stop", ".")
        if settled and settled[-1] == _FROM_REFERENCE:
            settled[-1] = Tag("compared", tag.value)
            continue
        if kind == "presence" and tag.value == "unilateral":
            settled += [Tag("no", tag.value), Tag("side", "both")]
            continue
        if tag.kind == "new" and tag.value.startswith("appear"):
            copula = following.kind in ("to", "level", "type", "side", *CHANGES) or following.value in ("in", "on")
            noun = tag.value == "appearance" and following.value != "of"
            if kind in ("difference", "prediction"):
                tag = Tag("filler", tag.value) if copula or noun else tag
            else:
                tag = Tag("filler" if copula or noun else "seen", tag.value)
        elif tag.kind == "gone" and tag.value.startswith("subsid") and following.kind in ("from", "to"):
            tag = Tag("down", tag.value)  # to another level
        elif _plain(tag, kind):
            tag = Tag("filler", tag.value)
        elif tag.kind == "from" and following.kind == "reference" and not _ABSENT & {t.value for t in settled[-3:]}:
            tag = _FROM_REFERENCE
        elif tag.kind == "become" and kind not in ("difference", "prediction"):
            tag = Tag("changed", tag.value)
        elif tag.kind == "stop" and tag.value == ":":
            tag = Tag("comma", ":")
        elif tag.kind == "now":
            tag = Tag("reference" if kind == "prediction" else "main", tag.value)
        elif kind == "prediction" and tag.kind == "main" and tag.value.split()[0] in ("current", "present", "todays"):
            tag = Tag("reference", tag.value)
        settled.append(tag)
    return settled


def _plain(tag: Tag, kind: str) -> bool:
    """`Additional` tells a change only of two images, and `projection` the future only in a prediction."""
    if tag.kind == "new" and tag.value.startswith("addition"):
        return kind not in ("difference", "prediction")
    return tag.kind == "future" and tag.value == "projection" and kind != "prediction"


def sentences_of(found: list[Tag]) -> Iterator[list[Tag]]:
    sentence: list[Tag] = []
    for tag in (*found, Tag("stop", ".")):
        if tag.kind != "stop":
            sentence.append(tag)
        elif sentence:
            yield sentence
            sentence = []


def pieces_of(sentence: list[Tag]) -> list[tuple[list[str], list[Tag]]]:
    """(kinds of the separators before it, tags between them and the next ones) of each piece of a sentence."""
    pieces: list[tuple[list[str], list[Tag]]] = [(["stop"], [])]
    for tag in sentence:
        if tag.kind not in SEPARATORS:
            pieces[-1][1].append(tag)
        elif pieces[-1][1]:
            pieces.append(([tag.kind], []))
        else:
            pieces[-1][0].append(tag.kind)
    return [piece for piece in pieces if piece[1]]


def unit_of(finding: str, joined: list[str], lead: list[Tag], piece: list[Tag]) -> Unit:
    """Splits a piece at its finding; `normal` counts as the denial of any finding."""
    if all(tag.kind not in ("finding", "any") for tag in piece):
        denied = any(tag.kind == "no" for tag in piece)
        piece = [tag for tag in piece if tag.kind != "no"]
        at = next(i for i, tag in enumerate(piece) if tag.kind == "normal")
        said = Tag("seen", "not normal") if denied else Tag("no", "no")
        return Unit(finding, joined, [*lead, *piece[:at], said], piece[at + 1 :])
    wanted = "finding" if any(tag.kind == "finding" for tag in piece) else "any"
    at = next(i for i, tag in enumerate(piece) if tag.kind == wanted)
    return Unit(finding, joined, [*lead, *piece[:at]], piece[at + 1 :])


def merged(sentences: list[list[Unit]]) -> list[list[Unit]]:
    """What a text says of one finding in several places, told together at the first."""
    first: dict[str, Unit] = {}
    kept = []
    for units in sentences:
        kept.append([])
        for unit in units:
            if earlier := first.get(unit.finding):
                earlier.after += [Tag("stop", ""), *unit.before, Tag("finding", unit.finding), *unit.after]
            else:
                first[unit.finding] = unit
                kept[-1].append(unit)
    return kept


def source(units: list[Unit], i: int, step: int) -> int | None:
    """The unit from which a list hands its statement to unit i: before it (step -1) or after it (+1), or None."""
    j = i + step
    while 0 <= j < len(units) and units[j].bare:
        j += step
    first, last = min(i, j) + 1, max(i, j)
    if not 0 <= j < len(units) or any({"but", "stop"} & set(unit.joined) for unit in units[first : last + 1]):
        return None
    before, after = units[j].cues
    if step < 0:
        return j if (before and not after) or units[j].finding == ANY else None
    return j if not before else None


def spread_predicates(units: list[Unit]) -> None:
    """`The previously noted a and b have cleared`: what follows the list holds for a finding told of by `noted` too."""
    for i, unit in enumerate(units):
        before, after = unit.cues
        attribute = any(tag.kind == "reference" and tag.value in PAST for tag in unit.before)
        behind = source(units, i, +1)
        if before == ["seen"] and not after and attribute and behind is not None:
            unit.after += units[behind].after


def spread_denied(units: list[Unit]) -> None:
    """`Neither a nor b persists`: what follows the list holds for all that it denies."""
    for i, unit in enumerate(units):
        if "no" not in unit.cues[0] or unit.cues[1]:
            continue
        last = next((j for j in range(i + 1, len(units)) if units[j].cues[1]), i)
        rest = units[i + 1 : last + 1]
        if rest and "or" in rest[-1].joined and all({"comma", "or"} >= set(o.joined) and not o.cues[0] for o in rest):
            for ahead, other in itertools.pairwise(units[i : last + 1]):
                ahead.after += rest[-1].after
                other.before[:0] = [tag for tag in unit.before if tag.kind == "no"]


def spread_role(units: list[Unit]) -> None:
    """`The reference image showed a but no b`: b is denied of that image."""
    for ahead, unit in itertools.pairwise(units):
        named = [tag for tag in ahead.before if tag.kind in ROLES and tag.value.split()[-1] in IMAGES]
        own = any(tag.kind in ROLES for tag in (*unit.before, *unit.after))
        if len(named) == 1 and unit.cues == (["no"], []) and not own and "stop" not in unit.joined:
            unit.before[:0] = named


def told(units: list[Unit], piece: list[Tag], of_all: bool) -> None:
    """Adds a piece without a finding to the last unit, or to all, whose lists are written out first."""
    if not of_all:
        units[-1].after += piece
        return
    units = units[max((i for i, unit in enumerate(units) if "but" in unit.joined), default=0) :]
    sources = [
        (source(units, i, -1), source(units, i, +1)) if unit.bare else (None, None) for i, unit in enumerate(units)
    ]
    for i, (unit, (ahead, behind)) in enumerate(zip(units, sources, strict=True)):
        if behind is not None and ahead is None:
            unit.after += units[behind].after
        elif unit.bare and i:
            unit.before += units[i - 1 if ahead is None else ahead].before
    for unit in units:
        unit.after += piece
