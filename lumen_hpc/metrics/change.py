"""What an answer claims, as facts that can be counted: changes between two images, and findings of one.

References are read by the dataset's grammar. Answers are read by it too, and where they leave it, by the lenient
reading of the grammar that checks the rewrites (`language.reader`): what it cannot read is left out, since a score
gives partial credit where a check refuses. Findings and levels go by that reader's names for them, so that `effusions`
are a pleural effusion; sides and places are no part of a fact. An answer that cannot be read claims nothing. No
weights: an error counts one, whatever it is about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from lumen_hpc.data.diff_vqa import (
    LEVELS,
    NO_CHANGE,
    Change,
    GrammarError,
    LevelChange,
    parse_difference,
    parse_findings,
)
from lumen_hpc.data.short_answers import answer_fault
from lumen_hpc.language.clauses import ANY, CHANGING
from lumen_hpc.language.reader import read
from lumen_hpc.language.words import knows, words

KINDS = ("new", "resolved", "level")
Fact = tuple[str, ...]
"""("new", finding), ("resolved", finding), ("level", finding, before, after); of a claim without levels also
("level", finding, "worse" or "better")."""


@dataclass(frozen=True, slots=True)
class Claim(Change):
    """What an answer says has changed, levels that it does not name included."""

    worse: tuple[str, ...] = ()
    """Findings that it says are worse, without saying from which level to which."""
    better: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return Change.__bool__(self) or bool(self.worse or self.better)


class Tally(NamedTuple):
    """Facts of an answer against those of its reference."""

    hits: int
    extra: int
    missed: int

    @property
    def f1(self) -> float:
        """F1 of one answer; 1 where neither it nor its reference claims anything."""
        whole = 2 * self.hits + self.extra + self.missed
        return 2 * self.hits / whole if whole else 1.0


def tally(answer: Iterable[Fact], reference: Iterable[Fact]) -> Tally:
    """Counts the facts of an answer that its reference has, those it has not, and those that the answer lacks."""
    answer, reference = set(answer), set(reference)
    return Tally(len(answer & reference), len(answer - reference), len(reference - answer))


def facts(change: Change) -> set[Fact]:
    """A change as facts, findings and levels by their common names."""
    return {
        *(("new", reader_name(name)) for name in change.new),
        *(("resolved", reader_name(name)) for name in change.resolved),
        *(("level", reader_name(c.finding), reader_level(c.before), reader_level(c.after)) for c in change.levels),
        *(("level", reader_name(name), way) for way in ("worse", "better") for name in getattr(change, way, ())),
    }


def scored_facts(claim: Change | None, truth: Change) -> set[Fact]:
    """The facts of a claim as they count against what is true.

    `worse` and `better` without levels are no fact of the reference, so where they are true they count neither way.
    """
    level_directions = {reader_name(level.finding): level.direction for level in truth.levels}
    true_directions = {
        **dict.fromkeys(map(reader_name, truth.new), 1),
        **dict.fromkeys(map(reader_name, truth.resolved), -1),
        **level_directions,
    }
    true_facts = {
        ("level", name, way)
        for name, direction_ in true_directions.items()
        for way, sign in (("worse", 1), ("better", -1))
        if direction_ in (sign, 0)
    }
    return facts(claim) - true_facts if claim else set()


@lru_cache(maxsize=4096)
def reader_name(finding: str) -> str:
    """The name that the reader uses for a finding: its own for one it knows, else the words in lower case."""
    return next(
        (w.roles["finding"] for w in words(finding) if "finding" in w.roles and knows(finding)), finding.lower()
    )


@lru_cache(maxsize=4096)
def reader_level(level: str) -> str:
    """The reader's word for a level of one word; any other in lower case."""
    level_words = words(level)
    return (
        level_words[0].roles["lvl"]
        if len(level_words) == 1 and "lvl" in level_words[0].roles
        else " ".join(level.lower().split())
    )


def direction(change: Change) -> str | None:
    """`worse`, `better`, `mixed` or `same`; None where only levels of unknown order changed."""
    directions = {1} if change.new else set()
    directions |= {-1} if change.resolved else set()
    directions |= {level.direction for level in change.levels}
    if isinstance(change, Claim):
        directions |= {1} if change.worse else set()
        directions |= {-1} if change.better else set()
    if directions >= {1, -1}:
        return "mixed"
    return "worse" if 1 in directions else "better" if -1 in directions else None if directions else "same"


def expected_change(row: dict) -> Change | None:
    """The change of a reference (a difference or prediction question); None for a short answer outside the grammar."""
    return _parse_reference(parse_difference, row["type"], row.get("question") or "", row["short_answer"])


def expected_findings(row: dict) -> tuple[str, ...] | None:
    """The findings of a reference (an open abnormality question); None for a short answer outside the grammar."""
    return _parse_reference(parse_findings, row["type"], row.get("question") or "", row["short_answer"])


@lru_cache(maxsize=1 << 17)  # a reference is read when it is joined, and again for every model and baseline
def _parse_reference(parse: Callable[[str], Any], kind: str, question: str, short_answer: str) -> Any:
    return None if answer_fault(kind, question, short_answer) else parse(short_answer)


class Reader:
    """Reads answers, knowing the names of the findings that may occur in them."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: findings beyond the language reader's vocabulary; those within it are known anyway."""
        self._names = tuple(sorted({("finding", name.lower()) for name in names if name and not knows(name)}))

    @classmethod
    def of(cls, references: Iterable[dict]) -> Reader:
        """A reader that knows every finding that the short answers of these questions name."""
        names: set[str] = set()
        for row in references:
            if row["type"] == "abnormality" and not row.get("closed"):
                names.update(expected_findings(row) or ())
            elif row["type"] in CHANGING:
                names.update(fact[1] for fact in facts(expected_change(row) or Change()))
        return cls(names)

    def findings(self, text: str) -> set[str]:
        """The findings that a text about one image says are there."""
        states = read(text, "abnormality", self._names, lenient=True).findings
        return {name for name, state in states.items() if state.status in PRESENT and name != ANY}

    def change(self, text: str, kind: str = "difference") -> Change | None:
        """The change that a text claims; None if it claims neither a change of a finding nor that there is none.

        `kind`: the type of the question, `difference` or `prediction`.
        """
        text = NO_CHANGE if text.strip(" .!").lower() == "nothing" else text
        try:
            change = parse_difference(text)
        except GrammarError:
            change = None
        if change is not None and not any(map(_is_phrase, change.levels)):
            return change
        states = read(text, kind, self._names, lenient=True).findings
        by_status: dict[str, list[str]] = {}
        for name, state in states.items():
            if name != ANY or state.status in _UNCHANGED:
                by_status.setdefault(state.status, []).append(name)
        levels = [_level_change(name, states[name].levels) for name in by_status.get("level", ())]
        claim = Claim(
            new=tuple(by_status.get("new", ())),
            resolved=tuple(by_status.get("resolved", ())),
            levels=tuple(level for level in levels if level.before != level.after),  # mild on both images
            worse=tuple(by_status.get("up", ())),
            better=tuple(by_status.get("down", ())),
        )
        return claim if by_status.keys() & {"new", "resolved", "level", "up", "down", *_UNCHANGED} else None

    def level(self, text: str) -> str:
        """The level that a text names, the longest known word for one; empty if it names none."""
        match = _LEVEL.search(text.lower())
        return match[0] if match else ""


def _is_phrase(change: LevelChange) -> bool:
    """True for levels that the grammar takes as such, and that say more: `from mild in the reference image to none`."""
    levels = (change.before, change.after)
    return any(len(level.split()) > _MOST_LEVEL_WORDS or level in ("none", "absent") for level in levels)


_MOST_LEVEL_WORDS = 4
"""Words of a level, as in `mild to moderate acute`."""


def _level_change(name: str, readings: Iterable[tuple[str, ...]]) -> LevelChange:
    """One reading of `from … to …`, cut where the dataset's grammar cuts it."""
    before, after = min(reading for reading in readings if len(reading) == 2)
    try:
        (change,) = parse_difference(f"the level of {name} has changed from {before} to {after}.").levels
    except GrammarError:
        return LevelChange(name, before, after)
    return change


PRESENT = frozenset({"present", "same", "new", "level", "up", "down", "changed", "not-resolved", "not-changed"})
"""States of a finding that is there: what is new, or has changed, is."""
_UNCHANGED = {"same", "not-new", "not-resolved", "not-changed"}
_LEVEL = re.compile(r"\b(?:" + "|".join(sorted(LEVELS, key=lambda word: (-len(word), word))) + r")\b")
