"""Puts a JSON value that stands in an answer's place into words."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

_NAME_KEYS, _STATE_KEYS = ("finding", "abnormality", "name"), ("status", "change", "state")
"""Keys of an object about one finding."""
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
"""The comma after the last item: JSON does not allow it, models write it."""
_ANSWER_KEYS = ("final answer", "answer", "response", "output", "result", "text", "content", "message", "choices")
"""Keys of an object whose value is the answer; the last three are a chat server's."""


def json_value(text: str) -> Any:
    """The list or object that a whole text is, in JSON or as Python writes it; None for any other text."""
    if text[:1] not in ("{", "["):
        return None
    for parse, source in ((json.loads, text), (ast.literal_eval, text), (json.loads, _TRAILING_COMMA.sub("", text))):
        try:
            value = parse(source)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, dict | list) else None
    return None


def in_words(value: Any) -> str:
    """A JSON value in words; the items of a list are a list of names."""
    return ", ".join(_phrases(value))


def in_sentences(value: Any) -> str:
    """A JSON value in sentences, one per line."""
    return ".\n".join(_phrases(value))


def _phrases(value: Any) -> Iterator[str]:
    """The phrases of a JSON value: `{"new": ["a", "b"]}` as `new: a, b`, `{"a": false}` as `a: no`."""
    if isinstance(value, dict):
        values = {str(key).lower().replace("_", " "): item for key, item in value.items()}
        state_values = [values[key] for key in _STATE_KEYS if isinstance(values.get(key), str)]
        name_values = [values[key] for key in _NAME_KEYS if isinstance(values.get(key), str)]
        if state_values and name_values:
            yield f"{name_values[0]}: {state_values[0]}"
            return
        if {"from", "to"} <= values.keys():
            rest = " ".join(str(item) for key, item in values.items() if key not in ("from", "to"))
            yield f"{rest} has changed from {values['from']} to {values['to']}"
            return
        if answers := [values[key] for key in _ANSWER_KEYS if values.get(key) is not None]:
            yield from _phrases(answers[0])  # not its explanation
            return
        for key, item in values.items():
            phrases = list(_phrases(item))
            parts = item if isinstance(item, list) else [item]
            if any(isinstance(part, dict | list) for part in parts):
                yield from phrases
            elif phrases or item == []:
                yield f"{key}: {', '.join(phrases) or 'none'}"
    elif isinstance(value, list):
        for item in value:
            yield from _phrases(item)
    elif isinstance(value, bool):
        yield "yes" if value else "no"
    elif value is not None:
        yield str(value)
