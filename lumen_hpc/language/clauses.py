"""What one clause says: of which findings, when, and what (the rows of grammar.yaml's `clauses`, by their rules)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from lumen_hpc.language.attributes import Levels, level_of, readings
from lumen_hpc.language.parsing import Clause, Phrase, Row
from lumen_hpc.language.words import Word

ANY = "any finding"
"""An abnormality, whichever."""
CHANGING = ("difference", "prediction")
NOUNS = ("N", "Turn", "Any", "Change")
MODIFIERS = ("Mod", "Front")
VERBS = ("Did", "NotDid", "Done")
ADJECTIVES = {"newadj": "new", "sameadj": "same", "difadj": "changed", "upadj": "up", "downadj": "down"}


@dataclass(slots=True)
class Item:
    """A finding where a clause names it, with what its own phrase says of it; times are then, now and "" (none)."""

    name: str
    phrase: Phrase
    event: str = ""
    """The change that its phrase tells: `new edema`, `resolution of edema`."""
    there: dict[str, bool] = field(default_factory=dict)
    levels: dict[str, list[str]] = field(default_factory=dict)
    readings: Levels = frozenset()
    types: frozenset[str] = frozenset()
    foretold: bool = False
    """Its phrase says something of the future."""
    places: list[Phrase] = field(default_factory=list)
    """The places that its modifiers name."""
    organ: bool = False
    """It is written as an organ, which is no finding until the clause says what the organ is."""
    diseased: bool = False
    """Its modifiers say what the organ is."""

    def change(self, event: str) -> None:
        """Adds a change that its phrase tells; two that differ are unclear."""
        self.event = event if self.event in ("", event) else "unclear"


def apart(clause: Clause) -> Clause:
    """A clause whose last words name the one image that it speaks of: `there was no edema in the reference image`."""
    *others, last = clause.parts
    bare = (
        last.kind == "Mod"
        and len(last.parts) == 1
        and last.parts[0].kind in ("OnRef", "OnMain")
        and last.parts[0].roles("in")
    )
    turns = any(part.kind == "Turn" for part in others)
    if clause.row.rule not in ("there", "absent", "gone", "unchanged") or turns or not bare:
        return clause
    return clause if time_of(others) else replace(clause, parts=[*others, *last.parts])


def items_of(clause: Clause, subjects: Sequence[Item] = (), opened: bool = False) -> list[Item]:
    """The findings of a clause in order, each with what holds for it by its place in a list; else the `subjects`.

    Its first may be new alone where the clause is `opened` by a word such as `besides`.
    """
    own = any(part.kind in NOUNS for part in clause.parts)
    items = [] if own else [Item(item.name, item.phrase) for item in subjects]
    head: Item | None = None
    neither = any(part.roles("neither") for part in clause.parts)
    fronts = [part for part in clause.parts if part.kind == "Front"]
    for i, part in enumerate([*(part for part in clause.parts if part.kind != "Front"), *fronts]):
        if part.kind == "Front":
            for item in items:
                _modify(item, part)
        elif part.kind == "Mod":
            texts = {word.text for word in part.leaves()}
            plural = not {"is", "was"} & texts or bool({"neither", "none"} & texts) or neither
            last = all(other.kind not in ("N", "Turn") for other in clause.parts[i:])
            for item in items if plural and last else items[-1:]:
                _modify(item, part)
        elif part.kind in NOUNS:
            items.append(_item(part))
            if part.kind != "Change" and (items[-1].event or items[-1].there or items[-1].levels):
                head = items[-1]
            elif (
                head is not None
                and not opened
                and (head.phrase.kind == "Turn" or "the" not in {word.text for word in part.leaves()})
            ):
                items[-1].event = head.event  # it says nothing of its own: what the list's first is, it is too
        elif part.roles("no"):
            head = None
    general = [item for item in items if item.phrase.kind not in ("N", "Turn")]
    items = [item for item in items if item not in general] or items
    for some in general if items != general else ():
        for item in items:
            item.foretold |= some.foretold
        unclear = some.event == "unclear" or some.there.get("") is False or some.levels or some.types
        events = ["unclear" if unclear else item.event for item in items]
        items = [replace(i, event=event, there=some.there | i.there) for i, event in zip(items, events, strict=True)]
    return items


def _item(phrase: Phrase) -> Item:
    if phrase.kind == "Turn":
        item = _item(next(part for part in phrase.parts if part.kind == "N"))
        item.phrase = phrase
        item.readings = frozenset().union(*(readings(part) for part in phrase.parts if part.kind == "Range"))
        item.change(phrase.roles("noun")[0])
        return item
    item = Item(ANY, phrase, "changed" if phrase.kind == "Change" else "")
    time = ""
    for part in phrase.parts:
        roles = part.word.roles if part.word is not None else {}
        if part.kind == "Organ" or "finding" in roles:
            item.name, item.organ = (part.roles("organ") or part.roles("finding"))[0], part.kind == "Organ"
        elif part.kind in ("Level", "Degree", "Rank"):
            item.levels.setdefault(time, []).append(level_of(part))
        elif "then" in roles or "now" in roles:
            time = "then" if "then" in roles else "now"
            item.there[time] = True
        elif "newadj" in roles or "oldadj" in roles:
            item.change("new" if "newadj" in roles else "same")
        elif part.kind == "Newly":
            item.change("new" if set(part.roles("done")) <= {"new"} else "unclear")
        elif "type" in roles:
            item.types |= {roles["type"]}
    return item


def _modify(item: Item, mod: Phrase) -> None:
    """`Seen on the reference image`, `previously mild`, `that was absent before but is seen now`."""
    item.places += [place for place in Phrase("", "", [mod]).all("Loc", "Place")]
    claim: list[Phrase] = []
    for part in [*mod.parts, None]:
        if part is not None and not (part.word and part.word.roles.keys() & {"and", "but", "comma"}):
            claim.append(part)
        elif any(other.word is None or _DATES & other.word.roles.keys() for other in claim) or (part is None and claim):
            _claim(item, claim)
            claim = []


_DATES = {"now", "then"}


def _claim(item: Item, parts: Sequence[Phrase]) -> None:
    """One claim of a modifier: of an image, a level or that the finding is there."""
    whole = Phrase("", "", parts)
    item.diseased |= any("diseased" in word.roles or "normal" in word.roles for word in whole.leaves())
    past = any(whole.roles(role) for role in (*PAST, "having"))
    shown = any(part.kind == "Img" for part in parts)  # … that this image does not show
    time = time_of(parts) or ("then" if past else "shown" if shown else "")
    if any(whole.roles(role) for role in FUTURE):
        item.foretold = True
        time = "both" if time == "then" else "now"
    if time == "both":
        time, item.event = "", "unclear"
    levels = [level_of(part) for part in parts if part.kind == "Level"]
    for other in (_item(part) for part in parts if part.kind == "N"):
        levels += other.levels.get("", []) if other.name == item.name else ["another finding"]
    if not levels and any(part.kind == "N" for part in parts):
        return  # cardiomegaly, or enlargement of the heart
    general = [_item(part).event for part in parts if part.kind == "Any"]
    rest = Phrase("", "", [part for part in parts if part.kind != "Any"])
    negations = sum(bool(_NEGATIONS & word.roles.keys()) for word in rest.leaves())
    if general:
        stated = bool(time or negations or rest.roles("seen"))
        if general[0] or _item(next(part for part in parts if part.kind == "Any")).levels:
            item.change(general[0] or "unclear")  # …, which is a new finding
        if not stated:
            return
    if any(part.word is not None and part.roles(role) for part in parts for role in ("newadj", "newly")):
        item.change("new")
        if not time:
            return
    denied = negations > 0
    if levels and not denied:
        item.levels.setdefault(time, []).extend(levels)
        return
    organ = item.organ or not whole.roles("diseased")  # edema of the left base, which is blunted
    if levels or negations > 1 or item.there.get(time, not denied) == denied or not organ:
        item.event = "unclear"
    else:
        item.there[time] = not denied
        if rest.roles("only") and time:
            item.there["now" if time == "then" else "then"] = denied


PAST = {"saw", "usedto", "couldbe", "was", "had", "did", "couldnot"}
_NEGATIONS = {"not", "couldnot", "neither", "none", "nolonger", "normal", "absent", "lacks", "fails"}


def time_of(parts: Sequence[Phrase]) -> str:
    """Which image phrases speak of: then (the reference image), now (the main image), or neither."""
    times = set(_times(parts))
    return "both" if len(times) > 1 else min(times, default="")


def _times(parts: Sequence[Phrase]) -> Iterator[str]:
    for part in parts:
        roles = part.word.roles if part.word is not None else {}
        if part.kind in ("Ref", "OnRef") or "then" in roles:
            yield "then"
        elif part.kind in ("Main", "OnMain") or "now" in roles:
            yield "now"
        elif part.kind not in (*NOUNS, *MODIFIERS, "Range", "From", "Unlike", "Review"):
            yield from _times(part.parts)


FUTURE = {"modal", "expected", "bound", "unlikely", "foresee", "forecast", "likely"}
LEVELS = ("Level", "Degree", "To", "From")


@dataclass(slots=True)
class Predicate:
    """What a clause says of the findings it names."""

    row: Row
    roles: dict[str, list[str]]
    """What its words stand for, by the roles they play in it; those of levels apart."""
    time: str
    future: bool
    past: bool
    events: set[str]
    """The changes that its verb or adjective can stand for."""
    become: bool
    readings: Levels
    levels: dict[str, str]
    """The levels it names, by the kind of their phrase."""
    places: list[Phrase]
    unlike: bool
    against: bool
    """It holds one image against another."""
    dated: bool
    """Its levels are those of two images."""
    alike: bool
    """It says that something is as on another image."""
    exclusive: bool
    """It says that there is nothing else."""
    broken: bool
    """Nothing follows its `is`: no place, no time, no image."""

    def has(self, *roles: str) -> bool:
        """Whether one of its words plays one of these roles."""
        return any(role in self.roles for role in roles)


def predicate_of(clause: Clause) -> Predicate:
    """What a clause says beside the findings it names."""
    others = [part for part in clause.parts if part.kind not in NOUNS and part.kind not in MODIFIERS]
    ranges = [readings(part) for part in others if part.kind == "Range"]
    levels = {part.kind: level_of(part) for part in others if part.kind in LEVELS}
    roles: dict[str, list[str]] = {"Change": []} if any(part.kind == "Change" for part in clause.parts) else {}
    verbs: list[str] = []
    general = {_item(part).event for part in clause.parts if part.kind == "Any"} - {""}
    for part in others:
        for word in part.leaves() if part.kind not in ("Range", "Header", "Review", *LEVELS) else ():
            played = _played(word, part, clause.row)
            for role, value in played.items():
                roles.setdefault(role, []).append(value)
            if part.kind in VERBS or part.word is not None:
                verbs += [played[form] for form in ("third", "done", "base", "going") if form in played]
                verbs += [event for role, event in ADJECTIVES.items() if role in played and part.word is not None]
    events = {event for verb in verbs if verb for event in _meant(verb.split("/"), bool(ranges) or "To" in levels)}
    general -= {"same"} if events == {"gone"} else set()  # no existing findings have resolved
    events |= {
        event for part in others if part.kind == "Range" for event in ("up", "down") if part.roles(f"{event}adj")
    }
    events |= general if general <= events or not events else {"unclear"}
    headings = [part for part in clause.parts if part.kind in ("Header", "Change")]
    likely = any(part.roles("likely") for part in clause.parts) or any(
        p.roles(role) for p in headings for role in FUTURE
    )
    beside = [a for part in clause.parts for a in part.all("Place", "OnImg", "Comp")]
    judged = {"wrong", "so"} & roles.keys()  # it would be wrong to say that …
    return Predicate(
        row=clause.row,
        roles=roles,
        time=time_of(others),
        future=(bool(roles.keys() & FUTURE) or likely) and not (judged and roles.get("modal") == ["would"]),
        past=bool(PAST & roles.keys())
        or any(
            (part.kind == "Shows" and part.roles("showed")) or (part.word is not None and part.roles("appeared"))
            for part in others
        ),
        events=events - {"become"},
        become="become" in events,
        readings=frozenset().union(*ranges),
        levels=levels,
        places=[p for p in Phrase("", "", others).all("Loc", "Place", "NotPlace") if p.kind != "NotPlace"],
        against=any(
            part.kind == "Unlike" or part.roles("compared") or part.roles("comparing") for part in others + beside
        ),
        unlike=any(part.kind == "Unlike" for part in others),
        dated=any(
            part.roles(time) for part in others if part.kind == "Range" for time in ("ref", "main", "then", "now")
        ),
        alike=any(adjunct.roles("as") for adjunct in beside),
        exclusive="nothingbut" in roles or any(part.roles("only") for part in clause.parts if part.kind == "Any"),
        broken=clause.parts[-1].kind in ("Be", "NotBe")
        and not (clause.parts[-1].adjuncts or beside or time_of(others)),
    )


def _played(word: Word, part: Phrase, row: Row) -> dict[str, str]:
    """The roles that a word plays in a clause: where it is no part of a phrase, those that the clause's row names."""
    if part.kind in VERBS:
        normal = {"normal": word.text} if "normal" in word.text else {}
        return {role: value for role, value in word.roles.items() if role != "diseased"} | normal
    if part.word is None:
        return word.roles
    named = {role: value for role, value in word.roles.items() if role in row.names}
    return {"diseased": named["diseased"]} if "diseased" in named else named


def _meant(events: list[str], level_named: bool) -> list[str]:
    """What one verb can stand for here: `subside` and `go` tell a change of level where the level is named."""
    return [event for event in events if len(events) < 2 or (event == "gone") != level_named]
