"""What is said of one finding, as predicates: each an event or a state, on one of the two images or on none."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from lumen_hpc.data.diff_vqa import severity
from lumen_hpc.language.words import SEPARATORS, Tag

CHANGES = ("new", "gone", "same", "changed", "up", "down")
ROLES = ("reference", "main")
IMAGES = ("image", "images", "radiograph", "ray", "xray", "film", "study", "exam", "examination", "scan", "reference")
PAST = ("previously", "before", "formerly", "initially", "originally", "earlier", "prior", "previous")
STAYS = ("persist", "remain", "linger", "endur", "stay", "continu")
"""What does not do so is gone, where what is not the same has changed."""
NOW = ("now", "currently", "today", "at present", "at this time", "by now")
_RANKED = {"tiny": "minimal", "slight": "mild", "minor": "mild", "extensive": "severe", "marked": "severe"}
"""Words for a level by such as the dataset's ranks hold; they lack all but `minor`, which they rank with minimal."""
Levels = frozenset[tuple[str, ...]]


@dataclass(slots=True)
class Statement:
    """One predicate: an event or a state, on one of the two images or on none in particular."""

    role: str = ""
    no: int = 0
    seen: bool = False
    events: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    """The events told before the finding."""
    past: bool = False
    now: bool = False
    """It says that this is so now, which tells a change: `there is now a …`."""
    closed: bool = False
    """Its image was named after its predicate, so the next predicate is another's."""
    shown: bool = False
    """It said before the finding that it is seen, so a no after the finding is another statement's."""
    lead: bool = False
    """Its image was named before the finding: `on the reference image, …`."""
    front: bool = False
    """It is denied before the finding: `neither a nor b seen before will persist`."""
    future: bool = False
    """It speaks of what is expected."""
    became: bool = False
    """It tells what the finding came to be: `has become …`."""

    @property
    def predicate(self) -> bool:
        return bool(self.no or self.seen or self.events or self.levels)

    @property
    def denies_only(self) -> bool:
        """A no whose object is still to come, as in `it is not so that there is …`."""
        return bool(self.no) and not (self.seen or self.events or self.levels or self.role)

    @property
    def said_events(self) -> list[str]:
        """Its events with negation worked in: what has not changed is the same, what is no more seen is gone."""
        if self.no and self.seen and not self.events and "any more" in self.words:
            return ["gone"]
        if self.absence:
            return []
        if self.became and not self.levels and not self.events and (self.seen or self.no):
            return ["gone" if self.no else "new"]
        if not self.no:
            return self.events
        if self.events == ["same"] and any(word.startswith(STAYS) for word in self.words):
            return ["gone"]
        return ["same" if event == "changed" else f"not-{event}" for event in self.events]

    @property
    def absence(self) -> bool:
        """`Missing from the reference image` says that it was absent there, not that it went."""
        return self.role == "reference" and "missing" in self.words

    @property
    def states_presence(self) -> bool:
        return self.absence or (not self.events and (bool(self.no) or self.seen or bool(self.role)))


def statements_of(sequence: list[Tag]) -> list[Statement]:
    """Cuts what is said of one finding into predicates, each with the image it is about."""
    said = [Statement()]
    named = mentioned = False
    for tag in sequence:
        current = said[-1]
        mentioned = tag.kind == "finding" or (mentioned and tag.kind != "stop")
        if tag.kind == "finding":
            named, current.attributes, current.shown = True, set(current.events), current.seen
        if tag.kind in SEPARATORS or (tag.value in ("which", "that") and named and not current.denies_only):
            if current.predicate or current.role:
                said.append(Statement())
        elif tag.kind in ROLES:
            if current.role not in ("", tag.kind) or (tag.value in NOW and named and current.levels):
                current = Statement()
                said.append(current)
            image = tag.value.split()[-1] in IMAGES
            current.closed |= current.predicate and (image or not current.denies_only)
            current.role = tag.kind
            current.now |= tag.kind == "main" and tag.value in NOW
            current.lead |= not named and image
        elif tag.kind == "become":
            said.append(Statement(role="main", no=current.no * current.denies_only, became=True))
        elif tag.kind == "past":
            current.past = True
        elif tag.kind == "future":
            if current.levels or (current.role == "reference" and current.predicate and not current.front):
                current = Statement()
                said.append(current)
            current.future = True
        elif tag.kind in ("no", "seen", "level", "any more", *CHANGES):
            told = current.role == "reference" and not current.denies_only and (current.seen or not current.lead)
            if (
                current.closed
                or (told and tag.kind in CHANGES)
                or (tag.kind == "no" and current.role and current.shown)
                or (tag.kind == "no" and current.role == "reference" and mentioned and current.seen)
            ):
                stays = tag.value.startswith(STAYS) and current.no == 1 and current.role == "reference"
                current.no, current.seen = current.no * (not stays), current.seen or stays
                current = Statement(no=stays)
                said.append(current)
            current.words.append(tag.value if tag.kind != "any more" else tag.kind)
            if tag.kind == "no":
                current.no += 1
                current.front |= not named
            elif tag.kind == "seen":
                current.seen = True
            elif tag.kind == "level":
                current.levels.append(tag.value)
            elif tag.kind in CHANGES:
                current.events.append(tag.kind)
                if {tag.kind, *current.attributes} >= {"new", "gone"}:
                    current.events.append("unclear")  # as in `no resolved findings have appeared`
    return said


def level_changes(sequence: list[Tag]) -> tuple[list[Tag], Levels, bool]:
    """Takes `from … to …` out of a sequence.

    Returns the other tags (with `mild to moderate` as one level, `shrunk to small` as what it became, and `from mild`
    alone as the reference image's), every way to read the change as (before, after),
    and whether the levels are given to the wrong images.
    """
    rest: list[Tag] = []
    readings: Levels = frozenset()
    swapped = False
    i = 0
    while i < len(sequence):
        chain, after = _chain(sequence, i)
        markers = [marker for marker, _, _ in chain]
        if "from" in markers and "to" in markers:
            at = markers.index("from")
            levels = [level for _, level, _ in chain]
            if at:  # to severe from mild
                readings |= {(" to ".join(levels[at:]), " to ".join(levels[:at]))}
            else:
                readings |= {(" to ".join(levels[:k]), " to ".join(levels[k:])) for k in range(1, len(levels))}
            told = itertools.accumulate(markers, lambda last, marker: marker or last)
            own = {"from": "reference", "to": "main"}
            swapped |= any(image not in ("", own.get(last)) for last, (_, _, image) in zip(told, chain, strict=True))
            i = after
        elif "from" in markers and (markers[0] or _turns(rest, "become", "main")):
            at = markers.index("from")
            before, now = (" to ".join(level for _, level, _ in part) for part in (chain[at:], chain[:at]))
            if now:  # has become large from small
                readings |= {(before, now)}
            else:
                rest += [Tag("stop", ""), Tag("reference", "before"), Tag("level", before)]
            i = after
        elif chain and markers[0] == "" and len(chain) > 1:
            rest.append(Tag("level", " to ".join(level for _, level, _ in chain)))
            i = after
        elif chain and markers[0] == "to" and _turns(rest, "up", "down", "changed"):
            rest += [Tag("become", "to"), Tag("level", " to ".join(level for _, level, _ in chain))]
            i = after
        else:
            rest.append(sequence[i])
            i += 1
    return rest, readings, swapped


def _turns(said: list[Tag], *kinds: str) -> bool:
    """Whether the last thing said is of these kinds, as in `it has shrunk (to small)`."""
    last = next((tag for tag in reversed(said) if tag.kind not in ("filler", "finding", "past", "compared")), None)
    return last is not None and last.kind in kinds


def _chain(sequence: list[Tag], start: int) -> tuple[list[tuple[str, str, str]], int]:
    """(marker, level, image) of levels joined by from and to, beginning at `start`, and where they end."""
    chain: list[tuple[str, str, str]] = []
    marker, image, end = "", "", start
    for i in range(start, len(sequence)):
        tag = sequence[i]
        if tag.kind in ("from", "to"):
            if marker:
                break
            marker = tag.kind
        elif tag.kind == "level" and (marker or not chain):
            chain.append((marker, tag.value, image))
            marker, image, end = "", "", i + 1
        elif tag.kind in ROLES and marker and tag.value in PAST:
            image = tag.kind  # from its previous moderate level
        elif tag.kind in ROLES and chain and not marker:
            chain[-1] = (*chain[-1][:2], tag.kind)
            end = i + 1
        elif i == start or tag.kind not in ("filler", "finding", "past"):
            break
    return chain, end


def rise(before: str, after: str) -> int:
    """+1 where the level rises, -1 where it falls, 0 where the words do not tell."""
    first, last = (severity(" ".join(_RANKED.get(word, word) for word in level.split())) for level in (before, after))
    return 0 if first is None or last is None else (last > first) - (last < first)
