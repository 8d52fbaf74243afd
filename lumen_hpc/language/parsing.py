"""Parses sentences by the tables of grammar.yaml: words into phrases, phrases into clauses, clauses into a sentence.

A cascade of patterns, each over one character a word or phrase. Every word of a sentence belongs to exactly one
phrase and every phrase to one clause, or there is no parse. The time is bounded: a sentence has at most `LONGEST`
phrases, and no pattern nests a repetition in another over the same phrases.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lumen_hpc.language.words import Word, signs

LONGEST = 60
"""Phrases of a sentence that is read."""


@dataclass(slots=True, eq=False)
class Phrase:
    """A word or phrase of a sentence, with its parts.

    Its kind is its line in the table of phrases, `word`, or empty for parts that are no phrase; its row, which pattern
    of that line it fits. Adjuncts are phrases of place, time and comparison that stood beside it.
    """

    parts: Sequence[Phrase] = ()
    kind: str = ""
    sign: str = ""
    row: int = 0
    words: Sequence[Word] = ()
    adjuncts: list[Phrase] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.words = self.words or [word for part in self.parts for word in part.words]

    def all(self, *kinds: str) -> Iterator[Phrase]:
        """The outermost phrases of these kinds in it, adjuncts included."""
        for part in (*self.parts, *self.adjuncts):
            if part.kind in kinds:
                yield part
                yield from Phrase(part.adjuncts).all(*kinds)
            elif part.parts or part.adjuncts:
                yield from part.all(*kinds)

    def roles(self, role: str) -> list[str]:
        """What its words stand for in a role, in order."""
        return [word.roles[role] for word in self.words if role in word.roles]

    def has(self, *roles: str) -> bool:
        """Whether one of its words can play one of these roles."""
        return not all(word.roles.keys().isdisjoint(roles) for word in self.words)

    def plays(self, *roles: str) -> bool:
        """Whether it is a word that can play one of these roles."""
        return self.kind == "word" and self.has(*roles)


class Row(NamedTuple):
    """A row of the table of clauses: its rule, what the clause before adds, and the names in its pattern."""

    rule: str
    marks: frozenset[str]
    pattern: str
    names: frozenset[str]


@dataclass(slots=True, eq=False)
class Clause(Phrase):
    """A clause, its row, the number of phrases before it, the last of these, and whether it ends its sentence.

    Unread are the marks of what the lenient reading left out beside it.
    """

    says: Row = field(kw_only=True)
    start: int = 0
    joint: Sequence[Phrase] = ()
    last: bool = False
    unread: set[str] = field(default_factory=set)

    @property
    def end(self) -> int:
        return self.start + len(self.parts)


class Grammar:
    """The tables of grammar.yaml, compiled."""

    def __init__(self, table: dict[str, Any]) -> None:
        self._short = table["short"]
        self._characters: dict[str, str] = defaultdict(str)
        for roles, sign in signs().items():
            for role in roles:
                self._characters[role] += sign
        self._characters |= {kind: chr(0xF000 + i) for i, kind in enumerate(table["phrases"])}
        self.phrases = [
            (kind, self._characters[kind], re.compile("|".join(f"({self._compiled(row)})" for row in rows)))
            for kind, rows in table["phrases"].items()
        ]
        heads: dict[str, list[tuple[Row, str]]] = defaultdict(list)
        for name, patterns in table["clauses"].items():
            rule, *marks = name.split(", ")
            for row in patterns:
                head, rest = re.findall(r"^~?([A-Za-z]+ |)(.*)", row)[0]
                names = frozenset(_NAME.findall(self._spelled(f"{table['lead']} {row} {table['tail']}")))
                heads[head].append((Row(rule, frozenset(marks), row, names), f"({self._compiled(rest)})"))
        rows = (f"{self._compiled(head)}(?:{'|'.join(rest for _, rest in rows)})" for head, rows in heads.items())
        lead, tail, joints = (self._compiled(table[name]) for name in ("lead", "tail", "joints"))
        self.rows = [row for rows in heads.values() for row, _ in rows]
        self.clauses = re.compile(f"(?:{lead})?(?:{'|'.join(rows)})(?:{tail})")
        self.joints = re.compile(joints)
        self.groups = {name: names.split(" | ") for name, names in table["groups"].items()}
        self.marks = {
            name: [
                (mark, frozenset(it for it in row if it[0] != "!"), frozenset(it[1:] for it in row if it[0] == "!"))
                for mark, alternatives in table[name].items()
                for row in map(str.split, alternatives.split(" | "))
            ]
            for name in ("marks", "says", "comes")
        }
        """(name, marks it needs, marks it excludes)"""
        self.used = frozenset(it for lines in self.marks.values() for line in lines for it in line[1] | line[2])

    def _spelled(self, pattern: str) -> str:
        """A pattern with its shorthands in full."""
        return _NAME.sub(
            lambda it: f"({self._spelled(self._short[it[0]])})" if it[0] in self._short else it[0], pattern
        )

    def _compiled(self, pattern: str) -> str:
        return _NAME.sub(self._one, re.sub(r"\((?!\?)", "(?:", self._spelled(pattern))).replace(" ", "")

    def _one(self, name: re.Match) -> str:
        """The characters of a kind of phrases, or of the words that can play a role."""
        if name[0] not in self._characters:
            raise ValueError(f"grammar.yaml: no word and no phrase is called {name[0]}")
        return f"[{self._characters[name[0]]}]"


@cache
def grammar() -> Grammar:
    return Grammar(yaml.safe_load(Path(__file__).with_name("grammar.yaml").read_text(encoding="utf-8")))


def marked(table: str, marks: set[str]) -> set[str]:
    """The marks with the names that hold of them, by a table."""
    return marks | _held(table, grammar().used & marks)


def doubts(marks: set[str]) -> dict[str, None]:
    """The names of several words among marks that are no saying: reasons for doubt."""
    return dict.fromkeys(sorted(mark for mark in marks if " " in mark and mark[0] != "-"))


@lru_cache(maxsize=1 << 14)
def _held(table: str, marks: frozenset[str]) -> set[str]:
    held = set(marks)
    for name, needs, without in grammar().marks[table]:
        if needs <= held and without.isdisjoint(held):
            held.add(name)
    return held


_NAME = re.compile("[A-Za-z]+")


def phrases_of(words: Sequence[Word]) -> list[Phrase]:
    """The words of a sentence as phrases."""
    found = [Phrase((), "word", word.sign, words=(word,)) for word in words]
    for kind, sign, matches in _stages("".join(word.sign for word in words)):
        for start, end, row in matches:
            found[start:end] = [Phrase(found[start:end], kind, sign, row)]
        found = _attached(found) if kind == "Adjuncts" else found
    return found


@lru_cache(maxsize=1 << 14)
def _stages(signs: str) -> list[tuple[str, str, list[tuple[int, int, int]]]]:
    """The stages of the table that find phrases, each among those before it; the last of a stage's phrases first."""
    stages = []
    for kind, sign, pattern in grammar().phrases:
        if matches := [(it.start(), it.end(), it.lastindex or 0) for it in pattern.finditer(signs)][::-1]:
            stages.append((kind, sign, matches))
        for start, end, _ in matches:
            signs = signs[:start] + sign * (kind != "Adjuncts") + signs[end:]
    return stages


def _attached(found: list[Phrase]) -> list[Phrase]:
    """The phrases without the adjuncts among them, each kept by the phrase before it; after a mark, by the next."""
    kept: list[Phrase] = []
    waiting: list[Phrase] = []
    for phrase in found:
        if phrase.kind != "Adjuncts":
            phrase.adjuncts += waiting
            waiting = []
            kept.append(phrase)
        else:
            keeper = kept[-1].adjuncts if kept and not kept[-1].plays(*grammar().groups["joining"]) else waiting
            keeper += [part for part in phrase.parts if part.kind != "word"]
    if kept:
        kept[-1].adjuncts += waiting
    return kept


def _clause(found: list[Phrase], signs: str, start: int, end: int) -> Clause | None:
    """The phrases from `start` to `end` as a clause."""
    match = grammar().clauses.fullmatch(signs, start, end)
    if match is None:
        return None
    says = grammar().rows[(match.lastindex or 0) - 1]
    return Clause(found[start:end], says=says, start=start, joint=found[start - 1 : start], last=end == len(found))


def strict(found: list[Phrase]) -> list[list[Clause]]:
    """Every way to read a sentence as the fewest clauses, of these those parted by a comma or more than `and`."""
    signs = "".join(phrase.sign for phrase in found)
    joints = [(0, 0), *(match.span() for match in grammar().joints.finditer(signs))]
    ends = [*(joint for joint, _ in joints if joint), len(signs)]
    best: dict[int, list[tuple[int, list[Clause]]]] = {0: [(0, [])]}
    for joint, start in joints:
        bare = start - joint == 1 and found[joint].plays("and")
        before = [] if any(phrase.adjuncts for phrase in found[joint:start]) else best.get(joint, [])
        for end in ends if before else ():
            if end > start and (clause := _clause(found, signs, start, end)):
                known = best.get(end, []) + [(cost + LONGEST + bare, [*parse, clause]) for cost, parse in before]
                best[end] = [(cost, parse) for cost, parse in known if cost == min(cost for cost, _ in known)][:4]
    return [parse for _, parse in best.get(len(signs), [])]


def lenient(found: list[Phrase]) -> list[Clause]:
    """The clauses that cover most of a sentence, marked with what is beside them that none covers."""
    signs = "".join(phrase.sign for phrase in found)
    best: list[tuple[float, list[Clause]]] = [(0, [])]
    for end in range(1, len(found) + 1):
        covers = [
            (score + end - start - 0.5, [*clauses, clause])
            for start, (score, clauses) in enumerate(best)
            if (clause := _clause(found, signs, start, end))
        ]
        best.append(max([*covers, best[-1]], key=lambda cover: cover[0]))
    clauses = best[-1][1]
    for clause, left, right in zip(clauses, [None, *clauses], [*clauses[1:], None], strict=False):
        before = found[left.end if left else 0 : clause.start]
        after = found[clause.end : right.start if right else None]
        clause.unread.update(_unread(before, after), ["cut-off"] if right and not after else [])
    return clauses


def _unread(before: Sequence[Phrase], after: Sequence[Phrase]) -> Iterator[str]:
    """What phrases that were not read mean for the clause between them.

    It is denied or doubted by one that denies or doubts right beside it; `-afar` by one before a comma and the like. It
    is torn where the next one is no joint.
    """
    groups = grammar().groups
    for role, back in (("denied", "denied-back"), ("doubted", "doubted")):
        spoken = [i for i, phrase in enumerate(before, start=1) if phrase.has(*groups[role])]
        if after and after[0].has(*groups[back]):
            yield role
        elif spoken:
            yield role + "-afar" * any(phrase.plays(*groups["joining"]) for phrase in before[spoken[-1] :])
    if any(not phrase.plays(*groups["joining"]) for phrase in (*before[-1:], *after[:1])):
        yield "torn"
