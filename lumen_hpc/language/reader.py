"""Reads what a sentence about a chest radiograph says: findings with their state, side, place, level, type and change.

Rules, no model. A text is cut at separators into units of one finding each with the cues around it; cues before a
list hold for the rest of the list, cues after a list for what comes before. What cannot be read for certain becomes
a problem, and the fact check passes no text with a problem. The words are vocabulary.yaml's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

from lumen_hpc.language.places import LOCAL, Place, places
from lumen_hpc.language.statements import CHANGES, NOW, Levels, Statement, level_changes, rise, statements_of
from lumen_hpc.language.units import (
    ANY,
    CUES,
    Unit,
    merged,
    pieces_of,
    sentences_of,
    settled,
    source,
    spread_denied,
    spread_predicates,
    spread_role,
    told,
    unit_of,
)
from lumen_hpc.language.words import Tag, tags


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
    counts: frozenset[str]
    """Number words."""
    lead: str
    """yes or no, where the text opens with it; else empty."""
    foretold: bool
    """Every sentence about a finding speaks of the future."""
    expectation: bool
    """Some word of expectation, possibility or doubt is there."""
    later_image: bool
    """The later image is spoken of."""
    problems: tuple[str, ...]


@lru_cache(maxsize=1 << 14)
def read(text: str, kind: str, names: tuple[str, ...] = ()) -> Facts:
    """What a text says, as an answer to a question of this type.

    The type decides between the readings of a few words: `appears small` is no change in a diagnostic answer, and
    `now` is the reference image's time in a prediction. `names`: findings beyond the vocabulary.
    """
    found = settled(tags(text, names), kind)
    lead = ""
    if found and (found[0].kind == "yes" or (found[0].value == "no" and len(found) > 1 and found[1].kind in _ENDS)):
        lead = found[0].value
        found = found[2:] if len(found) > 1 and found[1].kind in _ENDS else found[1:]
    reading = _Reading(kind)
    for sentence in sentences_of(found):
        reading.add(sentence)
    return reading.facts(found, lead)


SIDES = "it says both that a finding is on both sides and that it is on one"
_CONFUSED = "it confuses the two images"
_OPEN = "it leaves open which of several things it means"
_ALL = ("neither", "none", "both", "all", "both of which", "these", "they", "their")


def _of_all(piece: list[Tag]) -> bool:
    """Whether a piece without a finding speaks of all findings before it, as in `which were not seen before`."""
    values = [tag.value for tag in piece]
    plural = "which" in values[:1] and {"are", "were", "have"} & set(values[1:2])
    return bool(plural) or values[0] in _ALL or values[-1] in _ALL[:2] or "neither" in values


_UNLIKE = {"stated": "new", "absent": "gone"}
"""What a statement about the main image says of the change where it is `unlike the reference image`."""
_ENDS = ("comma", "stop")
_PRONOUNS = ("it", "its", "this", "these", "they", "their", "both of which", "which", "both", "neither", "none", "all")


class _Reading:
    """Gathers what the sentences of one text say."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.changing = kind in ("difference", "prediction")
        self.sentences: list[list[Unit]] = []
        self.findings: dict[str, State] = {}
        self.views: dict[str, bool] = {}
        self.denied: list[Tag] = []
        self.kept: list[Tag] = []
        self.problems: list[str] = []
        self.foretold = True

    def add(self, sentence: list[Tag]) -> None:
        """Cuts one sentence into units, and gives pieces without a finding to the unit they speak of."""
        negation = itertools.accumulate((tag.kind == "no" or tag.value.startswith("no ") for tag in sentence), max)
        if any(tag.kind == "or" and not denied for tag, denied in zip(sentence, negation, strict=True)):
            self.problems.append(_OPEN)
        lead: list[Tag] = []
        units: list[Unit] = []
        of_all = False
        for joined, piece in pieces_of(sentence):
            kinds = {tag.kind for tag in piece}
            if "view" in kinds and "finding" not in kinds:
                self._view(piece)
                continue
            if "no" in kinds and kinds & {"side", "place"} and kinds <= {"no", "filler", *LOCAL} and units:
                self.denied += piece
                continue
            self.kept += [Tag(joined[-1], ""), *piece]
            names = dict.fromkeys(tag.value for tag in piece if tag.kind == "finding")
            if "normal" in kinds and names:
                self.problems.append("it calls something normal beside a finding")
            if len(names) > 1:
                self.problems.append("two findings stand side by side without a word between that sets them apart")
            if names or "any" in kinds or "normal" in kinds:
                units.append(unit_of(next(iter(names), ANY), joined, lead, piece))
                lead = []
            elif units:
                of_all = _of_all(piece) or (of_all and joined == ["comma"])
                told(units, [Tag(joined[-1], ""), *piece], of_all)
            elif self.sentences and piece[0].value in _PRONOUNS:
                told(self.sentences[-1], [Tag("stop", ""), *lead, *piece], _of_all(piece))
                lead = []
            elif [tag.kind for tag in piece] == ["reference"]:
                lead.append(Tag("reference", "reference image"))
            else:
                lead += piece
        if not units and any(tag.kind in CUES for tag in lead):
            units.append(Unit(ANY, ["stop"], lead))
        if units:
            spread_role(units)
            self.sentences.append(units)
            future = next((i for i, tag in enumerate(sentence) if tag.kind == "future"), None)
            perfect = any(
                tag.value in ("has", "have") and following.kind in CHANGES
                for tag, following in itertools.pairwise(sentence[:future])
            )
            past = future is not None and sentence[future - 1 : future] and sentence[future - 1].kind == "past"
            self.foretold &= future is not None and not perfect and not past

    def _view(self, piece: list[Tag]) -> None:
        said = sum(tag.kind == "no" for tag in piece) % 2 == 0
        for tag in piece:
            if tag.kind == "view" and self.views.setdefault(tag.value, said) != said:
                self.problems.append(f"it says of the {tag.value} view both that it is and that it is not")

    def _states(self, units: list[Unit]) -> None:
        """Settles what one sentence says of its findings, in lists too."""
        for ahead, unit in itertools.pairwise(units):
            if "or" in unit.joined and unit.cues[1] and ahead.cues[1]:
                self.problems.append(_OPEN)
        spread_denied(units)
        self._spread_negation(units)
        spread_predicates(units)
        own = [None if unit.bare else self._state(unit) for unit in units]
        unlike = any(tag.kind == "unlike" for unit in units[:1] for tag in unit.before)
        for i, unit in enumerate(units):
            ahead, behind = source(units, i, -1), source(units, i, +1)
            state = own[i]
            if unit.bare:
                if i and "likewise" in unit.joined:
                    state = self.findings[units[i - 1].finding]
                else:
                    state = self._listed(
                        unit, units[i + 1 : i + 2], *(own[j] for j in (ahead, behind) if j is not None)
                    )
                state = replace(state, types=self._state(unit).types, levels=state.levels | self._state(unit).levels)
                if (unit.on_reference or unit.led_by_reference) and state.status in ("new", "gone"):
                    self.problems.append(_CONFUSED)
            elif ahead is not None and unit.inherits(own[ahead].status, units[ahead]):
                state = replace(state, status=own[ahead].status)
            if unlike or (len(units) == 1 and any(tag.kind == "unlike" for tag in unit.after)):
                if any(tag.kind == "reference" for tag in (*unit.before, *unit.after)):
                    self.problems.append(_CONFUSED)
                state = replace(state, status=_UNLIKE.get(state.status, state.status))
            state = replace(state, places=places([*unit.before, *unit.after]))
            if self.findings.setdefault(unit.finding, state) != state:
                self.problems.append(f"it says two things of {unit.finding}")

    def _listed(self, unit: Unit, following: list[Unit], *said: State) -> State:
        """The state that a list gives to a finding of which nothing else is said."""
        if not said:
            expected = self.kind == "prediction" and any(tag.kind == "future" for tag in unit.after)
            return State("new" if expected else "stated" if self.changing else "present")
        if len({state.status for state in said}) > 1:
            bound = [len(joined) == 1 and joined[0] != "comma" for joined in (unit.joined, following[0].joined)]
            if bound[0] == bound[1]:
                self.problems.append(f"{unit.finding} stands between two statements that differ")
            return said[0] if bound[0] else said[1]
        return said[0]

    def _spread_negation(self, units: list[Unit]) -> None:
        """`No a, b or c`: the no before a list holds for all of it, up to a predicate."""
        negated, now = False, []
        for unit in units:
            before, after = unit.cues
            negated &= not {"but", "stop"} & set(unit.joined)
            if negated and not before:
                if after and "or" not in unit.joined:
                    self.problems.append(f"it is unclear whether the no before {unit.finding} holds for it")
                unit.before[:0] = [Tag("no", "no"), *now]
                before = ["no"]
            if before:
                now = [tag for tag in unit.before if tag.kind == "main" and tag.value in NOW]
                negated = before == ["no"] or before == ["seen", "no"] or before == ["no", "seen"]
            negated &= not after

    def _state(self, unit: Unit) -> State:
        """What one unit says of its finding by itself."""
        sequence = [*unit.before, Tag("finding", unit.finding), *unit.after]
        sequence, readings, swapped = level_changes(sequence)
        if swapped:
            self.problems.append("it gives the levels of the two images the other way round")
        statements = [statement for statement in statements_of(sequence) if statement.predicate or statement.role]
        types = frozenset(tag.value for tag in sequence if tag.kind == "type")
        if any(statement.no > 1 for statement in statements) or unit.cues[0].count("no") > 1:
            self.problems.append("it denies a denial")
        if any(statement.no and (statement.levels or readings) for statement in statements) and self.changing:
            self.problems.append("it denies a level")
        status, levels = (self._changed if self.changing else self._present)(statements, readings)
        return State(status, levels, types)

    def _present(self, statements: list[Statement], readings: Levels) -> tuple[str, Levels]:
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

    def _changed(self, statements: list[Statement], readings: Levels) -> tuple[str, Levels]:
        events = {event for s in statements for event in s.said_events}
        told_there = [s for s in statements if s.role == "reference" and (s.lead or not readings)]
        changes = {"new", "gone"}
        if self.kind == "difference":
            changes |= {"up", "down", "not-new", "not-gone", *(["changed"] if readings else [])}
        if any(changes & set(s.said_events) for s in told_there):
            self.problems.append(_CONFUSED)
        there = {role: set() for role in ("reference", "main", "")}
        levels = {role: [] for role in ("reference", "main", "")}
        roles, ahead, foretold = any(s.role for s in statements), any(s.future for s in statements), False
        for s in statements:
            role = s.role or ("reference" if s.past and roles else "")
            foretold |= s.future
            if self.kind == "prediction" and not role and (s.future or not foretold):
                role = "main" if s.future else "reference" if s.states_presence and ahead else ""
            if s.states_presence:
                there[role].add(not s.no)
            if s.levels:
                levels[role if role or not any(t.role == "main" for t in statements) else "reference"] += s.levels
        readings, events = self._levels(levels, readings, events)
        status = self._event(events, there)
        if self.kind == "prediction" and status == "stated" and not there["reference"] and not readings:
            status = "new"  # a nodule is expected
        if not readings and not there["reference"] and any(s.now and s.states_presence for s in statements):
            status = {"stated": "new", "absent": "gone"}.get(status, status)
        return status, readings

    def _levels(self, levels: dict[str, list[str]], readings: Levels, events: set[str]) -> tuple[Levels, set[str]]:
        """Levels told one image at a time count as a change between them; direction words must agree with it."""
        if levels["reference"] and levels["main"]:
            readings |= {(" to ".join(levels["reference"]), " to ".join(levels["main"]))}
            levels = {"": levels[""]}
        stray = frozenset((level,) for told in levels.values() for level in told)
        if readings:
            for event, sign in (("up", 1), ("down", -1)):
                if event in events and all(rise(*reading) == -sign for reading in readings):
                    self.problems.append("its direction is not that of its levels")
            events = events - {"up", "down", "changed"} | {"level"}
        return readings | stray, events

    def _event(self, events: set[str], there: dict[str, set[bool]]) -> str:
        """The one event that fits all statements about a finding."""
        before, now = there["reference"], there["main"]
        if events == {"not-new", "not-gone"}:
            return "same"
        if len(before) > 1 or len(now) > 1 or len(events - {"changed"}) > 1:
            self.problems.append("it says two things of one finding")
        event = min(events - {"changed"}, default="changed" if events else "")
        confused = {"new": True in before or False in now, "gone": False in before or True in now}
        if confused.get(event):
            self.problems.append(_CONFUSED)
        if event:
            return event
        if before and now:
            return {(False, True): "new", (True, False): "gone", (True, True): "same"}.get(
                (min(before), min(now)), "absent"
            )
        everything = before | now | there[""]
        return "stated" if everything != {False} else "absent"

    def facts(self, found: list[Tag], lead: str) -> Facts:
        for units in merged(self.sentences):
            self._states(units)
        self._any()
        named = places(self.kept)
        denied = places(self.denied)
        if denied and (not named or denied & named):
            self.problems.append("it denies a place")
        if self.kind == "view" and any(tag.kind in ("reference", "side") for tag in found):
            self.problems.append("it speaks of more than the view of this image")
        if any(tag.kind == "backwards" for tag in found):
            self.problems.append("it compares the reference image with the main image, not the other way round")
        sides = {tag.value for tag in self.kept if tag.kind == "side"}
        if len(self.findings) == 1 and "both" in sides and len(sides) == 2:
            self.problems.append(SIDES)
        if True in self.views.values():
            self.views = {view: said for view, said in self.views.items() if said}
        kinds = {tag.kind for tag in found}
        return Facts(
            findings=self.findings,
            views=self.views,
            places=named,
            unknown=frozenset(tag.value for tag in found if tag.kind == "unknown"),
            numbers=frozenset(tag.value for tag in found if tag.kind == "number"),
            counts=frozenset(tag.value for tag in found if tag.kind == "count"),
            lead=lead,
            foretold=self.foretold and bool(self.sentences),
            expectation="future" in kinds,
            later_image=bool(kinds & {"main", "backwards"}),
            problems=tuple(dict.fromkeys(self.problems)),
        )

    def _any(self) -> None:
        """`The findings are …` adds nothing to the findings it announces."""
        said = self.findings.get(ANY)
        others = [state.status for name, state in self.findings.items() if name != ANY]
        if said and others and said.status in ("present", "changed", *others):
            del self.findings[ANY]
