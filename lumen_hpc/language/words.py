"""Cuts a text into words and set phrases, each with the roles it can play in a sentence (vocabulary.yaml)."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from lumen_hpc.language.durations import in_days
from lumen_hpc.language.unwrapping import unwrapped

LONGEST = 4000
"""Characters of a text that are read; no answer of the dataset has a tenth of them."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word or set phrase."""

    text: str
    roles: dict[str, str]
    """The roles it can play, with what it stands for in each; empty for an unknown word."""
    sign: str
    """One character for its set of roles: the grammar's patterns are matched over these."""


Names = tuple[tuple[str, str], ...]
"""(role, words) of names that a question or short answer uses beyond the vocabulary."""


def words(text: str, names: Names = (), ahead: bool = False) -> list[Word]:
    """The words of a text, longest set phrase first; one that looks `ahead` has today's image as its reference."""
    tokens = _tokens(text)
    known, widest = _known(names, ahead)
    found, i = [], 0
    while i < len(tokens):
        for n in range(widest.get(tokens[i], 1), 0, -1):
            phrase = " ".join(tokens[i : i + n])
            if word := known.get(phrase):
                break
        else:
            word = _word(phrase, {"number": phrase} if phrase.isdigit() and phrase.isascii() else {})
        found.append(word)
        i += n
    return found


def _tokens(text: str) -> list[str]:
    """The words and signs of a text, spelled as the vocabulary spells them."""
    return in_days(" ".join(_respelled("spelling", text[:LONGEST].lower()).split())).split()


def tidied(text: str) -> str:
    """A text as plain sentences for the lenient reading."""
    return _respelled("notes", f"\n{unwrapped(text)[:LONGEST]}").lstrip(" .")


def _respelled(table: str, text: str) -> str:
    for pattern, spelling in vocabulary()[table].items():
        text = re.sub(pattern, spelling, text)
    return text


@lru_cache(maxsize=64)
def _known(names: Names, ahead: bool) -> tuple[dict[str, Word], dict[str, int]]:
    """All phrases, and how many words the longest with a first word has.

    Names are in the singular or plural, a finding of two words also turned round.
    """
    base = _known((), ahead) if names else ({}, {})
    known, widest = base[0].copy(), base[1].copy()
    added = {} if names else dict(_roles(ahead))
    for role, name in names:
        given = _tokens(name)
        for order in (given, given[::-1]) if len(given) == 2 and role == "finding" else (given,):
            added |= {" ".join(order) + ending: {role: name} for ending in ("", "s", "es") if given}
    for phrase, roles in added.items():
        first, *others = phrase.split()
        known[phrase] = _word(phrase, roles)
        widest[first] = max(widest.get(first, 1), 1 + len(others))
    return known, widest


@cache
def _roles(ahead: bool) -> dict[str, dict[str, str]]:
    """The roles of all words and set phrases."""
    table: dict[str, dict[str, str]] = defaultdict(dict)
    for role, value, phrase in _entries():
        roles = table[phrase]
        if name := (role.split("|") * 2)[ahead]:
            roles[name] = value if roles.get(name, value) == value else f"{roles[name]}/{value}"
    return table


@cache
def signs() -> dict[frozenset[str], str]:
    """One character for each set of roles that a word has, be it a name beyond the vocabulary."""
    names = [{}, *({role: ""} for role in ("finding", "lvl", "type", "place", "number"))]
    sets = dict.fromkeys(map(frozenset, (*names, *_roles(False).values(), *_roles(True).values())))
    return {roles: chr(0xE000 + i) for i, roles in enumerate(sets)}


def _word(text: str, roles: dict[str, str]) -> Word:
    return Word(text, roles, signs()[frozenset(roles)])


@cache
def vocabulary() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8"))


def _entries() -> Iterator[tuple[str, str, str]]:
    """(role, what it stands for, phrase) of every entry of vocabulary.yaml."""
    for role, group in vocabulary()["words"].items():
        for value, pattern in (group if isinstance(group, dict) else {"": group}).items():
            for spelled in _spelled(pattern.format_map(vocabulary()["snippets"])):
                phrase = " ".join(spelled.split())
                yield role, str(value or phrase), phrase
    for event, verbs in vocabulary()["verbs"].items():
        for verb in verbs.split(", "):
            for form, phrase in _inflected(*verb.split("/")):
                yield form, event, phrase


def _spelled(pattern: str) -> Iterator[str]:
    """Every phrase that a pattern stands for: `a|b`, where each may hold `(a|b)`, `[ab]` and `?`."""
    for phrase in re.split(r"\|(?![^(]*\))", pattern):
        parts = re.findall(r"(?:\((.*?)\)|\[(.*?)\]|(.))(\??)", phrase)
        choices = (
            [*(_spelled(group) if group else letters or letter), *[""] * len(maybe)]
            for group, letters, letter, maybe in parts
        )
        yield from map("".join, itertools.product(*choices))


def _inflected(base: str, *irregular: str) -> Iterator[tuple[str, str]]:
    """(form, phrase) of a verb: base, -s, past, participle and -ing, the past and participle where irregular."""
    verb, _, rest = base.partition(" ")
    stem = verb.removesuffix("e")
    past = irregular[:2] or (f"{verb[:-1]}ied" if re.search("[^aeiou]y$", verb) else f"{stem}ed",)
    ing = irregular[2] if len(irregular) > 2 else f"{stem}ing"
    third = re.sub("([^aeiou])y$", r"\1ie", verb) if not re.search("(s|x|z|ch|sh|o)$", verb) else f"{verb}e"
    for form, words in (("base", (verb,)), ("third", (f"{third}s",)), ("done", past), ("going", (ing,))):
        for word in words:
            yield form, f"{word} {rest}".strip()


def canonical(name: str) -> str:
    """The one name for a finding that has several."""
    return vocabulary()["equal"].get(name, name)


@lru_cache(maxsize=1 << 12)
def unknown(text: str) -> tuple[str, ...]:
    """The words of a text that the vocabulary does not hold."""
    return tuple(word.text for word in words(text) if not word.roles)


@lru_cache(maxsize=1 << 12)
def knows(name: str) -> bool:
    """True if the vocabulary has a finding for the whole of this name, attributes like sides aside."""
    found = words(name)
    return all(word.roles for word in found) and any("finding" in word.roles for word in found)
