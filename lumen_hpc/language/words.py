"""Cuts a text into tags: the finding, side, cue or separator that its words stand for (vocabulary.yaml)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lumen_hpc.language.durations import in_days

SEPARATORS = ("comma", "and", "or", "but", "likewise", "stop")


@dataclass(frozen=True, slots=True)
class Tag:
    kind: str
    """finding, any, level, side, place, type, view, a cue, a separator, number, filler, or unknown."""
    value: str
    """The canonical name, or the words themselves."""


def tags(text: str, names: tuple[str, ...] = ()) -> list[Tag]:
    """A text's tags in order; at each place the longest entry of the vocabulary wins, then the earlier one.

    `names` are findings beyond the vocabulary, in the singular or plural; of two words, also turned round.
    """
    return _tagged(normal(text), names)


def _tagged(words: str, names: tuple[str, ...] = ()) -> list[Tag]:
    extra = [("finding", name, re.compile(f"(?:{_wordings(normal(name))})(?:e?s)?(?= |$)")) for name in names]
    found, position = [], 0
    while position < len(words):
        candidates = (
            (match.end(), kind, value or match[0])
            for kind, value, pattern in (*extra, *_by_first_letter()[words[position]])
            if (match := pattern.match(words, position))
        )
        end, kind, value = max(candidates, key=lambda candidate: candidate[0], default=(0, "", ""))
        if not kind:
            end = words.find(" ", position) % (len(words) + 1)
            kind, value = "unknown", words[position:end]
        found.append(Tag(kind, value))
        position = end + 1
    return found


def _wordings(name: str) -> str:
    """`hypertension pulmonary` is also said the other way round."""
    words = name.split()
    return "|".join(re.escape(" ".join(order)) for order in ((words, words[::-1]) if len(words) == 2 else (words,)))


def normal(text: str) -> str:
    """Lower case, hyphens as blanks, contractions and turns of phrase in plain words, one blank between words."""
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = text.replace("-", " ")
    text = re.sub(r"\b(?:can't|can not)\b", "cannot", text)
    text = re.sub(r"\bwon't\b", "will not", text)
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"\bvs\.", "vs", text)
    text = re.sub(r"([.,;:!?])", r" \1 ", re.sub(r"[()]", " , ", text))
    text = " ".join(re.sub(r"[^a-z0-9.,;:!?]", " ", text).split())
    text = _joined(in_days(text))
    for pattern, plain in _rewordings():
        text = pattern.sub(plain, text)
    return " ".join(text.split())


def _joined(words: str) -> str:
    """`The heart, previously mild, is enlarged` as `the cardiomegaly, previously mild, is present`."""
    for split in _split() * 2:  # of two images it may be told twice
        words = split.pattern.sub(split.joined, words)
    return words


def knows(name: str) -> bool:
    """True if the vocabulary has a finding for the whole of this name, attributes like sides aside."""
    kinds = [tag.kind for tag in tags(name)]
    return "unknown" not in kinds and "finding" in kinds


def equal(name: str) -> str:
    """The finding that a finding is another name for, or itself."""
    return _vocabulary()["equal"].get(name, name)


@cache
def _vocabulary() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8"))


@cache
def _rewordings() -> list[tuple[re.Pattern, str]]:
    return [(re.compile(pattern), plain) for pattern, plain in _vocabulary()["rewordings"]]


_BREAKS = r"[.;:!?]|but|or|nor|with|without|while|whereas|though|although|and(?! (?:is|was|has|had|will|now)\b)"
_WITHIN = rf"(?P<gap>(?:(?! (?:{_BREAKS})(?= |$)) \S+)+?)"
_HEALTHY = r"(?:(?:of|in) )?normal(?: in)?(?: size| sized)?|within normal limits"
_RECOVERED = r"(?:(?:return|revert)(?:ed|s|ing)?|(?:(?:gone|went|go|come|came) )?back) to normal(?: in)?(?: size)?"
_OTHERS = r"(?= |$)(?! (?:heart|cardi|mediast|silhouette))"


@dataclass(frozen=True, slots=True)
class _Split:
    """A finding told as a subject and what it is."""

    name: str
    pattern: re.Pattern
    stands: str
    """present, absent or resolved"""

    def joined(self, found: re.Match) -> str:
        """The finding's name with the rest of the clause, unless another finding is told of in between."""
        other = any(tag.kind == "finding" and tag.value != self.name for tag in _tagged(found["gap"].strip()))
        return found[0] if other else f"{self.name}{found['gap']} {self.stands}"


@cache
def _split() -> list[_Split]:
    found = []
    for name, (subject, predicate) in _vocabulary()["split"].items():
        for told, stands in ((predicate, "present"), (_RECOVERED, "resolved"), (_HEALTHY, "absent")):
            pattern = re.compile(rf"\b(?:{subject}|{name}){_WITHIN} (?:{told}){_OTHERS}")
            found.append(_Split(name, pattern, stands))
    return found


@cache
def _by_first_letter() -> dict[str, list[tuple[str, str, re.Pattern]]]:
    """The vocabulary as (kind, canonical name or "", pattern), under every character an entry can begin with."""
    table: dict[str, list] = {character: [] for character in "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?"}
    for kind, name, pattern in _entries():
        plain = pattern[0].isalpha() and pattern[1:2] not in ("?", "*")
        for character in pattern[0] if plain else table:
            table[character].append((kind, name, re.compile(f"(?:{pattern})(?= |$)")))
    return table


def _entries() -> Iterator[tuple[str, str, str]]:
    """Every alternative of every entry of vocabulary.yaml on its own, so that the longest can be told."""
    snippets = _vocabulary()["snippets"]
    for kind, group in _vocabulary().items():
        if kind in ("snippets", "rewordings", "split", "equal"):
            continue
        named = group if isinstance(group, dict) else {"": group}
        for name, patterns in named.items():
            for alternative in _alternatives("|".join([patterns] if isinstance(patterns, str) else patterns)):
                for snippet, text in snippets.items():
                    alternative = alternative.replace(f"{{{snippet}}}", text)
                yield kind, name, alternative


def _alternatives(pattern: str) -> Iterator[str]:
    """Splits a regular expression at its outermost bars."""
    depth = start = 0
    for i, character in enumerate(pattern):
        depth += (character == "(") - (character == ")")
        if character == "|" and not depth:
            yield pattern[start:i]
            start = i + 1
    yield pattern[start:]
