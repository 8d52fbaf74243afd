"""Parses sentences by the tables of grammar.yaml: words into phrases, phrases into clauses, clauses into a sentence.

A cascade of patterns, each over one character per word or phrase. Every word of a sentence belongs to exactly one
phrase and every phrase to one clause, or there is no parse. The time is bounded: a sentence has at most `MOST_PHRASES`
phrases, and no pattern nests a repetition in another over the same phrases.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lumen_hpc.language.words import Word, signs

MOST_PHRASES = 60
"""Phrases of a sentence that are read."""


@dataclass(slots=True, eq=False)
class Phrase:
    """A word or phrase of a sentence, with its parts.

    Its kind is its line in the table of phrases, `word`, or empty for parts that form no phrase. Its row is the number
    of the pattern in that line. Adjuncts are phrases of place, time and comparison beside it.
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
        """The outermost phrases of these kinds within it, adjuncts included."""
        for part in (*self.parts, *self.adjuncts):
            if part.kind in kinds:
                yield part
                yield from Phrase(part.adjuncts).all(*kinds)
            elif part.parts or part.adjuncts:
                yield from part.all(*kinds)

    def roles(self, role: str) -> list[str]:
        """The values of its words in a role, in order."""
        return [word.roles[role] for word in self.words if role in word.roles]

    def has(self, *roles: str) -> bool:
        """Whether one of its words can play one of these roles."""
        return not all(word.roles.keys().isdisjoint(roles) for word in self.words)

    def plays(self, *roles: str) -> bool:
        """Whether it is a single word that can play one of these roles."""
        return self.kind == "word" and self.has(*roles)


class Row(NamedTuple):
    """A row of the table of clauses: its rule, what it takes from the previous clause, and the names in its pattern."""

    rule: str
    marks: frozenset[str]
    pattern: str
    names: frozenset[str]


@dataclass(slots=True, eq=False)
class Clause(Phrase):
    """A clause with its row of the table.

    It starts after `start` phrases, of which `joint` is the last; `last`: it ends its sentence. `unread` holds the
    marks of the words beside it that the lenient reading left out.
    """

    table_row: Row = field(kw_only=True)
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
        self._shorthands = table["short"]
        self._characters: dict[str, str] = defaultdict(str)
        for roles, sign in signs().items():
            for role in roles:
                self._characters[role] += sign
        self._characters |= {kind: chr(0xF000 + i) for i, kind in enumerate(table["phrases"])}
        self.phrases = [
            (kind, self._characters[kind], re.compile("|".join(f"({self._compile(row)})" for row in rows)))
            for kind, rows in table["phrases"].items()
        ]
        rows_by_head: dict[str, list[tuple[Row, str]]] = defaultdict(list)
        for name, patterns in table["clauses"].items():
            rule, *marks = name.split(", ")
            for row in patterns:
                head, rest = re.findall(r"^~?([A-Za-z]+ |)(.*)", row)[0]
                names = frozenset(_NAME.findall(self._expand_shorthands(f"{table['lead']} {row} {table['tail']}")))
                rows_by_head[head].append((Row(rule, frozenset(marks), row, names), f"({self._compile(rest)})"))
        rows = (f"{self._compile(head)}(?:{'|'.join(rest for _, rest in rows)})" for head, rows in rows_by_head.items())
        lead, tail, joints = (self._compile(table[name]) for name in ("lead", "tail", "joints"))
        self.rows = [row for rows in rows_by_head.values() for row, _ in rows]
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

    def _expand_shorthands(self, pattern: str) -> str:
        """A pattern with its shorthands in full."""
        return _NAME.sub(
            lambda it: f"({self._expand_shorthands(self._shorthands[it[0]])})" if it[0] in self._shorthands else it[0],
            pattern,
        )

    def _compile(self, pattern: str) -> str:
        return _NAME.sub(self._character_class, re.sub(r"\((?!\?)", "(?:", self._expand_shorthands(pattern))).replace(
            " ", ""
        )

    def _character_class(self, name: re.Match) -> str:
        """The character of a kind of phrases, or those of the words that can play a role."""
        if name[0] not in self._characters:
            raise ValueError(f"grammar.yaml: no role and no kind of phrases is called {name[0]}")
        return f"[{self._characters[name[0]]}]"


@cache
def grammar() -> Grammar:
    return Grammar(yaml.safe_load(Path(__file__).with_name("grammar.yaml").read_text(encoding="utf-8")))


def derive_marks(table: str, marks: set[str]) -> set[str]:
    """The marks, and the names of a table that hold for them."""
    return marks | _derive(table, grammar().used & marks)


def doubts(marks: set[str]) -> dict[str, None]:
    """The marks of several words that are no statement: reasons for doubt."""
    return dict.fromkeys(sorted(mark for mark in marks if " " in mark and mark[0] != "-"))


@lru_cache(maxsize=1 << 14)
def _derive(table: str, marks: frozenset[str]) -> set[str]:
    marks_held = set(marks)
    for name, needs, without in grammar().marks[table]:
        if needs <= marks_held and without.isdisjoint(marks_held):
            marks_held.add(name)
    return marks_held


_NAME = re.compile("[A-Za-z]+")


def phrases_of(words: Sequence[Word]) -> list[Phrase]:
    """The words of a sentence as phrases."""
    phrases = [Phrase((), "word", word.sign, words=(word,)) for word in words]
    for kind, sign, matches in _stages("".join(word.sign for word in words)):
        for start, end, row in matches:
            phrases[start:end] = [Phrase(phrases[start:end], kind, sign, row)]
        phrases = _attach_adjuncts(phrases) if kind == "Adjuncts" else phrases
    return phrases


@lru_cache(maxsize=1 << 14)
def _stages(signs: str) -> list[tuple[str, str, list[tuple[int, int, int]]]]:
    """(kind, sign, matches) of each stage that finds phrases, in order; the last match of a stage comes first."""
    stages = []
    for kind, sign, pattern in grammar().phrases:
        if matches := [(it.start(), it.end(), it.lastindex or 0) for it in pattern.finditer(signs)][::-1]:
            stages.append((kind, sign, matches))
        for start, end, _ in matches:
            signs = signs[:start] + sign * (kind != "Adjuncts") + signs[end:]
    return stages


def _attach_adjuncts(phrases: list[Phrase]) -> list[Phrase]:
    """The phrases but the adjuncts, which go to the phrase before them, after a comma and the like to the next one."""
    main_phrases: list[Phrase] = []
    pending_adjuncts: list[Phrase] = []
    for phrase in phrases:
        if phrase.kind != "Adjuncts":
            phrase.adjuncts += pending_adjuncts
            pending_adjuncts = []
            main_phrases.append(phrase)
        else:
            owner_adjuncts = (
                main_phrases[-1].adjuncts
                if main_phrases and not main_phrases[-1].plays(*grammar().groups["joining"])
                else pending_adjuncts
            )
            owner_adjuncts += [part for part in phrase.parts if part.kind != "word"]
    if main_phrases:
        main_phrases[-1].adjuncts += pending_adjuncts
    return main_phrases


def _match_clause(phrases: list[Phrase], signs: str, start: int, end: int) -> Clause | None:
    """The phrases from `start` to `end` as a clause."""
    row_match = grammar().clauses.fullmatch(signs, start, end)
    if row_match is None:
        return None
    table_row = grammar().rows[(row_match.lastindex or 0) - 1]
    return Clause(
        phrases[start:end], table_row=table_row, start=start, joint=phrases[start - 1 : start], last=end == len(phrases)
    )


def strict_parses(phrases: list[Phrase]) -> list[list[Clause]]:
    """Every way to read a sentence as the fewest clauses, preferring cuts at a comma or at more than a bare `and`."""
    signs = "".join(phrase.sign for phrase in phrases)
    joints = [(0, 0), *(match.span() for match in grammar().joints.finditer(signs))]
    ends = [*(joint for joint, _ in joints if joint), len(signs)]
    best: dict[int, list[tuple[int, list[Clause]]]] = {0: [(0, [])]}
    for joint, start in joints:
        bare_and = start - joint == 1 and phrases[joint].plays("and")
        before = [] if any(phrase.adjuncts for phrase in phrases[joint:start]) else best.get(joint, [])
        for end in ends if before else ():
            if end > start and (clause := _match_clause(phrases, signs, start, end)):
                candidates = best.get(end, []) + [
                    (cost + MOST_PHRASES + bare_and, [*parse, clause]) for cost, parse in before
                ]
                best[end] = [
                    (cost, parse) for cost, parse in candidates if cost == min(cost for cost, _ in candidates)
                ][:4]
    return [parse for _, parse in best.get(len(signs), [])]


def lenient_parse(phrases: list[Phrase]) -> list[Clause]:
    """The clauses that cover most of a sentence, each with the marks of the words beside it that no clause covers."""
    signs = "".join(phrase.sign for phrase in phrases)
    best: list[tuple[float, list[Clause]]] = [(0, [])]
    for end in range(1, len(phrases) + 1):
        covers = [
            (score + end - start - 0.5, [*clauses, clause])
            for start, (score, clauses) in enumerate(best)
            if (clause := _match_clause(phrases, signs, start, end))
        ]
        best.append(max([*covers, best[-1]], key=lambda cover: cover[0]))
    clauses = best[-1][1]
    for clause, previous, following in zip(clauses, [None, *clauses], [*clauses[1:], None], strict=False):
        before = phrases[previous.end if previous else 0 : clause.start]
        after = phrases[clause.end : following.start if following else None]
        clause.unread.update(_unread_marks(before, after, last=following is None))
        clause.unread.update(["cut-off"] if following and not after else [])
        is_or = any(phrase.plays("or") for phrase in after) and not any(map(_is_no_joint, after))
        clause.unread.update(["or-follows"] if following and is_or else [])
    return clauses


def _unread_marks(before: Sequence[Phrase], after: Sequence[Phrase], last: bool) -> Iterator[str]:
    """The marks of a clause from the unread phrases before and after it.

    `denied` or `doubted`: such a phrase stands right beside it, or a doubt anywhere behind the `last` clause; `-afar`:
    before a comma and the like. `incomplete`: the next phrase is no joint. `article-follows`: it is `a` or `an`.
    `unread-reference`: the reference image stands before it.
    """
    groups = grammar().groups
    for role, group_after in (("denied", "denied-backwards"), ("doubted", "doubted")):
        positions = [i for i, phrase in enumerate(before, start=1) if phrase.has(*groups[role])]
        behind = after[: len(after) if last and role == "doubted" else 1]
        if any(phrase.has(*groups[group_after]) for phrase in itertools.takewhile(_is_no_joint, behind)):
            yield role
        elif positions:
            yield role + "-afar" * any(phrase.plays(*groups["joining"]) for phrase in before[positions[-1] :])
    beside = itertools.takewhile(_is_no_joint, reversed(before))
    if any(phrase.kind == "Ref" for phrase in beside):
        yield "unread-reference"
    if after and after[0].has("indefinite"):
        yield "article-follows"
    if any(map(_is_no_joint, (*before[-1:], *after[:1]))):
        yield "incomplete"


def _is_no_joint(phrase: Phrase) -> bool:
    return not phrase.plays(*grammar().groups["joining"])
