"""Cuts a text into words and set phrases, each with the roles it can play in a sentence (vocabulary.yaml)."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lumen_hpc.language.durations import in_days
from lumen_hpc.language.unwrapping import unwrap

MOST_CHARACTERS = 4000
"""Characters of a text that are read; no answer of the dataset has a tenth of them."""


class Word(NamedTuple):
    """A word or set phrase.

    `roles`: the roles that it can play, with its value in each; empty for an unknown word. `sign`: one character for
    its set of roles; the patterns of the grammar match over these characters.
    """

    text: str
    roles: dict[str, str]
    sign: str


Names = tuple[tuple[str, str], ...]
"""(role, words) of names that a question or short answer uses beyond the vocabulary."""


def words(text: str, names: Names = (), ahead: bool = False) -> list[Word]:
    """The words of a text, the longest set phrase first; `ahead`: today's image is its reference."""
    tokens = _normalize(text).split()
    phrase_table = _phrase_table(names, ahead)
    cut_words, i = [], 0
    while i < len(tokens):
        prefixes = itertools.takewhile(phrase_table.__contains__, itertools.accumulate(tokens[i:], "{} {}".format))
        phrase = max(filter(phrase_table.get, prefixes), key=len, default=tokens[i])
        cut_words.append(
            phrase_table.get(phrase) or _word(phrase, {"number": phrase} if re.match("[0-9]+$", phrase) else {})
        )
        i += 1 + phrase.count(" ")
    return cut_words


@lru_cache(maxsize=1 << 12)
def _normalize(text: str) -> str:
    """A text with its words and signs apart, as the vocabulary spells them."""
    return in_days(" ".join(_respell("spelling", text[:MOST_CHARACTERS].lower()).split()))


def numbers_of(text: str) -> frozenset[str]:
    """The numbers in a text, those of hours, months and years with their unit."""
    return frozenset(re.findall(r"(?<!\S)[0-9]+(?: (?:hours|months|years))?(?!\S)", _normalize(text)))


_DENIED_FINDING = re.compile(
    r"(?:(?:^|(?<=[.,;:\n])) *"
    r"(?:(?:this|it|that|these) (?:is|are)(?: not|n['\u2019]t)|(?:it|that)['\u2019]s not|(?:but )?not)"
    r"| (?:rather than|instead of|and not)) (?:an? )?([a-z]+(?: [a-z]+)?)"
    r"(?= *(?:[.;\n]|,(?! (?:is|are|has|have)\b)|$|but\b))"
    r"|(?:^|(?<=[.,;:\n])) *([a-z]+(?: [a-z]+)?) (?:absent|not (?:seen|present|visible|identified))(?= *(?:[.,;\n]|$))",
    re.IGNORECASE,
)
"""`not edema`, `It is not edema`, `pneumonia rather than edema` and `edema absent`, at the end of a clause."""


_PROBABILITY = re.compile(
    r"((?:^|[,;.\n]) *(?:[-*] )?)([a-z]+(?: [a-z]+)?)(?: ?[:=(] ?| )(\d{1,3}(?:\.\d+)?|\.\d+) ?(%?)\)?"
    r"(?= *(?:[,;\n]|\. |\.?$))",
    re.IGNORECASE,
)
"""`edema: 0.93`, `effusion 2%`"""


def tidy(text: str) -> str:
    """A text as plain sentences for the lenient reading."""
    plain_text = _PROBABILITY.sub(_spell_probability, unwrap(text)[:MOST_CHARACTERS])
    plain_text = _DENIED_FINDING.sub(_spell_denial, plain_text)
    return _respell("notes", f"\n{plain_text}").lstrip(" .")


def _spell_denial(denial: re.Match[str]) -> str:
    """A denial of one finding as a sentence of its own; of anything else as it stands."""
    name = _only_finding(denial[1] or denial[2])
    return f" . There is no {name} " if name else denial[0]


def _spell_probability(note: re.Match[str]) -> str:
    """A finding with a probability of at least a half as present, with a lower one as absent."""
    name, share = _only_finding(note[2]), float(note[3]) / (100 if note[4] else 1)
    return note[0] if not name or share > 1 else f"{note[1]}{name} is {'present' if share >= 0.5 else 'absent'} . "


def _only_finding(text: str) -> str:
    """The finding that a text consists of; empty for any other text."""
    name_words = words(text)
    return name_words[0].text if len(name_words) == 1 and "finding" in name_words[0].roles else ""


def _respell(table: str, text: str) -> str:
    for pattern, spelling in _respellings(table):
        text = pattern.sub(spelling, text)
    return text


@cache
def _respellings(table: str) -> list[tuple[re.Pattern[str], str]]:
    """(pattern, spelling) of each row of `spelling` or `notes`; those of notes are read in either case, by lines."""
    flags = re.IGNORECASE | re.MULTILINE if table == "notes" else re.NOFLAG
    return [(re.compile(_expand_pieces(pattern), flags), spelling) for pattern, spelling in vocabulary()[table].items()]


def _expand_pieces(pattern: str) -> str:
    """A pattern of notes with its pieces in full."""
    pieces = vocabulary()["pieces"]
    return re.sub(r"\{([a-z_]+)\}", lambda name: f"(?:{_expand_pieces(pieces[name[1]])})", pattern)


@lru_cache(maxsize=64)
def _phrase_table(names: Names, ahead: bool) -> dict[str, Word | None]:
    """All phrases; None for text that only begins one.

    Names are in the singular or plural, a finding of two words also turned round.
    """
    phrase_table = _phrase_table((), ahead).copy() if names else {}
    new_phrases = {} if names else dict(_roles(ahead))
    for role, name in names:
        name_words = _normalize(name).split()
        for order in (name_words, name_words[::-1]) if len(name_words) == 2 and role == "finding" else (name_words,):
            new_phrases |= {" ".join(order) + ending: {role: name} for ending in ("", "s", "es") if name_words}
    for phrase, roles in new_phrases.items():
        for prefix in itertools.accumulate(phrase.split(), "{} {}".format):
            phrase_table.setdefault(prefix)
        phrase_table[phrase] = _word(phrase, roles)
    return phrase_table


@cache
def _roles(ahead: bool) -> dict[str, dict[str, str]]:
    """The roles of all words and set phrases."""
    roles_by_phrase: dict[str, dict[str, str]] = defaultdict(dict)
    for role, value, phrase in _entries():
        roles = roles_by_phrase[phrase]
        if name := (role.split("|") * 2)[ahead]:
            roles[name] = value if roles.get(name, value) == value else f"{roles[name]}/{value}"
    return roles_by_phrase


@cache
def signs() -> dict[frozenset[str], str]:
    """One character for each set of roles that a word can have, names beyond the vocabulary included."""
    names = [{}, *({role: ""} for role in ("finding", "lvl", "type", "place", "number"))]
    sets = dict.fromkeys(map(frozenset, (*names, *_roles(False).values(), *_roles(True).values())))
    return {roles: chr(0xE000 + i) for i, roles in enumerate(sets)}


def _word(text: str, roles: dict[str, str]) -> Word:
    return Word(text, roles, signs()[frozenset(roles)])


@cache
def vocabulary() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8"))


def _entries() -> Iterator[tuple[str, str, str]]:
    """(role, value, phrase) of every entry of vocabulary.yaml."""
    for role, group in vocabulary()["words"].items():
        for value, pattern in (group if isinstance(group, dict) else {"": group}).items():
            for spelled in _expand_pattern(pattern.format_map(vocabulary()["snippets"])):
                phrase = " ".join(spelled.split())
                yield role, str(value or phrase), phrase
    for event, verbs in vocabulary()["verbs"].items():
        for verb in verbs.split(", "):
            for form, phrase in _inflections(*verb.split("/")):
                yield form, event, phrase


def _expand_pattern(pattern: str) -> Iterator[str]:
    """Every phrase that a pattern stands for: `a|b`, where each may hold `(a|b)`, `[ab]` and `?`."""
    for phrase in re.split(r"\|(?![^(]*\))", pattern):
        parts = re.findall(r"(?:\((.*?)\)|\[(.*?)\]|(.))(\??)", phrase)
        choices = (
            [*(_expand_pattern(group) if group else letters or letter), *[""] * len(maybe)]
            for group, letters, letter, maybe in parts
        )
        yield from map("".join, itertools.product(*choices))


def _inflections(base: str, *irregular: str) -> Iterator[tuple[str, str]]:
    """(form, phrase) of a verb: base, -s, past, participle and -ing, the past and participle where irregular."""
    verb, _, rest = base.partition(" ")
    stem = verb.removesuffix("e")
    past_forms = irregular[:2] or (f"{verb[:-1]}ied" if re.search("[^aeiou]y$", verb) else f"{stem}ed",)
    ing = irregular[2] if len(irregular) > 2 else f"{stem}ing"
    third_stem = re.sub("([^aeiou])y$", r"\1ie", verb) if not re.search("(s|x|z|ch|sh|o)$", verb) else f"{verb}e"
    for form, forms in (("base", (verb,)), ("third", (f"{third_stem}s",)), ("done", past_forms), ("going", (ing,))):
        for form_text in forms:
            yield form, f"{form_text} {rest}".strip()


def canonical_name(name: str) -> str:
    """The common name of a finding that has several."""
    return vocabulary()["equal"].get(name, name)


@lru_cache(maxsize=1 << 12)
def unknown_words(text: str) -> tuple[str, ...]:
    """The words of a text that the vocabulary does not hold."""
    return tuple(word.text for word in words(text) if not word.roles)


@lru_cache(maxsize=1 << 12)
def knows(name: str) -> bool:
    """True if the vocabulary has a finding for the whole of this name, attributes like sides aside."""
    name_words = words(name)
    return all(word.roles for word in name_words) and any("finding" in word.roles for word in name_words)
