"""Puts a JSON value that stands in an answer's place into words."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

_NAME_KEYS = ("finding", "abnormality", "name", "label")
_STATE_KEYS = ("status", "change", "state", "present", "presence", "probability")
"""Keys of an object about one finding."""
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
"""The comma after the last item: JSON does not allow it, models write it."""
_ANSWER_KEYS = (
    "final answer",
    "answer",
    "response",
    "output",
    "result",
    "text",
    "content",
    "message",
    "choices",
    "value",
)
"""Keys of an object whose value is the answer; `content`, `message` and `choices` are a chat server's."""


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


def _state(value: Any) -> str | None:
    """A text as it is; true and a probability of at least a half are yes, false and any other no; else None."""
    if isinstance(value, str):
        return value
    is_share = isinstance(value, int | float) and 0 <= value <= 1
    return ("yes" if value >= 0.5 else "no") if is_share else None


def _state_of(values: dict[str, Any]) -> str | None:
    """The state that an object gives of one finding, under whichever key."""
    return next((state for key in _STATE_KEYS if (state := _state(values.get(key)))), None)


def _phrases(value: Any) -> Iterator[str]:
    """The phrases of a JSON value: `{"new": ["a", "b"]}` as `new: a, b`, `{"a": false}` as `a: no`."""
    if isinstance(value, dict):
        values = {str(key).lower().replace("_", " "): item for key, item in value.items()}
        state = _state_of(values)
        name_values = [values[key] for key in _NAME_KEYS if isinstance(values.get(key), str)]
        if state and (name_values or len(values) == 1):
            yield ": ".join([*name_values[:1], state])
            return
        for before, after in (("from", "to"), ("before", "after")):
            if {before, after} <= values.keys():
                rest = " ".join(str(item) for key, item in values.items() if key not in (before, after))
                yield f"{rest} has changed from {values[before]} to {values[after]}"
                return
        if answers := [values[key] for key in _ANSWER_KEYS if values.get(key) is not None]:
            yield from _phrases(answers[0])  # not its explanation
            return
        for key, item in values.items():
            if isinstance(item, dict) and item.keys() == {"reference", "main"}:
                yield f"{key}: {item['reference']} -> {item['main']}"
                continue
            item = _state_of(item) or item if isinstance(item, dict) else _state(item) or item
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
