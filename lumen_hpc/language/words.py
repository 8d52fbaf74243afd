"""Cuts a text into words and set phrases, each with the roles it can play in a sentence (vocabulary.yaml)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from lumen_hpc.language.durations import in_days

LONGEST = 4000
"""Characters of a text that are read; no answer of the dataset has a tenth of them."""
_LONGEST_PHRASE = 8


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
    tokens = normal(text).split()
    table = lexicon()
    phrases = _with_names(names, ahead) if names else table.of(ahead)
    found, i = [], 0
    while i < len(tokens):
        longest = _LONGEST_PHRASE if names else table.longest.get(tokens[i], 1)
        for n in range(min(longest, len(tokens) - i), 0, -1):
            if word := phrases.get(" ".join(tokens[i : i + n])):
                break
        else:
            number = tokens[i].isdigit() and tokens[i].isascii()
            roles = {"number": tokens[i]} if number else {}
            n, word = 1, Word(tokens[i], roles, table.signs[frozenset(roles)])
        found.append(word)
        i += n
    return found


def normal(text: str) -> str:
    """Lower case, hyphens as blanks, contractions in full, punctuation apart, spans of time in days.

    A character that is neither a letter, a digit nor punctuation of a plain sentence stands alone, unknown to all.
    """
    text = text[:LONGEST].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = re.sub(r"(?<=[a-z0-9])[-\N{NON-BREAKING HYPHEN}](?=[a-z])", " ", text)
    text = re.sub(r"\bcan't\b|\bcannot\b", "can not", text)
    text = text.replace("won't", "will not")
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"\b(there|it|that|here)'s\b", r"\1 is", text)
    text = re.sub(r"(?<=[a-z])'s?(?= |$|[.,;:])", lambda found: "s" if "s" in found[0] else "", text)
    text = re.sub(r"\b(vs|cf)\.|\bi\. ?e\.", lambda found: found[1] or "ie", text)
    text = re.sub(r"[^a-z0-9 ]", r" \g<0> ", text)
    return " ".join(in_days(" ".join(text.split())).split())


def tidied(text: str) -> str:
    """A text as plain sentences for the lenient reading: bullets and lines as sentences, slashes as `and`."""
    text = re.sub(r"\s*[\n\r]+\s*(?:[-*\N{BULLET}+]|\d+[.)])?\s*", " . ", f"\n{text[:LONGEST]}")
    text = re.sub(r"[/&+]", " and ", re.sub(r"[?!\N{BULLET}*]", " . ", text))
    return re.sub(r"[^\w\s.,;:()'\N{RIGHT SINGLE QUOTATION MARK}-]", " ", text).lstrip(" .")


@dataclass(frozen=True, slots=True)
class Lexicon:
    phrases: dict[str, Word]
    ahead: dict[str, Word]
    """The same where a text speaks of the future: what is today is the reference."""
    signs: dict[frozenset[str], str]
    longest: dict[str, int]
    """Words of the longest phrase that begins with a word."""

    def of(self, ahead: bool) -> dict[str, Word]:
        """The phrases of a text that looks ahead, or of one that does not."""
        return self.ahead if ahead else self.phrases

    def signs_of(self, role: str) -> str:
        """The signs of all words that can play a role."""
        return "".join(sign for roles, sign in self.signs.items() if role in roles)


@cache
def lexicon() -> Lexicon:
    roles: dict[str, dict[str, str]] = {}
    for role, value, phrase in _entries():
        given = roles.setdefault(phrase, {})
        given[role] = f"{given[role]}/{value}" if role in given and value not in ("", given[role]) else value or phrase
    alone = [frozenset([role]) for role in ("finding", "lvl", "type", "place", "number")]
    ahead = {
        text: {_AHEAD.get(role, role): value for role, value in given.items() if role != "then"}
        for text, given in roles.items()
    }
    sets = dict.fromkeys([frozenset(), *alone, *map(frozenset, roles.values()), *map(frozenset, ahead.values())])
    signs = {kinds: chr(0xE000 + i) for i, kinds in enumerate(sets)}
    phrases, later = (
        {phrase: Word(phrase, given, signs[frozenset(given)]) for phrase, given in table.items()}
        for table in (roles, ahead)
    )
    longest: dict[str, int] = {}
    for tokens in map(str.split, roles):
        longest[tokens[0]] = max(len(tokens), longest.get(tokens[0], 1))
    return Lexicon(phrases, later, signs, longest)


_AHEAD = {"now": "then", "today": "ref", "todays": "refs"}


@lru_cache(maxsize=256)
def _with_names(names: Names, ahead: bool) -> dict[str, Word]:
    """The vocabulary with more names, in the singular or plural; a finding of two words also turned round."""
    table = lexicon()
    phrases = dict(table.of(ahead))
    for role, name in names:
        given = normal(name).split()
        for order in (given, given[::-1]) if len(given) == 2 and role == "finding" else (given,):
            for ending in ("", "s", "es") if given else ():
                phrase = " ".join(order) + ending
                phrases[phrase] = Word(phrase, {role: name}, table.signs[frozenset([role])])
    return phrases


@cache
def vocabulary() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8"))


def _entries() -> Iterator[tuple[str, str, str]]:
    """(role, what it stands for or "", phrase) of every entry of vocabulary.yaml."""
    snippets = vocabulary()["snippets"]
    for role, group in vocabulary()["words"].items():
        for value, pattern in (group if isinstance(group, dict) else {"": group}).items():
            for name, text in snippets.items():
                pattern = pattern.replace(f"{{{name}}}", text)
            for phrase in spelled(pattern):
                yield role, value, phrase
    for finding, (organ, diseased) in vocabulary()["organs"].items():
        yield from (("organ", finding, phrase) for phrase in spelled(organ))
        yield from (("diseased", "", phrase) for phrase in spelled(diseased))
    for event, verbs in vocabulary()["verbs"].items():
        for verb in verbs.split(", "):
            for form, phrase in _inflected(*verb.split("/")):
                yield form, event, phrase


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


def spelled(pattern: str) -> list[str]:
    """Every phrase that a pattern of words, `(a|b)`, `[ab]` and `?` stands for."""
    if len(choices := _cut(pattern)) > 1:
        return list(dict.fromkeys(phrase for choice in choices for phrase in spelled(choice)))
    if not (part := _CHOICE.search(pattern)):
        return [" ".join(pattern.split())]
    before, after = pattern[: part.start()], pattern[part.end() :]
    choices = part["one"].split("|") if part["one"] else list(part["letters"] or part["letter"])
    choices = [""] * bool(part["maybe"]) + choices
    return list(dict.fromkeys(phrase for choice in choices for phrase in spelled(before + choice + after)))


_CHOICE = re.compile(r"(?:\((?P<one>[^()]*)\)|\[(?P<letters>[^]]*)\]|(?P<letter>[\w ])(?=\?))(?P<maybe>\?)?")


def _cut(pattern: str) -> list[str]:
    """A pattern cut at the bars that stand in no bracket."""
    parts, depth = [""], 0
    for character in pattern:
        depth += (character in "([") - (character in ")]")
        if character == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


@lru_cache(maxsize=1 << 12)
def unknown(text: str) -> tuple[str, ...]:
    """The words of a text that the vocabulary does not hold."""
    return tuple(word.text for word in words(text) if not word.roles)


@lru_cache(maxsize=1 << 12)
def knows(name: str) -> bool:
    """True if the vocabulary has a finding for the whole of this name, attributes like sides aside."""
    found = words(name)
    return all(word.roles for word in found) and any("finding" in word.roles for word in found)
