"""The statement of one clause: what it says of which findings at which time, by the rule of its row in grammar.yaml."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from lumen_hpc.language.attributes import Levels, level_of, level_ranges
from lumen_hpc.language.parsing import Clause, Phrase, Row, derive_marks, grammar
from lumen_hpc.language.words import Word, canonical_name, vocabulary

ANY = "any finding"
"""The name of an abnormality that the text does not name."""
CHANGING = ("difference", "prediction")
NOUNS = ("N", "Turn", "Any", "Change")
MODIFIERS = ("Mod", "Front")
VERBS = ("Did", "NotDid", "Done", "Having")
_INVERSE = {"up": "down", "down": "up"}
_LEVELS = {"Level": "", "Degree": "", "To": "now", "From": "then"}
"""Phrases of a level → its time, where they tell it."""


@dataclass(slots=True, eq=False)
class Finding:
    """What a phrase, its modifiers, or all clauses of a text say of one finding.

    A time is then (the reference image), now (the main image) or empty. The presence holds (time, whether it is there).
    The `denied_places` are those of clauses that deny it. The events are its changes: `new edema`. It is predicted if
    the text speaks of its future. The marks are `explicit` (named, not only implied by an adjective such as
    `abnormal`), and those of the table `comes`.
    """

    name: str
    phrase: Phrase = field(default_factory=Phrase)
    presence: set[tuple[str, bool]] = field(default_factory=set)
    levels: list[tuple[str, str]] = field(default_factory=list)
    ranges: Levels = frozenset()
    events: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    places: list[Phrase] = field(default_factory=list)
    denied_places: list[Phrase] = field(default_factory=list)
    predicted: bool = False
    marks: set[str] = field(default_factory=set)

    def marks_in(self, statement: Statement, name: str) -> set[str]:
        """Its marks for the table `says`, as an item of a statement about the finding `name`."""
        conditions = {
            "own": self.events,
            "shared-event": self.events & statement.events,
            "its-disorder": name in statement.disorders,
            "another": canonical_name(self.name) not in (ANY, canonical_name(name)),
            "item-predicted": self.predicted,
            "item-any": self.name == ANY,
            "item-named": self.phrase.parts,
            "item.levels": self.levels,
            "item-denied": any(not there for _, there in self.presence),
            "item-dated": len({time for time, _ in self.presence}) > 1,
            "item-past": self.presence == {("then", True)},
        }
        marks = {mark for mark, holds in conditions.items() if holds} | {f"own={event}" for event in self.events}
        marks.update(f"item.{part.kind}" for part in (self.phrase, *self.phrase.all("Loc", "Organ", "OnImg")))
        return marks.union(f"item.{role}" for word in self.phrase.words for role in word.roles)

    def add(self, statement: Statement, item: Finding) -> set[str]:
        """Adds what a statement says of one of its items; returns the marks of that."""
        marks = derive_marks("says", statement.marks | item.marks_in(statement, self.name) | self.marks)
        if "says-nothing" in marks:
            return marks  # a heart alone is no cardiomegaly
        claims = {mark[3:] for mark in marks if mark.startswith("-> ")}
        time = "then" if "at-then" in marks else "now" if "at-now" in marks else ""
        default_time = time if marks & {":present", ":modifier"} else "then" if "?prediction" in marks else ""
        if (own_times := {when for when, _ in item.presence}) in ({"then"}, {"now"}):
            (default_time,) = own_times  # `the mild edema of the reference image`
            time = time or default_time if ":level" in marks else time
        levels = [(when or time, level) for when, level in statement.levels]
        has_range = statement.ranges or any(when == "now" for when, _ in levels)  # a moderate effusion shrank to small
        self.marks |= marks & {"explicit", "another"} | item.marks & {"another"}
        self.predicted |= not marks.isdisjoint(("future", "item-predicted"))
        self.types |= item.types | statement.types
        own_places = [] if "inherits-subject" in marks else affirmed_places(item.phrase)
        places = [*own_places, *item.places, *statement.places]
        self.denied_places += [*item.denied_places, *(places if "absent" in claims else [])]
        self.places += places if "absent" not in claims else []
        self.ranges |= item.ranges | statement.ranges
        self.presence |= {
            (when or ("then" if "?prediction" in marks else default_time), there) for when, there in item.presence
        }
        if "unreadable-modifier" not in marks:
            self.levels += [
                (when or default_time or "then" * bool(has_range), level) for when, level in item.levels
            ] + levels
        for claim in {"present", "absent"} & claims:
            self.presence.add((time, claim == "present"))
            self.marks |= {"asserted", *({"explicit-now"} if "now" in marks else ())}
            if "only" in marks and time:
                self.presence.add(("now" if time == "then" else "then", claim != "present"))
        events_by_claim = {
            "own": item.events,
            "its": statement.events,
            "not own": {f"not-{event}" for event in item.events},
        }
        events = set().union(*(events_by_claim.get(claim, {claim}) for claim in claims - {"present", "absent"}))
        inverse = "item.Organ" in marks and self.name in vocabulary()["inverse"]
        self.events |= {_INVERSE.get(event, event) for event in events} if inverse else events
        self.events -= {"changed"} if self.events & {"new", "resolved", "up", "down"} else set()
        return marks

    def modify(self, modifier: Phrase) -> None:
        """Adds what a modifier says: `seen on the reference image`, `that was absent before but is seen now`."""
        separators = grammar().groups["joining"]
        flat_parts = [it for part in modifier.parts for it in (part.parts if part.kind == "Mod" else [part])]
        claim_parts = [
            [*it] for is_joint, it in itertools.groupby(flat_parts, lambda it: it.plays(*separators)) if not is_joint
        ]
        for parts in claim_parts:
            if parts is claim_parts[-1] or any(part.kind != "word" or part.has("now", "then") for part in parts):
                statement = Statement(Clause(parts, table_row=_MODIFIER), "")
                for item in statement.items:
                    self.add(statement, item)


_MODIFIER = Row("modifier", frozenset(), "", frozenset())
_PRESENT = Row("present", frozenset(), "", frozenset())


def items_of(clause: Clause, subjects: Sequence[Finding] = ()) -> list[Finding]:
    """The findings of a clause in order, each with what its place in a list gives it; without any, the `subjects`."""
    parts = sorted(clause.parts, key=lambda part: part.kind == "Front")
    has_own_finding = any(part.kind in NOUNS for part in parts)
    items = [] if has_own_finding else [Finding(item.name, item.phrase) for item in subjects]
    head: Finding | None = None
    followers: list[tuple[Finding, set[str]]] = []
    for i, part in enumerate(parts):
        if part.kind in MODIFIERS:
            singular = any(word.text in ("is", "was", "has") for word in part.words) and not part.has("neither", "none")
            shared = not singular and all(conflicting.kind not in ("N", "Turn") for conflicting in parts[i:])
            for item in items if shared else items[-1:]:
                item.modify(part)
        elif part.kind in NOUNS:
            item = _noun_item(part)
            items.append(item)
            if part.kind != "Change" and (item.events or item.levels):
                head = item
            elif head and clause.start != 1 and (head.phrase.kind == "Turn" or "the" not in part.roles("det")):
                followers.append((item, head.events))  # as the list's first, but for `besides new a, b`
    for item, events in followers:
        item.events = item.events or events
    for item in items:
        item.events = {"unclear"} if len(item.events) > 1 else item.events
    named_items = [item for item in items if item.phrase.kind in ("N", "Turn")]
    for item, general in itertools.product(
        named_items, (item for item in items if item not in named_items)
    ):  # new findings: a and b
        item.predicted |= general.predicted
        item.places += [*affirmed_places(general.phrase), *general.places]
        item.presence |= general.presence
        # not: two new findings, edema and the resolution of pneumonia
        conflicting = general.phrase.kind == "Any" and general.events and item.events - general.events
        if (
            conflicting
            or "unclear" in general.events
            or ("", False) in general.presence
            or general.levels
            or general.types
        ):
            item.events = {"unclear"}
    return named_items or items


def split_changes(clause: Clause) -> list[Clause]:
    """The clause without the findings of its list of which its change is not said, and these by themselves.

    What is new where the verb says otherwise: `New edema, pneumonia resolved.`, `Improved edema and a new effusion.`
    And what a finding is with, unless both are new: `The effusion with adjacent atelectasis has resolved.`
    """
    findings = [part for part in clause.parts if part.kind in ("N", "Turn")]
    events_of_verb = Statement(clause, CHANGING[0]).events
    events = events_of_verb.union(*(_noun_item(part).events for part in findings[:1]))
    others = _companions(clause.parts) if events - {"new", "same"} else []
    is_shared = events_of_verb == {"resolved"} and _shares_verb(clause.parts)
    if clause.table_row.rule == "event" and "new" not in events_of_verb and not is_shared:
        others += [part for part in findings if "new" in _noun_item(part).events and part not in others]
    if not others or len(others) == len(findings):
        return [clause]
    rest = replace(clause, parts=[part for part in clause.parts if part not in others])
    return [Clause(others, table_row=_PRESENT, start=clause.start), rest]


def _shares_verb(parts: Sequence[Phrase]) -> bool:
    """True of a list without a comma before a verb in the plural: `New edema and pneumonia have resolved.`"""
    is_plural = any(part.kind in VERBS and part.words[0].text in ("have", "are") for part in parts)
    return is_plural and not any(part.plays("comma") for part in parts)


def _companions(parts: Sequence[Phrase]) -> list[Phrase]:
    """The findings behind `with`, up to the verb."""
    behind = itertools.dropwhile(lambda part: not part.plays("with"), parts)
    return [part for part in itertools.takewhile(lambda part: part.kind not in VERBS, behind) if part.kind == "N"]


def _noun_item(phrase: Phrase) -> Finding:
    noun_phrase = next((part for part in phrase.parts if part.kind == "N"), phrase)  # of a turn: resolution of edema
    change_events = {"changed"} if phrase.kind == "Change" else set()
    item = Finding(ANY, phrase, ranges=level_ranges(phrase.parts), events=change_events)
    time = ""
    for part in noun_phrase.parts:
        if part.kind == "Organ" or part.plays("finding"):
            item.name = (part.roles("organ") or part.roles("finding"))[0]
        elif part.kind in ("Level", "Degree", "Rank"):
            item.levels.append((time, level_of(part)))
        elif part.plays("then", "now"):
            time = "then" if part.plays("then") else "now"
            item.presence.add((time, True))
        elif part.plays("newadj", "oldadj", "residual"):
            item.events.add(min(part.roles("newadj") or ["same"]))
        elif part.kind == "Newly":
            item.events.add("new" if set(part.roles("done")) <= {"new"} else "unclear")
        elif part.plays("type"):
            item.types |= set(part.roles("type"))
    if noun_phrase is not phrase:
        item.events.add((phrase.roles("noun") or phrase.roles("going"))[0])
    return item


def times_of(parts: Sequence[Phrase]) -> set[str]:
    """The images that phrases speak of: then (the reference image), now (the main image)."""
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
    """What a clause says of its findings, as part of an answer to a type of question.

    It has marks, an image (`time`), places, types, levels as (time or empty, level), and events, the changes that its
    verb or adjective can mean. The `disorders` are the findings that an organ has by its adjective, such as `enlarged`.
    The items are its findings; a later pronoun stands for the `subjects`; `counts` are number words of other things.
    """

    def __init__(self, clause: Clause, kind: str, earlier: Statement | None = None) -> None:
        """`earlier`: the statement of the previous clause, which may belong to another sentence."""
        previous = earlier if clause.start else None
        other_parts = [part for part in clause.parts if part.kind not in (*NOUNS, *MODIFIERS)]
        adjuncts = [*clause.all(*grammar().groups["adjuncts"])]
        times = times_of(other_parts)
        self.time = "both" if len(times) > 1 else min(times, default="")
        self.ranges = level_ranges(other_parts)
        self.places = affirmed_places(Phrase(other_parts))
        marks = {f":{clause.table_row.rule}", f"?{kind}"} | clause.table_row.marks | clause.unread
        marks |= {f"main={image}" for part in (clause, *adjuncts) for image in part.roles("main")}
        for part in (*clause.parts, *adjuncts):
            marks |= {part.kind, *(f"{part.kind}.{inner.kind}" for inner in part.parts)}
            marks.update(f"{part.kind}.{role}" for word in part.words for role in word.roles)
        events = self._events(other_parts, clause, marks)
        self._find_items(clause, earlier.subjects if earlier else [], marks)
        self.events = events - {"become"}
        level_time = "now" if "become" in events else ""
        self.levels = [
            (_LEVELS[part.kind] or level_time, level_of(part)) for part in other_parts if part.kind in _LEVELS
        ]
        for name, other in (("before", previous), ("earlier", earlier)):
            marks |= grammar().used & {f"{name}.{mark}" for mark in (other.marks if other else ())}
        if previous and "same-image" in marks and not self.time:  # `shows a but no b`
            self.time = previous.time
            marks |= {"Unlike"} & previous.marks
        marks.update(f"first.{role}" for role in clause.parts[0].words[0].roles)
        marks.update(f"joint.{role}" for word in Phrase(clause.joint).words for role in word.roles)
        kinds = ["and" if part.plays("and", "or", "with") else part.kind for part in clause.parts]
        kind_sequence = " ".join(kind for kind in kinds if kind in ("and", "Any", "N"))
        conditions = {
            "joined": "Any and N" in kind_sequence or "N and Any" in kind_sequence,
            "after": previous,
            "last": clause.last,
            "bare": all(
                part.kind in (*NOUNS, *MODIFIERS) or part.plays(*grammar().groups["joining"]) for part in clause.parts
            ),
            "has-pronoun": clause.has(*grammar().groups["pronouns"]),
            "ends": clause.parts[-1].kind in ("Be", "NotBe") and not adjuncts,
            "ranges": self.ranges,
            "levels": self.levels,
            "placed": self.places,
            "disorders": self.disorders,
            f"@{self.time}": self.time,
        }
        marks |= {mark for mark, holds in conditions.items() if holds}
        marks |= {f"={event}" for event in events} | {f"=={'+'.join(sorted(self.events))}"}
        self.marks: set[str] = derive_marks("marks", marks)
        if "one-level" in self.marks:
            self.levels.append(("", " to ".join(min(self.ranges))))
            self.ranges = frozenset()
        if kind == "abnormality" and self.marks & {"Any.only", "nothingbut"}:
            self.counts.add(str(len(self.items)))

    def _find_items(self, clause: Clause, earlier_subjects: Sequence[Finding], marks: set[str]) -> None:
        """Finds its items, its own or those of the previous clause, and the number words."""
        rule, pattern, ordinals = clause.table_row.rule, clause.table_row.pattern, marks & {"former", "latter"}
        inherits = pattern.startswith(("S ", "~"))
        inherited = earlier_subjects if inherits else []
        if ordinals:
            inherited = earlier_subjects[ordinals == {"latter"} :][:1] if len(earlier_subjects) == 2 else []
        self.items: list[Finding] = items_of(clause, inherited)
        marks |= {f"#{len(self.items)}", "inherits-subject" * (inherits and marks.isdisjoint(NOUNS))}
        number_phrases = [part for part in clause.parts if part.kind in ("Any", "Number", "Change")]
        numbers = {number for part in number_phrases for number in part.roles("count") + part.roles("numeral")}
        self.counts = {number for part in clause.parts if part not in number_phrases for number in part.roles("count")}
        if not self.items or self.items[0].name == ANY:
            self.counts |= numbers
        elif not numbers | (self.counts if inherited else set()) <= number_words(self.items):
            marks.add("it counts what it does not name")
        if not self.items and (rule == "unchanged" or not pattern.startswith("S")):
            self.items = [Finding(ANY, Phrase((), "Any"))]
        if not self.items or ("other" in marks and not earlier_subjects):
            marks.add("it has no subject")
        for i, item in enumerate(self.items if rule in ("replaced-by", "replaces") else ()):
            item.events = {"new" if (i == 0) == (rule == "replaces") else "resolved"}
        self.subjects = earlier_subjects if ordinals else self.items

    def _events(self, phrases: Sequence[Phrase], clause: Clause, marks: set[str]) -> set[str]:
        """Adds the roles that its words play to its marks; returns the changes that they mean."""
        telling_parts = [part for part in phrases if part.kind not in ("Range", "Header", "Review", *_LEVELS)]
        roles_by_part = [
            (part.kind, _roles_in_clause(word, part, clause.table_row)) for part in telling_parts for word in part.words
        ]
        marks.update(role for _, roles in roles_by_part for role in roles)
        marks |= {"visible"} if any(roles.get("seen") == "seen" for _, roles in roles_by_part) else set()
        self.types = {roles["type"] for _, roles in roles_by_part if "type" in roles}
        disorders = (roles.get("diseased", roles.get("ailment", "")) for _, roles in roles_by_part)
        self.disorders = {disorder for several in disorders for disorder in several.split("/") if disorder}
        verb_roles = [roles for kind, roles in roles_by_part if kind in ("word", *VERBS)]
        verbs = {roles[role] for roles in verb_roles for role in grammar().groups["telling"] if role in roles}
        has_level = any(part.kind in ("Range", "To") for part in clause.parts)
        # `subside` and `go` are a change of level where the level is named
        events = {
            it for verb in verbs for it in verb.split("/") if it and (it == verb or (it == "resolved") != has_level)
        }
        ranges = Phrase([part for part in phrases if part.kind == "Range"])
        events |= {*ranges.roles("upadj"), *ranges.roles("downadj")}
        general_events = {event for part in clause.parts if part.kind == "Any" for event in _noun_item(part).events}
        return events | (general_events if general_events <= events or not events else {"unclear"})


def number_words(findings: Collection) -> set[str]:
    """The words for their number."""
    return {str(len(findings)), "many" * (len(findings) > 1)}


def affirmed_places(phrase: Phrase) -> list[Phrase]:
    """The places that a phrase names, except those that it denies."""
    return [place for place in phrase.all("Loc", "Place", "NotPlace") if place.kind != "NotPlace"]


def _roles_in_clause(word: Word, part: Phrase, row: Row) -> dict[str, str]:
    """The roles that a word plays in a clause; outside phrases, only those that the clause's row names."""
    groups = grammar().groups
    if part.kind in VERBS:
        normal = {"normal": word.text} if "normal" in word.text else {}
        return {role: value for role, value in word.roles.items() if role not in groups["no-verb"]} | normal
    if part.kind != "word":
        return word.roles
    named_roles = {role: value for role, value in word.roles.items() if role in row.names or not row.names}
    exclusive_roles = [role for role in groups["exclusive"] if role in named_roles]
    return {role: named_roles[role] for role in exclusive_roles or named_roles}
