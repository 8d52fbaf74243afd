"""Parses sentences by the tables of grammar.yaml: words into phrases, phrases into clauses, clauses into a sentence.

A cascade of patterns, each over one character a word or phrase. Every word of a sentence belongs to exactly one
phrase and every phrase to one clause, or there is no parse. The time is bounded: a sentence has at most `LONGEST`
phrases, and no pattern nests a repetition in another over the same phrases.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from lumen_hpc.language.words import Word, lexicon

LONGEST = 60
"""Phrases of a sentence that is read."""


@dataclass(slots=True)
class Phrase:
    """A word or phrase of a sentence, with its parts."""

    kind: str
    sign: str
    parts: Sequence[Phrase] = ()
    word: Word | None = None
    adjuncts: list[Phrase] = field(default_factory=list)
    """Phrases of place, time and comparison that stood beside it."""

    def leaves(self) -> Iterator[Word]:
        """Its words in order, without those of its adjuncts."""
        if self.word is not None:
            yield self.word
        for part in self.parts:
            yield from part.leaves()

    def all(self, *kinds: str) -> Iterator[Phrase]:
        """The outermost phrases of these kinds in it, adjuncts included."""
        for part in (*self.parts, *self.adjuncts):
            if part.kind in kinds:
                yield part
                yield from Phrase("", "", part.adjuncts).all(*kinds)
            else:
                yield from part.all(*kinds)

    def roles(self, role: str) -> list[str]:
        """What its words stand for in a role, in order."""
        return [word.roles[role] for word in self.leaves() if role in word.roles]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table of clauses."""

    rule: str
    """What it says."""
    marks: frozenset[str]
    """What the clause before adds to it."""
    pattern: str
    takes_up: bool
    """Its subject may be that of the clause before."""
    names: frozenset[str]
    """The roles that its own words can play."""


@dataclass(frozen=True, slots=True)
class Clause:
    row: Row
    parts: Sequence[Phrase]
    start: int
    """The number of phrases before it in its sentence."""


@dataclass(frozen=True, slots=True)
class Grammar:
    phrases: list[tuple[str, str, re.Pattern]]
    adjuncts: frozenset[str]
    clauses: re.Pattern
    rows: list[Row]
    joints: re.Pattern

    def clause(self, signs: str, found: list[Phrase], start: int, end: int) -> Clause | None:
        """The phrases from `start` to `end` as a clause."""
        match = self.clauses.fullmatch(signs, start, end)
        return Clause(self.rows[int(str(match.lastgroup)[1:])], found[start:end], start) if match else None


@cache
def grammar() -> Grammar:
    table = yaml.safe_load(Path(__file__).with_name("grammar.yaml").read_text(encoding="utf-8"))
    signs = {kind: chr(0xF000 + i) for i, kind in enumerate(dict.fromkeys(table["phrases"]))}
    short = table["short"]

    def spelled(pattern: str) -> str:
        return _NAME.sub(lambda name: f"({spelled(short[name[0]])})" if name[0] in short else name[0], pattern)

    def compiled(pattern: str) -> str:
        return _NAME.sub(one, re.sub(r"\((?!\?)", "(?:", spelled(pattern))).replace(" ", "")

    def one(name: re.Match) -> str:
        characters = signs.get(name[0]) or lexicon().signs_of(name[0])
        if not characters:
            raise ValueError(f"grammar.yaml: no word and no phrase is called {name[0]}")
        return characters if len(characters) == 1 else f"[{characters}]"

    around = set(_NAME.findall(spelled(f"{table['lead']} {table['tail']}")))
    rows: list[Row] = []
    heads: dict[str, list[str]] = {}
    for name, given in table["clauses"].items():
        rule, *marks = name.split(", ")
        for row in given:
            pattern = row.removeprefix("~")
            names = around | set(_NAME.findall(spelled(pattern)))
            head, _, rest = pattern.partition(" ") if re.match(r"[A-Za-z]+ ", pattern) else ("", "", pattern)
            heads.setdefault(head, []).append(f"(?P<r{len(rows)}>{compiled(rest)})")
            rows.append(Row(rule, frozenset(marks), row, row.startswith(("S ", "~")), frozenset(names)))
    clauses = "|".join(f"{compiled(head)}(?:{'|'.join(rests)})" for head, rests in heads.items())
    return Grammar(
        [(kind, signs[kind], re.compile("|".join(map(compiled, r)) or "(?!)")) for kind, r in table["phrases"].items()],
        frozenset(table["adjuncts"]),
        re.compile(f"(?:{compiled(table['lead'])})?(?:{clauses})(?:{compiled(table['tail'])})"),
        rows,
        re.compile(compiled(table["joints"])),
    )


_NAME = re.compile("[A-Za-z]+")


def phrases_of(words: Sequence[Word]) -> list[Phrase]:
    """The words of a sentence as phrases; each stage of the table builds on those before it."""
    found = [Phrase("word", word.sign, word=word) for word in words]
    signs = "".join(word.sign for word in words)
    table = grammar()
    for kind, sign, pattern in table.phrases:
        built: list[Phrase] = []
        end = 0
        for match in pattern.finditer(signs):
            built += found[end : match.start()]
            end = match.end()
            built.append(Phrase(kind, sign, found[match.start() : end]))
        found = built + found[end:] if end else found
        if kind == "Adjuncts":
            found = _attached(found)
        if end or kind == "Adjuncts":
            signs = "".join(phrase.sign for phrase in found)
    return found


_MARKS = (",", ";", "and", "but", "or", "while", "whereas", "although")


def _attached(found: list[Phrase]) -> list[Phrase]:
    """The phrases without their adjuncts and the commas that set those off; each is kept by a neighbour."""
    adjuncts = grammar().adjuncts
    kept: list[Phrase] = []
    waiting: list[Phrase] = []
    rest = deque(found)
    while rest:
        phrase = rest.popleft()
        if phrase.kind not in adjuncts:
            phrase.adjuncts += waiting
            waiting = []
            kept.append(phrase)
            continue
        after = next((_mark(other) for other in rest if other.kind not in adjuncts), ",")
        opened = len(kept) > 1 and _mark(kept[-1]) == ","
        between = opened and after == ","
        if between:
            kept.pop()
        at_head = not kept or _mark(kept[-1])
        if (between or (at_head and not opened)) and rest and rest[0].word and rest[0].word.text in (",", ":"):
            rest.popleft()
        (waiting if at_head else kept[-1].adjuncts).append(phrase)
    if waiting and kept:
        kept[-1].adjuncts += waiting
    return kept


def _mark(phrase: Phrase) -> str:
    return phrase.word.text if phrase.word is not None and phrase.word.text in _MARKS else ""


def _closed(phrase: Phrase) -> bool:
    """Whether the phrase has taken in the comma that ends it."""
    return phrase.word is None and [word.text for word in phrase.leaves()][-1] == ","


def strict(found: list[Phrase]) -> list[list[Clause]]:
    """Every way to read a sentence as the fewest clauses, of these those parted by a comma or more than `and`."""
    if len(found) > LONGEST:
        return []
    signs = "".join(phrase.sign for phrase in found)
    table = grammar()
    starts = [(0, 0), *(match.span() for match in table.joints.finditer(signs))]
    ends = [*(start for start, _ in starts if start), len(signs)]
    best: dict[int, tuple[tuple[int, int], list[list[Clause]]]] = {0: ((0, 0), [[]])}
    for joint, start in starts:
        if joint not in best or any(phrase.adjuncts for phrase in found[joint:start]):
            continue
        (clauses, bare), parses = best[joint]
        cost = (
            clauses + 1,
            bare + (start - joint == 1 and _mark(found[joint]) == "and" and not _closed(found[joint - 1])),
        )
        for end in ends:
            worse = end <= start or (end in best and best[end][0] < cost)
            if not worse and (clause := table.clause(signs, found, start, end)):
                longer = [[*parse, clause] for parse in parses]
                known = best[end][1] if end in best and best[end][0] == cost else []
                best[end] = (cost, [*known, *longer][:4])
    return best[len(signs)][1] if len(signs) in best else []


_DENIALS = ("no", "not", "neither", "none", "nothing", "nolonger", "negative", "lacks", "absent", "absence", "unlikely")


def lenient(found: list[Phrase]) -> list[Clause]:
    """The clauses that cover most of a sentence; those beside a denial that none covers are left out with it."""
    if len(found) > LONGEST:
        return lenient(found[:LONGEST]) + lenient(found[LONGEST:])
    signs = "".join(phrase.sign for phrase in found)
    table = grammar()
    best: list[tuple[float, list[Clause]]] = [(0, []), *((-1, []) for _ in found)]
    for start in range(len(found)):
        score, clauses = best[start]
        best[start + 1] = max(best[start + 1], (score, clauses), key=lambda cover: cover[0])
        for end in range(start + 1, len(found) + 1):
            if clause := table.clause(signs, found, start, end):
                cover = (score + end - start - 0.5, [*clauses, clause])
                best[end] = max(best[end], cover, key=lambda cover: cover[0])
    clauses = best[-1][1]
    read = {i for clause in clauses for i in range(clause.start, clause.start + len(clause.parts))}
    denied = {i for i, phrase in enumerate(found) if i not in read and any(phrase.roles(role) for role in _DENIALS)}
    beside = {i + step for i in denied for step in (-1, 1)}
    return [c for c in clauses if not beside & {c.start, c.start + len(c.parts) - 1}]
