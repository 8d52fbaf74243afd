"""What one clause says: of which findings, when, and what (the rows of grammar.yaml's `clauses`, by their rules)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from lumen_hpc.language.levels import Levels, level_of, readings
from lumen_hpc.language.parsing import Clause, Phrase

ANY = "any finding"
"""An abnormality, whichever."""
CHANGING = ("difference", "prediction")
NOUNS = ("N", "Turn", "Any", "Change")
VERBS = ("Did", "NotDid", "Done")
ADJECTIVES = {"newadj": "new", "sameadj": "same", "difadj": "changed", "upadj": "up", "downadj": "down"}


@dataclass(slots=True)
class Item:
    """A finding where a clause names it, with what its own phrase says of it; times are then, now and "" (untold)."""

    name: str
    phrase: Phrase
    event: str = ""
    """The change that its phrase tells: `new edema`, `resolution of edema`."""
    there: dict[str, bool] = field(default_factory=dict)
    levels: dict[str, list[str]] = field(default_factory=dict)
    readings: Levels = frozenset()
    types: frozenset[str] = frozenset()
    bare: bool = True
    """Its phrase says nothing of its own, so what is said of the head of its list may hold for it."""
    taken_up: bool = False
    """It is the subject of the clause before."""
    organ: bool = False
    """It is told as an organ, which is no finding until the clause says what the organ is."""


def items_of(clause: Clause, subjects: Sequence[Item] = ()) -> list[Item]:
    """The findings that a clause speaks of, in order, each with what holds for it by its place in a list.

    `subjects`: those of the clause before, which a clause without its own takes up.
    """
    own = any(part.kind in NOUNS for part in clause.parts)
    items = [] if own else [Item(item.name, item.phrase, taken_up=True) for item in subjects]
    head: Item | None = None
    for i, part in enumerate(clause.parts):
        if part.kind == "Mod":
            texts = {word.text for word in part.leaves()}
            plural = not {"is", "was"} & texts or bool({"neither", "none"} & texts)
            last = all(other.kind not in ("N", "Turn") for other in clause.parts[i:])
            for item in items if plural and last else items[-1:]:
                _modify(item, part)
        elif part.kind in NOUNS:
            item = _item(part)
            items.append(item)
            if not item.bare:
                head = item
            elif head is not None and head.event and (head.phrase.kind == "Turn" or not _definite(part)):
                item.event = head.event
        elif "no" in clause.parts[i].roles("no"):
            head = None
    if any(item.phrase.kind in ("N", "Turn") for item in items):
        unclear = any(
            item.phrase.kind == "Any" and (item.event == "unclear" or False in item.there.values()) for item in items
        )
        items = [item for item in items if item.phrase.kind in ("N", "Turn")]
        for item in items if unclear else ():
            item.event = "unclear"
    return items


def _definite(phrase: Phrase) -> bool:
    return any(word.text == "the" for word in phrase.leaves())


def _item(phrase: Phrase) -> Item:
    item = Item(ANY, phrase)
    if phrase.kind == "Change":
        item.event = "changed"
    elif phrase.kind == "Turn":
        item = _item(next(part for part in phrase.parts if part.kind == "N"))
        event = phrase.roles("noun")[0]
        ranges = [readings(part) for part in phrase.parts if part.kind == "Range"]
        return replace(
            item,
            phrase=phrase,
            event=event if item.event in ("", event) else "unclear",
            readings=frozenset().union(*ranges),
            bare=False,
        )
    time = ""
    for part in phrase.parts:
        roles = part.word.roles if part.word is not None else {}
        if part.kind == "Organ" or "finding" in roles:
            item.name, item.organ = (part.roles("organ") or part.roles("finding"))[0], part.kind == "Organ"
        elif part.kind in ("Level", "Degree", "Rank"):
            item.levels.setdefault(time, []).append(level_of(part))
            item.bare = False
        elif "then" in roles or "now" in roles:
            time = "then" if "then" in roles else "now"
            item.there[time] = True
            item.bare = False
        elif "newadj" in roles or "oldadj" in roles:
            item.event = "new" if "newadj" in roles else "same"
            item.bare = False
        elif "type" in roles:
            item.types |= {roles["type"]}
    return item


def _modify(item: Item, mod: Phrase) -> None:
    """`Seen on the reference image`, `previously mild`, `neither of which was present before`."""
    time = time_of(mod.parts) or ("then" if mod.roles("was") else "")
    if time == "both":
        time, item.event = "", "unclear"
    levels = [level_of(part) for part in mod.parts if part.kind == "Level"]
    if general := [_item(part).event for part in mod.parts if part.kind == "Any"]:
        item.event = general[0] or "unclear"  # …, which is a new finding
        return
    negations = sum(bool(mod.roles(role)) for role in ("not", "neither", "none", "nolonger"))
    negations += bool(mod.roles("normal")) + any(part.kind == "Absent" for part in mod.parts)
    denied = negations > 0
    if levels and not denied:
        item.levels.setdefault(time, []).extend(levels)
    elif levels or negations > 1 or item.there.get(time, not denied) == denied:
        item.event = "unclear"
    else:
        item.there[time] = not denied
    item.bare = False


def time_of(parts: Sequence[Phrase]) -> str:
    """Which image phrases speak of: then (the reference image), now (the main image), or neither."""
    times = dict.fromkeys(_times(parts))
    return next(iter(times), "") if len(times) < 2 else "both"


def _times(parts: Sequence[Phrase]) -> Iterator[str]:
    for part in parts:
        if part.kind in NOUNS or part.kind in ("Mod", "Range", "Unlike"):
            continue
        if part.kind in ("Ref", "OnRef"):
            yield "then"
        elif part.kind in ("Main", "OnMain"):
            yield "now"
        elif part.word is not None and ({"then", "now"} & part.word.roles.keys()):
            yield "then" if "then" in part.word.roles else "now"
        else:
            yield from _times(part.parts)


@dataclass(slots=True)
class Predicate:
    """What a clause says of the findings it names."""

    rule: str
    row: str
    time: str
    future: bool
    past: bool
    events: frozenset[str]
    """The changes that its verb or adjective can stand for."""
    become: bool
    readings: Levels
    to: str
    before: str
    levels: list[str]
    types: frozenset[str]
    seen: bool
    diseased: bool
    normal: bool
    newly: bool
    still: bool
    present: bool
    """It says that this is so now: `there is now a …`."""
    unlike: bool
    missing: bool
    sure: bool
    """It says how plainly or fully, which weakens a denial: `not clearly seen`."""
    adjective: bool
    lasting: bool
    """It speaks of what is so over time: `remains`, `still`, `now`, `has been`."""
    empty: bool
    """Nothing follows its `is`: no place, no time, no image."""
    places: list[Phrase]


_FORMS = {"third": ("third",), "done": ("done", "turned"), "base": ("base",)}
"""Forms of verbs that are words of their own in a clause, where its row has them."""
FUTURE = ("modal", "expected", "bound", "unlikely", "foresee", "forecast", "likely")


def predicate_of(clause: Clause) -> Predicate:
    """What a clause says beside the findings it names."""
    others = [part for part in clause.parts if part.kind not in NOUNS and part.kind != "Mod"]
    roles: dict[str, list[str]] = {}
    for part in others:
        if part.kind in ("Level", "To", "From", "Range", "Degree"):
            continue
        for word in part.leaves():
            for role, value in word.roles.items():
                if role != "diseased" or part.kind not in VERBS:
                    roles.setdefault(role, []).append(value)
    verbs = [
        v for part in others if part.kind in ("Did", "NotDid", "Done") for r in ("done", "base") for v in part.roles(r)
    ]
    played = [form for form, rows in _FORMS.items() if any(row in clause.row for row in rows)]
    bare = [part for part in others if part.word is not None and "diseased" not in part.word.roles]
    verbs += [verb for part in bare for form in played for verb in part.roles(form)]
    verbs += [v for role, v in ADJECTIVES.items() if any(p.word and role in p.word.roles for p in others)]
    verbs += [_item(part).event for part in clause.parts if part.kind == "Any"]
    events = {event for verb in verbs if verb for event in verb.split("/")}
    level = {part.kind: level_of(part) for part in others if part.kind in ("Level", "To", "From", "Degree")}
    return Predicate(
        rule=clause.rule,
        row=clause.row,
        time=time_of(others),
        future=any(role in roles for role in FUTURE) and not {"wrong", "so"} & roles.keys(),
        past=bool({"was", "had", "did"} & roles.keys()) or any(p.kind == "Shows" and p.roles("showed") for p in others),
        events=frozenset(events - {"become"}),
        become="become" in events,
        readings=frozenset().union(*(readings(part) for part in others if part.kind == "Range")),
        to=level.get("To", ""),
        before=level.get("From", ""),
        levels=[level[kind] for kind in ("Level", "Degree") if kind in level],
        types=frozenset(roles.get("type", ())),
        seen="seen" in roles,
        diseased="diseased" in roles,
        normal="normal" in roles
        or any("normal" in w.text for p in others if p.kind in ("Did", "Done") for w in p.leaves()),
        newly=any(
            p.roles("newly") for p in others if p.kind in ("Be", "Did", "Done", "Shows") or "newly" in clause.row
        ),
        still="still" in roles,
        present="now" in roles,
        unlike=any(part.kind == "Unlike" for part in others),
        missing="lacks" in roles,
        lasting=bool({"stay", "remained", "staybase", "still", "now", "then", "newly"} & roles.keys())
        or ("been" in roles and clause.row.startswith("there")),
        empty=all(part.kind in ("Be", "NotBe") and not part.adjuncts for part in others)
        and not any(adjunct for part in clause.parts for adjunct in part.all("Place", "OnImg", "Comp")),
        sure=bool({"clearly", "completely"} & roles.keys()),
        adjective=bool(ADJECTIVES.keys() & roles.keys()),
        places=[p for p in Phrase("", "", others).all("Loc", "Place", "NotPlace") if p.kind != "NotPlace"],
    )
