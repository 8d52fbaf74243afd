"""Parses sentences by the tables of grammar.yaml: words into phrases, phrases into clauses, clauses into a sentence.

A cascade of patterns, each over one character a word or phrase. Every word of a sentence belongs to exactly one
phrase and every phrase to one clause, or there is no parse. The time is bounded: a sentence has at most `LONGEST`
phrases, and no pattern nests a repetition in another over the same phrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path

import yaml

from lumen_hpc.language.words import Word, lexicon

NOUNS = ("N", "Turn", "Any", "Change")
"""Phrases of what a clause speaks of."""
LONGEST = 60
"""Phrases of a sentence that is read."""


@dataclass(slots=True)
class Phrase:
    """A word or phrase of a sentence, with its parts."""

    kind: str
    sign: str
    parts: Sequence[Phrase] = ()
    word: Word | None = None
    row: int = 0
    """Which row of its kind's table it fits."""
    adjuncts: list[Phrase] = field(default_factory=list)
    """Phrases of place, time and comparison that stood beside it."""

    words: tuple[Word, ...] = field(init=False)
    """Its words in order, without those of its adjuncts."""

    def __post_init__(self) -> None:
        self.words = (self.word,) if self.word is not None else tuple(chain.from_iterable(p.words for p in self.parts))

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
        return [word.roles[role] for word in self.words if role in word.roles]

    def has(self, *roles: str) -> bool:
        """Whether one of its words can play one of these roles."""
        return not all(word.roles.keys().isdisjoint(roles) for word in self.words)

    @property
    def own(self) -> dict[str, str]:
        """The roles that it can play, if it is a word."""
        return self.word.roles if self.word is not None else {}

    @property
    def texts(self) -> set[str]:
        """Its words."""
        return {word.text for word in self.words}


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

    @property
    def whole(self) -> Phrase:
        """All of it as one phrase."""
        return Phrase("", "", self.parts)

    @property
    def bare(self) -> Phrase:
        """Its words that are no part of a smaller phrase."""
        return Phrase("", "", [part for part in self.parts if part.word is not None])

    @property
    def names_findings(self) -> bool:
        """It names what it speaks of, be it only as a finding or a change."""
        return any(part.kind in NOUNS for part in self.parts)


@dataclass(frozen=True, slots=True)
class Grammar:
    phrases: list[tuple[str, str, re.Pattern]]
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
    signs = {kind: chr(0xF000 + i) for i, kind in enumerate(table["phrases"])}
    short = table["short"]

    def spelled(pattern: str) -> str:
        return _NAME.sub(lambda name: f"({spelled(short[name[0]])})" if name[0] in short else name[0], pattern)

    def compiled(pattern: str) -> str:
        return _NAME.sub(one, re.sub(r"\((?!\?)", "(?:", spelled(pattern))).replace(" ", "")

    def one(name: re.Match) -> str:
        characters = signs.get(name[0]) or lexicon().signs_of(name[0])
        if not characters:
            raise ValueError(f"grammar.yaml: no word and no phrase is called {name[0]}")
        return f"[{characters}]"

    around = set(_NAME.findall(spelled(f"{table['lead']} {table['tail']}")))
    rows: list[Row] = []
    heads: dict[str, list[str]] = {}
    for name, patterns in table["clauses"].items():
        rule, *marks = name.split(", ")
        for row in patterns:
            pattern = row.removeprefix("~")
            head, _, rest = pattern.partition(" ") if re.match(r"[A-Za-z]+ ", pattern) else ("", "", pattern)
            heads.setdefault(head, []).append(f"(?P<r{len(rows)}>{compiled(rest)})")
            names = around | set(_NAME.findall(spelled(pattern)))
            rows.append(Row(rule, frozenset(marks), row, row.startswith(("S ", "~")), frozenset(names)))
    clauses = "|".join(f"{compiled(head)}(?:{'|'.join(rests)})" for head, rests in heads.items())
    return Grammar(
        [
            (kind, sign, re.compile("|".join(f"({compiled(row)})" for row in table["phrases"][kind])))
            for kind, sign in signs.items()
        ],
        re.compile(f"(?:{compiled(table['lead'])})?(?:{clauses})(?:{compiled(table['tail'])})"),
        rows,
        re.compile(compiled(table["joints"])),
    )


_NAME = re.compile("[A-Za-z]+")


def phrases_of(words: Sequence[Word]) -> list[Phrase]:
    """The words of a sentence as phrases; each stage of the table builds on those before it."""
    found = [Phrase("word", word.sign, word=word) for word in words]
    signs = "".join(word.sign for word in words)
    for kind, sign, pattern in grammar().phrases:
        built: list[Phrase] = []
        end = 0
        for match in pattern.finditer(signs):
            parts = found[match.start() : match.end()]
            built += [*found[end : match.start()], Phrase(kind, sign, parts, row=int(match.lastindex or 0))]
            end = match.end()
        if end:
            found = built + found[end:]
            found = _attached(found) if kind == "Adjuncts" else found
            signs = "".join(phrase.sign for phrase in found)
    return found


_MARKS = {"comma", "semicolon", "colon", "and", "but", "or"}


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
            keeper = kept[-1].adjuncts if kept and not kept[-1].own.keys() & _MARKS else waiting
            keeper += [part for part in phrase.parts if part.word is None]
    if kept:
        kept[-1].adjuncts += waiting
    return kept


def strict(found: list[Phrase]) -> list[list[Clause]]:
    """Every way to read a sentence as the fewest clauses, of these those parted by a comma or more than `and`."""
    if len(found) > LONGEST:
        return []
    signs = "".join(phrase.sign for phrase in found)
    table = grammar()
    starts = [(0, 0), *(match.span() for match in table.joints.finditer(signs))]
    ends = [*(joint for joint, _ in starts if joint), len(signs)]
    best: dict[int, list[tuple[int, int, list[Clause]]]] = {0: [(0, 0, [])]}
    for joint, start in starts:
        if joint not in best or any(phrase.adjuncts for phrase in found[joint:start]):
            continue
        bare = start - joint == 1 and "and" in found[joint].own
        for end in ends:
            if end > start and (clause := table.clause(signs, found, start, end)):
                longer = [(clauses + 1, bares + bare, [*parse, clause]) for clauses, bares, parse in best[joint]]
                known = best.get(end, []) + longer
                best[end] = [parse for parse in known if parse[:2] == min(parse[:2] for parse in known)][:4]
    return [parse for *_, parse in best.get(len(signs), [])]


_TURNING = ("no", "not", "notso", "neither", "none", "nothing", "nolonger", "negative", "lacks", "absent", "absence")
"""Words that turn what stands beside them, where no clause holds them."""


_DOUBTING = ("hedge", "modal", "couldbe")


def lenient(found: list[Phrase], certain: bool) -> list[Clause]:
    """The clauses that cover most of a sentence, without those beside a denial that none covers.

    `certain`: nor those beside a word of doubt.
    """
    if len(found) > LONGEST:
        return lenient(found[:LONGEST], certain) + lenient(found[LONGEST:], certain)
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
    unread = set(range(len(found))) - {c.start + i for c in clauses for i in range(len(c.parts))}
    turning = (*_TURNING, "unlikely", "if", *(_DOUBTING if certain else ()))
    denied = {i for i in unread if found[i].has(*turning)}
    beside = {i + step for i in denied for step in (-1, 1)}
    beside |= {
        i + 1 for i in beside & unread if i - 1 in denied and not found[i].own.keys() & _MARKS
    }  # nor will it be seen
    return [c for c in clauses if not beside & {c.start, c.start + len(c.parts) - 1}]
