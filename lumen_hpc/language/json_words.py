"""What a value of JSON that stands in an answer's place says, in words."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

_NAME_KEYS, _STATE_KEYS = ("finding", "abnormality", "name"), ("status", "change", "state")
"""Keys of an object that says something of one finding."""
_LAST_COMMA = re.compile(r",(?=\s*[}\]])")
"""The comma after the last item, which JSON does not allow and models write."""
_ANSWERS = ("final answer", "answer", "response", "output", "result", "text", "content", "message", "choices")
"""Keys of an object whose value is the answer; the last three are a chat server's."""


def json_value(text: str) -> Any:
    """The list or object that a whole text is, in JSON or as Python writes it; None for any other text."""
    if text[:1] not in ("{", "["):
        return None
    for parse, written in ((json.loads, text), (ast.literal_eval, text), (json.loads, _LAST_COMMA.sub("", text))):
        try:
            value = parse(written)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, dict | list) else None
    return None


def in_words(value: Any) -> str:
    """What a value of JSON that stands in an answer's place says; the items of a list are a list of names."""
    return ", ".join(_phrases(value))


def in_sentences(value: Any) -> str:
    """What a value of JSON says, a line for each thing that it says."""
    return ".\n".join(_phrases(value))


def _phrases(value: Any) -> Iterator[str]:
    """What a value of JSON says, in words: `{"new": ["a", "b"]}` as `new: a, b`, `{"a": false}` as `a: no`."""
    if isinstance(value, dict):
        named = {str(key).lower().replace("_", " "): each for key, each in value.items()}
        states = [named[key] for key in _STATE_KEYS if isinstance(named.get(key), str)]
        names = [named[key] for key in _NAME_KEYS if isinstance(named.get(key), str)]
        if states and names:
            yield f"{names[0]}: {states[0]}"
            return
        if {"from", "to"} <= named.keys():
            rest = " ".join(str(each) for key, each in named.items() if key not in ("from", "to"))
            yield f"{rest} has changed from {named['from']} to {named['to']}"
            return
        if answers := [named[key] for key in _ANSWERS if named.get(key) is not None]:
            yield from _phrases(answers[0])  # not its explanation
            return
        for key, each in named.items():
            words = list(_phrases(each))
            parts = each if isinstance(each, list) else [each]
            if any(isinstance(part, dict | list) for part in parts):
                yield from words
            elif words:
                yield f"{key}: {', '.join(words)}"
    elif isinstance(value, list):
        for each in value:
            yield from _phrases(each)
    elif isinstance(value, bool):
        yield "yes" if value else "no"
    elif value is not None:
        yield str(value)
