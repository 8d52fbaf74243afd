"""What an answer claims, as facts that can be counted: changes between two images, and findings of one.

References are read by the dataset's grammar. Answers are read by it too, and where they leave it, by the reader
that checks the rewrites (`language.reader`): here what it finds doubtful still counts as said, since a score gives
partial credit where a check refuses. Findings and levels go by that reader's names for them, so that `effusions`
are a pleural effusion; sides and places are no part of a fact. An answer that cannot be read claims nothing. No
weights: an error counts one, whatever it is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from lumen_hpc.data.diff_vqa import LEVELS, Change, GrammarError, LevelChange, parse_difference, parse_findings
from lumen_hpc.language.reader import read
from lumen_hpc.language.units import ANY
from lumen_hpc.language.words import knows, tags

KINDS = ("new", "resolved", "level")
Fact = tuple[str, ...]
"""("new", finding), ("resolved", finding) or ("level", finding, before, after)."""


class Tally(NamedTuple):
    """Facts of an answer against those of its reference."""

    hits: int
    extra: int
    missed: int

    @property
    def f1(self) -> float:
        """F1 of one answer; 1 where there is nothing to say and nothing is said."""
        whole = 2 * self.hits + self.extra + self.missed
        return 2 * self.hits / whole if whole else 1.0


def tally(answer: Iterable[Fact], reference: Iterable[Fact]) -> Tally:
    """Counts the facts of an answer that its reference has, those it has not, and those that the answer lacks."""
    answer, reference = set(answer), set(reference)
    return Tally(len(answer & reference), len(answer - reference), len(reference - answer))


def facts(change: Change) -> set[Fact]:
    """A change as facts, findings and levels by their common names."""
    return {
        *(("new", named(name)) for name in change.new),
        *(("resolved", named(name)) for name in change.resolved),
        *(("level", named(c.finding), levelled(c.before), levelled(c.after)) for c in change.levels),
    }


@lru_cache(maxsize=4096)
def named(finding: str) -> str:
    """The name that the reader uses for a finding: its own for one it knows, else the words in lower case."""
    return next((tag.value for tag in tags(finding) if tag.kind == "finding" and knows(finding)), finding.lower())


@lru_cache(maxsize=4096)
def levelled(level: str) -> str:
    """The reader's word for a level of one word; any other in lower case."""
    found = tags(level)
    return found[0].value if [tag.kind for tag in found] == ["level"] else " ".join(level.lower().split())


def direction(change: Change) -> str | None:
    """`worse`, `better`, `mixed` or `same`; None where only levels of unknown order changed."""
    ways = {1} if change.new else set()
    ways |= {-1} if change.resolved else set()
    ways |= {level.direction for level in change.levels}
    if ways >= {1, -1}:
        return "mixed"
    return "worse" if 1 in ways else "better" if -1 in ways else None if ways else "same"


class Reader:
    """Reads answers, knowing the names of the findings that may occur in them."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: findings beyond the language reader's vocabulary; those within it are known anyway."""
        self._names = tuple(sorted({name.lower() for name in names if name and not knows(name)}))

    @classmethod
    def of(cls, references: Iterable[dict]) -> Reader:
        """A reader that knows every finding named in the short answers of these questions."""
        names: set[str] = set()
        for row in references:
            try:
                if row["type"] == "abnormality" and not row.get("closed"):
                    names.update(parse_findings(row["short_answer"]))
                elif row["type"] in ("difference", "prediction"):
                    names.update(fact[1] for fact in facts(parse_difference(row["short_answer"])))
            except GrammarError:
                continue
        return cls(names)

    def findings(self, text: str) -> set[str]:
        """The findings that a text about one image says are there."""
        # `edema without effusion` is two statements, which the reader wants apart.
        said = read(text.replace(" without ", ", no "), "abnormality", self._names).findings
        return {name for name, state in said.items() if state.status == "present" and name != ANY}

    def change(self, text: str, kind: str = "difference") -> Change | None:
        """The change that a text claims; None if it claims neither a change of a finding nor that there is none.

        `kind`: the type of the question, `difference` or `prediction`.
        """
        try:
            return parse_difference(text)
        except GrammarError:
            said = read(text, kind, self._names).findings
        by_status: dict[str, list[str]] = {}
        for name, state in said.items():
            by_status.setdefault(state.status, []).append(name)
        change = Change(
            new=tuple(name for name in by_status.get("new", ()) if name != ANY),
            resolved=tuple(name for name in by_status.get("gone", ()) if name != ANY),
            levels=tuple(_level_change(name, said[name].levels) for name in by_status.get("level", ()) if name != ANY),
        )
        return change if change or by_status.keys() & _UNCHANGED else None

    def level(self, text: str) -> str:
        """The level that a text names, the longest known word for one; empty if it names none."""
        found = _LEVEL.search(text.lower())
        return found[0] if found else ""


def _level_change(name: str, readings: Iterable[tuple[str, str]]) -> LevelChange:
    """One reading of `from … to …`, cut where the dataset's grammar cuts it."""
    before, after = min(readings)
    (change,) = parse_difference(f"the level of {name} has changed from {before} to {after}.").levels
    return change


_UNCHANGED = {"same", "not-new", "not-gone", "not-changed"}
_LEVEL = re.compile(r"\b(?:" + "|".join(sorted(LEVELS, key=lambda word: (-len(word), word))) + r")\b")
