"""What one clause says: of which findings, when, and what (the rows of grammar.yaml's `clauses`, by their rules)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from lumen_hpc.language.attributes import Levels, level_of, readings
from lumen_hpc.language.parsing import Clause, Phrase, Row, grammar, marked
from lumen_hpc.language.words import Word, canonical

ANY = "any finding"
"""An abnormality, whichever."""
CHANGING = ("difference", "prediction")
NOUNS = ("N", "Turn", "Any", "Change")
MODIFIERS = ("Mod", "Front")
VERBS = ("Did", "NotDid", "Done", "Having")
_LEVELS = {"Level": "", "Degree": "", "To": "now", "From": "then"}
"""Phrases of a level, with its time where they tell it."""


@dataclass(slots=True, eq=False)
class Finding:
    """What a phrase, its modifiers, or all clauses of a text say of one finding.

    A time is then (the reference image), now (the main image) or empty. The events are its changes: `new edema`. It is
    foretold where something is said of its future. The marks are `named`, not only implied by an adjective such as
    `abnormal`; and `witnessed` and `said-now` as in the table `comes`.
    """

    name: str
    phrase: Phrase = field(default_factory=Phrase)
    there: set[tuple[str, bool]] = field(default_factory=set)
    levels: list[tuple[str, str]] = field(default_factory=list)
    readings: Levels = frozenset()
    events: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    places: list[Phrase] = field(default_factory=list)
    foretold: bool = False
    marks: set[str] = field(default_factory=set)

    def marks_in(self, statement: Statement, name: str) -> set[str]:
        """What the table of marks asks of it, beside what a statement says, as one about the finding of a name."""
        given = {
            "own": self.events,
            "echoed": self.events & statement.events,
            "ill": name in statement.ills,
            "another": canonical(self.name) not in (ANY, canonical(name)),
            "promised": self.foretold,
            "item-any": self.name == ANY,
            "item-named": self.phrase.parts,
            "item.levels": self.levels,
            "item-denied": any(not there for _, there in self.there),
            "item-timed": len({time for time, _ in self.there}) > 1,
        }
        marks = {mark for mark, holds in given.items() if holds} | {f"own={event}" for event in self.events}
        marks.update(f"item.{part.kind}" for part in (self.phrase, *self.phrase.all("Loc", "Organ", "OnImg")))
        return marks.union(f"item.{role}" for word in self.phrase.words for role in word.roles)

    def add(self, statement: Statement, item: Finding) -> set[str]:
        """Adds what a statement says of one of its items; the marks that this comes to."""
        marks = marked("says", statement.marks | item.marks_in(statement, self.name) | self.marks)
        if "silent" in marks:
            return marks  # a heart alone is no cardiomegaly
        claims = {mark[3:] for mark in marks if mark.startswith("-> ")}
        time = "then" if "at-then" in marks else "now" if "at-now" in marks else ""
        untimed = time if marks & {":there", ":modifier"} else "then" if "?prediction" in marks else ""
        if (times := {when for when, _ in item.there}) in ({"then"}, {"now"}):
            (untimed,) = times  # `the mild edema of the reference image`
            time = time or untimed if ":level" in marks else time
        levels = [(when or time, level) for when, level in statement.levels]
        turned = statement.readings or any(when == "now" for when, _ in levels)  # a moderate effusion shrank to small
        self.marks |= marks & {"named", "another"} | item.marks & {"another"}
        self.foretold |= not marks.isdisjoint(("future", "promised"))
        self.types |= item.types | statement.types
        self.places += [*located(item.phrase), *item.places, *statement.places]
        self.readings |= item.readings | statement.readings
        self.there |= {(when or ("then" if "?prediction" in marks else untimed), there) for when, there in item.there}
        if "strange" not in marks:
            self.levels += [(when or untimed or "then" * bool(turned), level) for when, level in item.levels] + levels
        for claim in {"there", "not there"} & claims:
            self.there.add((time, claim == "there"))
            self.marks |= {"witnessed", *({"said-now"} if "now" in marks else ())}
            if "only" in marks and time:
                self.there.add(("now" if time == "then" else "then", claim != "there"))
        meant = {"own": item.events, "its": statement.events, "not own": {f"not-{event}" for event in item.events}}
        self.events |= set().union(*(meant.get(claim, {claim}) for claim in claims - {"there", "not there"}))
        self.events -= {"changed"} if self.events & {"new", "gone", "up", "down"} else set()
        return marks

    def modify(self, mod: Phrase) -> None:
        """Adds what a modifier says: `seen on the reference image`, `that was absent before but is seen now`."""
        apart = grammar().groups["joining"]
        flat = [it for part in mod.parts for it in (part.parts if part.kind == "Mod" else [part])]
        claims = [[*it] for joint, it in itertools.groupby(flat, lambda it: it.plays(*apart)) if not joint]
        for parts in claims:
            if parts is claims[-1] or any(part.kind != "word" or part.has("now", "then") for part in parts):
                statement = Statement(Clause(parts, says=_MODIFIER), "")
                for item in statement.items:
                    self.add(statement, item)


_MODIFIER = Row("modifier", frozenset(), "", frozenset())


def items_of(clause: Clause, subjects: Sequence[Finding] = ()) -> list[Finding]:
    """The findings of a clause in order, each with what holds for it by its place in a list; else the `subjects`."""
    parts = sorted(clause.parts, key=lambda part: part.kind == "Front")
    own = any(part.kind in NOUNS for part in parts)
    items = [] if own else [Finding(item.name, item.phrase) for item in subjects]
    head: Finding | None = None
    heirs: list[tuple[Finding, set[str]]] = []
    for i, part in enumerate(parts):
        if part.kind in MODIFIERS:
            single = any(word.text in ("is", "was", "has") for word in part.words) and not part.has("neither", "none")
            shared = not single and all(other.kind not in ("N", "Turn") for other in parts[i:])
            for item in items if shared else items[-1:]:
                item.modify(part)
        elif part.kind in NOUNS:
            item = _item(part)
            items.append(item)
            if part.kind != "Change" and (item.events or item.levels):
                head = item
            elif head and clause.start != 1 and (head.phrase.kind == "Turn" or "the" not in part.roles("det")):
                heirs.append((item, head.events))  # as the list's first, but for `besides new a, b`
    for item, events in heirs:
        item.events = item.events or events
    for item in items:
        item.events = {"unclear"} if len(item.events) > 1 else item.events
    named = [item for item in items if item.phrase.kind in ("N", "Turn")]
    for item, some in itertools.product(named, (item for item in items if item not in named)):  # new findings: a and b
        item.foretold |= some.foretold
        item.places += [*located(some.phrase), *some.places]
        item.there |= some.there
        # not: two new findings, edema and the resolution of pneumonia
        other = some.phrase.kind == "Any" and some.events and item.events - some.events
        if other or "unclear" in some.events or ("", False) in some.there or some.levels or some.types:
            item.events = {"unclear"}
    return named or items


def _item(phrase: Phrase) -> Finding:
    named = next((part for part in phrase.parts if part.kind == "N"), phrase)  # of a turn: resolution of edema
    change = {"changed"} if phrase.kind == "Change" else set()
    item = Finding(ANY, phrase, readings=readings(phrase.parts), events=change)
    time = ""
    for part in named.parts:
        if part.kind == "Organ" or part.plays("finding"):
            item.name = (part.roles("organ") or part.roles("finding"))[0]
        elif part.kind in ("Level", "Degree", "Rank"):
            item.levels.append((time, level_of(part)))
        elif part.plays("then", "now"):
            time = "then" if part.plays("then") else "now"
            item.there.add((time, True))
        elif part.plays("newadj", "oldadj", "residual"):
            item.events.add(min(part.roles("newadj") or ["same"]))
        elif part.kind == "Newly":
            item.events.add("new" if set(part.roles("done")) <= {"new"} else "unclear")
        elif part.plays("type"):
            item.types |= set(part.roles("type"))
    if named is not phrase:
        item.events.add((phrase.roles("noun") or phrase.roles("going"))[0])
    return item


def times_of(parts: Sequence[Phrase]) -> set[str]:
    """Which images phrases speak of: then (the reference image) or now (the main image)."""
    times: set[str] = set()
    for part in parts:
        if part.kind in ("Ref", "OnRef") or part.plays("then"):
            times.add("then")
        elif part.kind in ("Main", "OnMain") or part.plays("now"):
            times.add("now")
        elif part.kind not in (*NOUNS, *MODIFIERS, "Range", "From", "Unlike", "Review", "Comparison"):
            times |= times_of(part.parts)
    return times


class Statement:
    """What a clause says of its findings, in an answer to a type of question.

    Beside its marks, these are its image, places, types, levels as (time or empty, level), and events, the
    changes that its verb or adjective can stand for; the `ills` that an organ is by its adjective, as `enlarged`; its
    items, what a pronoun after it stands for, and the number words that are not those of its items.
    """

    def __init__(self, clause: Clause, kind: str, earlier: Statement | None = None) -> None:
        """`earlier`: that of the clause before it, also of another sentence."""
        before = earlier if clause.start else None
        others = [part for part in clause.parts if part.kind not in (*NOUNS, *MODIFIERS)]
        beside = [*clause.all(*grammar().groups["beside"])]
        times = times_of(others)
        self.time = "both" if len(times) > 1 else min(times, default="")
        self.readings = readings(others)
        self.places = located(Phrase(others))
        marks = {f":{clause.says.rule}", f"?{kind}"} | clause.says.marks | clause.unread
        marks |= {f"main={image}" for part in (clause, *beside) for image in part.roles("main")}
        for part in (*clause.parts, *beside):
            marks |= {part.kind, *(f"{part.kind}.{inner.kind}" for inner in part.parts)}
            marks.update(f"{part.kind}.{role}" for word in part.words for role in word.roles)
        events = self._events(others, clause, marks)
        self._name(clause, earlier.subjects if earlier else [], marks)
        self.events = events - {"become"}
        now = "now" if "become" in events else ""
        self.levels = [(_LEVELS[part.kind] or now, level_of(part)) for part in others if part.kind in _LEVELS]
        for name, other in (("before", before), ("earlier", earlier)):
            marks |= grammar().used & {f"{name}.{mark}" for mark in (other.marks if other else ())}
        if before and "same-image" in marks and not self.time:  # `shows a but no b`
            self.time = before.time
            marks |= {"Unlike"} & before.marks
        marks.update(f"first.{role}" for role in clause.parts[0].words[0].roles)
        marks.update(f"joint.{role}" for word in Phrase(clause.joint).words for role in word.roles)
        kinds = ["and" if part.plays("and", "or", "with") else part.kind for part in clause.parts]
        joined = " ".join(kind for kind in kinds if kind in ("and", "Any", "N"))
        given = {
            "joined": "Any and N" in joined or "N and Any" in joined,
            "after": before,
            "last": clause.last,
            "bare": all(
                part.kind in (*NOUNS, *MODIFIERS) or part.plays(*grammar().groups["joining"]) for part in clause.parts
            ),
            "has-pronoun": clause.has(*grammar().groups["pronouns"]),
            "ends": clause.parts[-1].kind in ("Be", "NotBe") and not beside,
            "readings": self.readings,
            "levels": self.levels,
            "placed": self.places,
            "ills": self.ills,
            f"@{self.time}": self.time,
        }
        marks |= {mark for mark, holds in given.items() if holds}
        marks |= {f"={event}" for event in events} | {f"=={'+'.join(sorted(self.events))}"}
        self.marks: set[str] = marked("marks", marks)
        if "one-level" in self.marks:
            self.levels.append(("", " to ".join(min(self.readings))))
            self.readings = frozenset()
        if kind == "abnormality" and self.marks & {"Any.only", "nothingbut"}:
            self.counts.add(str(len(self.items)))

    def _name(self, clause: Clause, before: Sequence[Finding], marks: set[str]) -> None:
        """Finds its items, of its own or those before it, and how many they are."""
        rule, pattern, chosen = clause.says.rule, clause.says.pattern, marks & {"former", "latter"}
        takes_up = pattern.startswith(("S ", "~"))
        taken_up = before if takes_up else []
        if chosen:
            taken_up = before[chosen == {"latter"} :][:1] if len(before) == 2 else []
        self.items: list[Finding] = items_of(clause, taken_up)
        marks |= {f"#{len(self.items)}", "taken-up" * (takes_up and marks.isdisjoint(NOUNS))}
        own = [part for part in clause.parts if part.kind in ("Any", "Number", "Change")]
        numbers = {number for part in own for number in part.roles("count") + part.roles("numeral")}
        self.counts = {number for part in clause.parts if part not in own for number in part.roles("count")}
        if not self.items or self.items[0].name == ANY:
            self.counts |= numbers
        elif not numbers | (self.counts if taken_up else set()) <= number_words(self.items):
            marks.add("it counts what it does not name")
        if not self.items and (rule == "unchanged" or not pattern.startswith("S")):
            self.items = [Finding(ANY, Phrase((), "Any"))]
        if not self.items or ("other" in marks and not before):
            marks.add("it has no subject")
        for i, item in enumerate(self.items if rule in ("follows", "supplants") else ()):
            item.events = {"new" if (i == 0) == (rule == "supplants") else "gone"}
        self.subjects = before if chosen else self.items

    def _events(self, others: Sequence[Phrase], clause: Clause, marks: set[str]) -> set[str]:
        """Adds the roles that its words play to its marks; the changes that they tell."""
        spoken = [part for part in others if part.kind not in ("Range", "Header", "Review", *_LEVELS)]
        played = [(part.kind, _played(word, part, clause.says)) for part in spoken for word in part.words]
        marks.update(role for _, roles in played for role in roles)
        marks |= {"visible"} if any(roles.get("seen") == "seen" for _, roles in played) else set()
        self.types = {roles["type"] for _, roles in played if "type" in roles}
        ills = (roles.get("diseased", roles.get("ailment", "")) for _, roles in played)
        self.ills = {ill for several in ills for ill in several.split("/") if ill}
        telling = [roles for kind, roles in played if kind in ("word", *VERBS)]
        verbs = {roles[role] for roles in telling for role in grammar().groups["telling"] if role in roles}
        leveled = any(part.kind in ("Range", "To") for part in clause.parts)
        # `subside` and `go` tell a change of level where the level is named
        events = {it for verb in verbs for it in verb.split("/") if it and (it == verb or (it == "gone") != leveled)}
        ranges = Phrase([part for part in others if part.kind == "Range"])
        events |= {*ranges.roles("upadj"), *ranges.roles("downadj")}
        general = {event for part in clause.parts if part.kind == "Any" for event in _item(part).events}
        return events | (general if general <= events or not events else {"unclear"})


def number_words(findings: Collection) -> set[str]:
    """The words for how many they are."""
    return {str(len(findings)), "many" * (len(findings) > 1)}


def located(phrase: Phrase) -> list[Phrase]:
    """The places that a phrase names, without those that it denies."""
    return [place for place in phrase.all("Loc", "Place", "NotPlace") if place.kind != "NotPlace"]


def _played(word: Word, part: Phrase, row: Row) -> dict[str, str]:
    """The roles that a word plays in a clause: where it is no part of a phrase, those that the clause's row names."""
    groups = grammar().groups
    if part.kind in VERBS:
        normal = {"normal": word.text} if "normal" in word.text else {}
        return {role: value for role, value in word.roles.items() if role not in groups["no-verb"]} | normal
    if part.kind != "word":
        return word.roles
    named = {role: value for role, value in word.roles.items() if role in row.names or not row.names}
    alone = [role for role in groups["alone"] if role in named]
    return {role: named[role] for role in alone or named}
