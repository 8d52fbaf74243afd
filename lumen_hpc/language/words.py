"""Cuts a text into tags: the finding, side, cue or separator that its words stand for (vocabulary.yaml)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

SEPARATORS = ("comma", "and", "or", "but", "stop")


_ENLARGED = re.compile(
    r"\b(heart|(?:cardiac|heart) silhouette|cardiomediastinum|cardiomediastinal silhouette|mediastinum) "
    r"(is|was|are|appears) ((?:\w+ ){0,2}?)enlarged\b"
)
"""`the heart is not enlarged` speaks of an enlarged heart, which is not there."""


@dataclass(frozen=True, slots=True)
class Tag:
    kind: str
    """finding, any, level, side, place, type, view, a cue, a separator, number, filler, or unknown."""
    value: str
    """The canonical name, or the words themselves."""


def tags(text: str, names: tuple[str, ...] = ()) -> list[Tag]:
    """A text's tags in order; at each place the longest entry of the vocabulary wins, then the earlier one.

    `names` are findings beyond the vocabulary, taken as they stand, in the singular or plural.
    """
    words = normal(text)
    extra = [("finding", name, re.compile(f"(?:{re.escape(normal(name))}(?:e?s)?)(?= |$)")) for name in names]
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


def normal(text: str) -> str:
    """Lower case, hyphens as blanks, contractions written out, punctuation apart, one blank between words."""
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = text.replace("-", " ")
    text = re.sub(r"\b(?:can't|can not)\b", "cannot", text)
    text = re.sub(r"\bwon't\b", "will not", text)
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"\bvs\.", "vs", text)
    text = _ENLARGED.sub(r"enlarged \1 \2 \3present", text)
    text = re.sub(r"([.,;:!?])", r" \1 ", re.sub(r"[()]", " , ", text))
    return " ".join(re.sub(r"[^a-z0-9.,;:!?]", " ", text).split())


def knows(name: str) -> bool:
    """True if the vocabulary has a finding for the whole of this name, attributes like sides aside."""
    kinds = [tag.kind for tag in tags(name)]
    return "unknown" not in kinds and "finding" in kinds


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
    vocabulary = yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8"))
    snippets = vocabulary.pop("snippets")
    for kind, group in vocabulary.items():
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
