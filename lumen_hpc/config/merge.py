"""Plain values, as YAML and command lines hold them, laid over one another and fitted to the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

Values = dict[str, Any]


class Misfit(Exception):
    """A value that does not fit: its dotted key, and the type of the field there (None: there is no such field)."""

    def __init__(self, key: str, value: Any, kind: Any) -> None:
        super().__init__(key)
        self.key, self.value, self.kind = key, value, kind


def laid_over(below: Values, above: Values) -> Values:
    """Both mappings in a new one: merged key by key where both have a mapping, else the value `above`."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def nested(key: str, value: Any) -> Values:
    """{"a": {"b": value}} of the dotted key a.b."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping with entries."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


hints = functools.cache(typing.get_type_hints)
"""The fields' types of a dataclass, by name."""


def fitted(kind: Any, below: Any, value: Any, key: str = "") -> Any:
    """`value` in the form that a field of type `kind` takes, laid over the plain value `below`. Raises Misfit.

    Sections and mappings are merged by key, lists are replaced; text is converted where a number or a truth value is
    expected, and the other way round.
    """
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        if types.NoneType in options:
            return None if value is None else fitted(options[0], below, value, key)
        if type(value) not in options:
            raise Misfit(key, value, kind)
        return value
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict:
        return _section(kind, below, value, key)
    try:
        if typing.get_origin(kind) is list:
            return [_CONVERSIONS[options[0]](item) for item in _list(value)]
        return value if kind is Any else _CONVERSIONS[kind](value)
    except ValueError:
        raise Misfit(key, value, kind) from None


def _section(kind: Any, below: Any, values: Any, key: str) -> Values:
    """The same for a dataclass or a mapping by name."""
    if not isinstance(values, dict):
        raise Misfit(key, values, kind)
    if dataclasses.is_dataclass(kind):
        merged, kinds = dict(below or dataclasses.asdict(kind())), hints(kind)  # type: ignore[operator,arg-type]
    else:
        merged, kinds = dict(below or {}), dict.fromkeys(values, typing.get_args(kind)[1])
    for name, value in values.items():
        full = f"{key}.{name}" if key else str(name)
        if name not in kinds or not isinstance(name, str):
            raise Misfit(*next(leaves({full: value})), None)
        merged[name] = fitted(kinds[name], merged.get(name), value, full)
    return merged


def built(kind: Any, plain: Any) -> Any:
    """The object of `kind` from plain values that fit it."""
    if isinstance(kind, types.UnionType):
        return plain if plain is None else built(typing.get_args(kind)[0], plain)
    if dataclasses.is_dataclass(kind):
        return kind(**{name: built(inner, plain[name]) for name, inner in hints(kind).items()})  # type: ignore[operator,arg-type]
    if typing.get_origin(kind) is dict:
        return {name: built(typing.get_args(kind)[1], value) for name, value in plain.items()}
    return float(plain) if kind is float else plain  # a default may be written as 80


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if value is None or isinstance(value, dict | list):
        raise ValueError
    return str(value)


def _whole(value: Any) -> int:
    if type(value) not in (int, str):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if type(value) not in (float, int, str):
        raise ValueError
    return float(value)


def _truth(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ValueError from None


_CONVERSIONS: dict[Any, Callable[[Any], Any]] = {str: _text, int: _whole, float: _number, bool: _truth}
