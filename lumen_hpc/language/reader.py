"""Reads what a sentence about a chest radiograph says: findings with their state, side, place, level, type and change.

Rules, no model. A text is cut at separators into units of one finding each with the cues around it; cues before a
list hold for the rest of the list, cues after a list for what comes before. What cannot be read for certain becomes
a problem, and the fact check passes no text with a problem. The words are vocabulary.yaml's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from lumen_hpc.data.diff_vqa import severity
from lumen_hpc.language.places import LOCAL, Place, places
from lumen_hpc.language.words import SEPARATORS, Tag, tags

ANY = "any finding"
"""An abnormality, whichever."""
_CHANGES = ("new", "gone", "same", "changed", "up", "down")
_CUES = (*_CHANGES, "no", "seen", "from")
_Levels = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class State:
    """What a text says of one finding."""

    status: str
    """present or absent; of a change new, gone, same, level, up, down or changed; not-… for its denial."""
    levels: frozenset[tuple[str, ...]] = frozenset()
    """(level,); of a level change every way to read `from … to …` as (before, after)."""
    types: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a text says."""

    findings: dict[str, State]
    views: dict[str, bool]
    """False: the text says that it is not this view."""
    places: frozenset[Place]
    """All places named, whichever finding they belong to."""
    unknown: frozenset[str]
    numbers: frozenset[str]
    lead: str
    """yes or no, where the text opens with it; else empty."""
    foretold: bool
    """Every sentence about a finding speaks of the future."""
    expectation: bool
    """Some word of expectation, possibility or doubt is there."""
    later_image: bool
    """The later image is spoken of."""
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Statement:
    """One predicate: an event or a state, on one of the two images or on none in particular."""

    role: str = ""
    no: int = 0
    seen: bool = False
    events: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    past: bool = False
    closed: bool = False
    """Its image was named after its predicate, so the next predicate is another's."""

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
        if not self.no:
            return self.events
        return ["same" if event == "changed" else f"not-{event}" for event in self.events]

    @property
    def absence(self) -> bool:
        """`Missing from the reference image` says that it was absent there, not that it went."""
        return self.role == "reference" and "missing" in self.words

    @property
    def states_presence(self) -> bool:
        return self.absence or (not self.events and (bool(self.no) or self.seen or bool(self.role)))


@dataclass(slots=True)
class _Unit:
    """One finding, with the tags before it and those after it up to the next finding."""

    finding: str
    joined: list[str]
    """Kinds of the separators before it; `and` alone binds it to its neighbour, `, and` may open a new clause."""
    before: list[Tag]
    after: list[Tag] = field(default_factory=list)

    @property
    def cues(self) -> tuple[list[str], list[str]]:
        """The kinds of cue before the finding, and after it."""
        return tuple([tag.kind for tag in side if tag.kind in _CUES] for side in (self.before, self.after))

    @property
    def bare(self) -> bool:
        """Nothing is said of it here: the rest of its list must tell."""
        kinds = {tag.kind for tag in (*self.before, *self.after)}
        return not any(self.cues) and not ("level" in kinds and kinds & {*_ROLES, "become", "past"})

    @property
    def only_seen(self) -> bool:
        """All that is said of it here is that it is seen, as at the end of `new a and b are seen`."""
        before, after = self.cues
        return not before and set(after) == {"seen"} and all(tag.kind != "reference" for tag in self.after)


@lru_cache(maxsize=1 << 14)
def read(text: str, kind: str, names: tuple[str, ...] = ()) -> Facts:
    """What a text says, as an answer to a question of this type.

    The type decides between the readings of a few words: `appears small` is no change in a diagnostic answer, and
    `now` is the reference image's time in a prediction. `names`: findings beyond the vocabulary.
    """
    found = _settled(tags(text, names), kind)
    lead = ""
    if found and (found[0].kind == "yes" or (found[0].value == "no" and len(found) > 1 and found[1].kind in _ENDS)):
        lead = found[0].value
        found = found[2:] if len(found) > 1 and found[1].kind in _ENDS else found[1:]
    reading = _Reading(kind)
    for sentence in _sentences(found):
        reading.add(sentence)
    return reading.facts(found, lead)


_ENDS = ("comma", "stop")
_ROLES = ("reference", "main")
_PRONOUNS = ("it", "its", "this", "these", "they", "their", "both of which", "which")


def _settled(found: list[Tag], kind: str) -> list[Tag]:
    """The tags with the words whose meaning hangs on the question's type or on their neighbours decided."""
    settled = []
    for i, tag in enumerate(found):
        following = found[i + 1] if i + 1 < len(found) else Tag("stop", ".")
        if tag.kind == "new" and tag.value.startswith("appear"):
            copula = following.kind in ("to", "level", "type", "side", *_CHANGES) or following.value in ("in", "on")
            noun = tag.value == "appearance" and following.value != "of"
            if kind in ("difference", "prediction"):
                tag = Tag("filler", tag.value) if copula or noun else tag
            else:
                tag = Tag("filler" if copula or noun else "seen", tag.value)
        elif tag.kind == "stop" and tag.value == ":":
            tag = Tag("comma", ":")
        elif tag.kind == "now":
            tag = Tag("reference" if kind == "prediction" else "main", tag.value)
        elif kind == "prediction" and tag.kind == "main" and tag.value.split()[0] in ("current", "present", "todays"):
            tag = Tag("reference", tag.value)
        settled.append(tag)
    return settled


def _sentences(found: list[Tag]) -> Iterable[list[Tag]]:
    sentence: list[Tag] = []
    for tag in (*found, Tag("stop", ".")):
        if tag.kind != "stop":
            sentence.append(tag)
        elif sentence:
            yield sentence
            sentence = []


def _pieces(sentence: list[Tag]) -> list[tuple[list[str], list[Tag]]]:
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


class _Reading:
    """Gathers what the sentences of one text say."""

    def __init__(self, kind: str) -> None:
        self.changing = kind in ("difference", "prediction")
        self.sentences: list[list[_Unit]] = []
        self.findings: dict[str, State] = {}
        self.views: dict[str, bool] = {}
        self.denied: list[Tag] = []
        self.kept: list[Tag] = []
        self.problems: list[str] = []
        self.foretold = True

    def add(self, sentence: list[Tag]) -> None:
        """Cuts one sentence into units, and gives pieces without a finding to the unit they speak of."""
        lead: list[Tag] = []
        units: list[_Unit] = []
        for joined, piece in _pieces(sentence):
            kinds = {tag.kind for tag in piece}
            if "view" in kinds and "finding" not in kinds:
                self._view(piece)
                continue
            if "no" in kinds and kinds & {"side", "place"} and kinds <= {"no", "filler", *LOCAL} and units:
                self.denied += piece
                continue
            self.kept += [Tag(joined[-1], ""), *piece]
            names = dict.fromkeys(tag.value for tag in piece if tag.kind == "finding")
            if len(names) > 1:
                self.problems.append("two findings stand side by side without a word between that sets them apart")
            if names or "any" in kinds or "normal" in kinds:
                units.append(_unit(next(iter(names), ANY), joined, lead, piece))
                lead = []
            elif units:
                units[-1].after += [Tag(joined[-1], ""), *piece]
            elif self.sentences and piece[0].value in _PRONOUNS:
                self.sentences[-1][-1].after += [Tag("stop", ""), *lead, *piece]
                lead = []
            else:
                lead += piece
        if not units and any(tag.kind in _CUES for tag in lead):
            units.append(_Unit(ANY, ["stop"], lead))
        if units:
            self.sentences.append(units)
            future = next((i for i, tag in enumerate(sentence) if tag.kind == "future"), None)
            perfect = any(
                tag.value in ("has", "have") and following.kind in _CHANGES
                for tag, following in itertools.pairwise(sentence[:future])
            )
            self.foretold &= future is not None and not perfect

    def _view(self, piece: list[Tag]) -> None:
        said = sum(tag.kind == "no" for tag in piece) % 2 == 0
        for tag in piece:
            if tag.kind == "view" and self.views.setdefault(tag.value, said) != said:
                self.problems.append(f"it says of the {tag.value} view both that it is and that it is not")

    def _states(self, units: list[_Unit]) -> None:
        """Settles what one sentence says of its findings, in lists too."""
        self._spread_negation(units)
        own = [None if unit.bare else self._state(unit) for unit in units]
        for i, unit in enumerate(units):
            ahead, behind = _source(units, i, -1), _source(units, i, +1)
            state = own[i]
            if unit.bare:
                state = self._listed(unit, units[i + 1 : i + 2], *(own[j] for j in (ahead, behind) if j is not None))
                state = replace(state, types=self._state(unit).types, levels=state.levels | self._state(unit).levels)
            elif ahead is not None and unit.only_seen and own[ahead].status in _CHANGES:
                state = replace(state, status=own[ahead].status)
            state = replace(state, places=places([*unit.before, *unit.after]))
            if self.findings.setdefault(unit.finding, state) != state:
                self.problems.append(f"it says two things of {unit.finding}")

    def _listed(self, unit: _Unit, following: list[_Unit], *said: State) -> State:
        """The state that a list gives to a finding of which nothing else is said."""
        if not said:
            return State("stated" if self.changing else "present")
        if len({state.status for state in said}) > 1:
            bound = [len(joined) == 1 and joined[0] != "comma" for joined in (unit.joined, following[0].joined)]
            if bound[0] == bound[1]:
                self.problems.append(f"{unit.finding} stands between two statements that differ")
            return said[0] if bound[0] else said[1]
        return said[0]

    def _spread_negation(self, units: list[_Unit]) -> None:
        """`No a, b or c`: the no before a list holds for all of it, up to a predicate."""
        negated = False
        for unit in units:
            before, after = unit.cues
            negated &= not {"but", "stop"} & set(unit.joined)
            if negated and not before:
                if after and "or" not in unit.joined:
                    self.problems.append(f"it is unclear whether the no before {unit.finding} holds for it")
                unit.before.insert(0, Tag("no", "no"))
                before = ["no"]
            if before:
                negated = before == ["no"] or before == ["seen", "no"] or before == ["no", "seen"]
            negated &= not after

    def _state(self, unit: _Unit) -> State:
        """What one unit says of its finding by itself."""
        sequence = [*unit.before, Tag("finding", unit.finding), *unit.after]
        sequence, readings, swapped = _level_changes(sequence)
        if swapped:
            self.problems.append("it gives the levels of the two images the other way round")
        statements = [statement for statement in _statements(sequence) if statement.predicate or statement.role]
        types = frozenset(tag.value for tag in sequence if tag.kind == "type")
        if any(statement.no > 1 for statement in statements):
            self.problems.append("it denies a denial")
        status, levels = (self._changed if self.changing else self._present)(statements, readings)
        return State(status, levels, types)

    def _present(self, statements: list[_Statement], readings: _Levels) -> tuple[str, _Levels]:
        if any(statement.role == "reference" for statement in statements):
            self.problems.append("it speaks of another image")
        events = {("not-" if s.no else "") + event for s in statements for event in s.events}
        said = {bool(s.no) for s in statements if s.predicate and not s.events}
        if len(events) > 1 or len(said) > 1:
            self.problems.append("it says both that a finding is there and that it is not")
        levels = frozenset((level,) for s in statements for level in s.levels)
        if events or readings:
            return min(events, default="level"), levels | readings
        return "absent" if True in said else "present", levels

    def _changed(self, statements: list[_Statement], readings: _Levels) -> tuple[str, _Levels]:
        events = {event for s in statements for event in s.said_events}
        there = {role: set() for role in ("reference", "main", "")}
        levels = {role: [] for role in ("reference", "main", "")}
        roles = any(s.role for s in statements)
        for s in statements:
            role = s.role or ("reference" if s.past and roles else "")
            if s.states_presence:
                there[role].add(not s.no)
            if s.levels:
                levels[role if role or not any(t.role == "main" for t in statements) else "reference"] += s.levels
        readings, events = self._levels(levels, readings, events)
        return self._event(events, there), readings

    def _levels(self, levels: dict[str, list[str]], readings: _Levels, events: set[str]) -> tuple[_Levels, set[str]]:
        """Levels told one image at a time count as a change between them; direction words must agree with it."""
        if levels["reference"] and levels["main"]:
            readings |= {(" to ".join(levels["reference"]), " to ".join(levels["main"]))}
            levels = {"": levels[""]}
        stray = frozenset((level,) for told in levels.values() for level in told)
        if readings:
            for event, sign in (("up", 1), ("down", -1)):
                if event in events and all(_sign(*reading) == -sign for reading in readings):
                    self.problems.append("its direction is not that of its levels")
            events = events - {"up", "down", "changed"} | {"level"}
        return readings | stray, events

    def _event(self, events: set[str], there: dict[str, set[bool]]) -> str:
        """The one event that fits all statements about a finding."""
        before, now = there["reference"], there["main"]
        if len(before) > 1 or len(now) > 1 or len(events - {"changed"}) > 1:
            self.problems.append("it says two things of one finding")
        event = min(events - {"changed"}, default="changed" if events else "")
        confused = {"new": True in before or False in now, "gone": False in before or True in now}
        if confused.get(event):
            self.problems.append("it confuses the two images")
        if event:
            return event
        if before and now:
            return {(False, True): "new", (True, False): "gone", (True, True): "same"}.get(
                (min(before), min(now)), "absent"
            )
        everything = before | now | there[""]
        return "stated" if everything != {False} else "absent"

    def facts(self, found: list[Tag], lead: str) -> Facts:
        for units in _merged(self.sentences):
            self._states(units)
        self._any()
        named = places(self.kept)
        denied = places(self.denied)
        if denied and (not named or denied & named):
            self.problems.append("it denies a place")
        if True in self.views.values():
            self.views = {view: said for view, said in self.views.items() if said}
        kinds = {tag.kind for tag in found}
        return Facts(
            findings=self.findings,
            views=self.views,
            places=named,
            unknown=frozenset(tag.value for tag in found if tag.kind == "unknown"),
            numbers=frozenset(tag.value for tag in found if tag.kind == "number"),
            lead=lead,
            foretold=self.foretold and bool(self.sentences),
            expectation="future" in kinds,
            later_image="main" in kinds,
            problems=tuple(dict.fromkeys(self.problems)),
        )

    def _any(self) -> None:
        """`The findings are …` adds nothing to the findings it announces."""
        said = self.findings.get(ANY)
        others = [state.status for name, state in self.findings.items() if name != ANY]
        if said and others and said.status in ("present", "changed", *others):
            del self.findings[ANY]


def _unit(finding: str, joined: list[str], lead: list[Tag], piece: list[Tag]) -> _Unit:
    """Splits a piece at its finding; `normal` counts as the denial of any finding."""
    if all(tag.kind not in ("finding", "any") for tag in piece):
        denied = any(tag.kind == "no" for tag in piece)
        piece = [tag for tag in piece if tag.kind != "no"]
        at = next(i for i, tag in enumerate(piece) if tag.kind == "normal")
        return _Unit(finding, joined, [*lead, *piece[:at], *([] if denied else [Tag("no", "no")])], piece[at + 1 :])
    wanted = "finding" if any(tag.kind == "finding" for tag in piece) else "any"
    at = next(i for i, tag in enumerate(piece) if tag.kind == wanted)
    return _Unit(finding, joined, [*lead, *piece[:at]], piece[at + 1 :])


def _merged(sentences: list[list[_Unit]]) -> list[list[_Unit]]:
    """What a text says of one finding in several places, told together at the first."""
    first: dict[str, _Unit] = {}
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


def _source(units: list[_Unit], i: int, step: int) -> int | None:
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


def _statements(sequence: list[Tag]) -> list[_Statement]:
    """Cuts what is said of one finding into predicates, each with the image it is about."""
    said = [_Statement()]
    for tag in sequence:
        current = said[-1]
        if tag.kind in SEPARATORS or (tag.value in ("which", "that") and not current.denies_only):
            if current.predicate or current.role:
                said.append(_Statement())
        elif tag.kind in _ROLES:
            if current.role in ("", tag.kind):
                current.role, current.closed = tag.kind, current.closed or current.predicate
            else:
                said.append(_Statement(role=tag.kind))
        elif tag.kind == "become":
            said.append(_Statement(role="main"))
        elif tag.kind == "past":
            current.past = True
        elif tag.kind in ("no", "seen", "level", "any more", *_CHANGES):
            if current.closed or (current.role and current.predicate and tag.kind in _CHANGES):
                current = _Statement()
                said.append(current)
            current.words.append(tag.value if tag.kind != "any more" else tag.kind)
            if tag.kind == "no":
                current.no += 1
            elif tag.kind == "seen":
                current.seen = True
            elif tag.kind == "level":
                current.levels.append(tag.value)
            elif tag.kind in _CHANGES:
                current.events.append(tag.kind)
    return said


def _level_changes(sequence: list[Tag]) -> tuple[list[Tag], _Levels, bool]:
    """Takes `from … to …` out of a sequence.

    Returns the other tags (with `mild to moderate` as one level), every way to read the change as (before, after),
    and whether the levels are given to the wrong images.
    """
    rest: list[Tag] = []
    readings: _Levels = frozenset()
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
            images = [image for _, _, image in chain if image]
            swapped |= images not in ([], ["reference"], ["main"], ["reference", "main"]) or images[:1] == ["main"]
            i = after
        elif chain and markers[0] == "" and len(chain) > 1:
            rest.append(Tag("level", " to ".join(level for _, level, _ in chain)))
            i = after
        else:
            rest.append(sequence[i])
            i += 1
    return rest, readings, swapped


def _chain(sequence: list[Tag], start: int) -> tuple[list[tuple[str, str, str]], int]:
    """(marker, level, image) of levels joined by from and to, beginning at `start`, and where they end."""
    chain: list[tuple[str, str, str]] = []
    marker, end = "", start
    for i in range(start, len(sequence)):
        tag = sequence[i]
        if tag.kind in ("from", "to"):
            if marker:
                break
            marker = tag.kind
        elif tag.kind == "level" and (marker or not chain):
            chain.append((marker, tag.value, ""))
            marker, end = "", i + 1
        elif tag.kind in _ROLES and chain and not marker:
            chain[-1] = (*chain[-1][:2], tag.kind)
            end = i + 1
        elif i == start or tag.kind not in ("filler", "finding", "past"):
            break
    return chain, end


def _sign(before: str, after: str) -> int:
    """+1 where the level rises, -1 where it falls, 0 where the words do not tell."""
    first, last = severity(before), severity(after)
    return 0 if first is None or last is None else (last > first) - (last < first)
