"""Human-readable validation errors: the file that a setting is in, its key, its type, its value."""

from __future__ import annotations

import dataclasses
import difflib
import io
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lumen_hpc.errors import UserError
from lumen_hpc.files import read_bytes

MOST_NESTED = 2000
"""Lists and mappings that may begin within a line of a YAML file; a run's config.yaml has a few dozen."""
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


OTHER_BASE = re.compile(r"(?<![\w.])0\d|\d:\d|\d_\d")
"""A text that may have a number which YAML 1.1 reads in another base than 10."""
SHELL_VARIABLE = re.compile(r"(?<!\\)\$\{(?=[!#]?[A-Z_][A-Z0-9_]*\W)")
"""The beginning of `${NAME}`, `${NAME:-otherwise}` and the like, as a shell reads them."""


def read_yaml(path: Path) -> DictConfig:
    """A file's mapping; UserError of one line if it has none."""
    try:
        text = shallow(read_bytes(path)).decode()
        found = OmegaConf.load(io.StringIO(text))
        if OTHER_BASE.search(text):
            found = OmegaConf.create(as_written(OmegaConf.to_container(found), yaml.load(text, Loader=yaml.BaseLoader)))
        found = of_shell(found) if SHELL_VARIABLE.search(text) else found
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{where}: not readable as YAML: {error.problem}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(found, DictConfig):
        raise UserError(f"{path}: holds no `key: value` lines, but a {type(found).__name__.removesuffix('Config')}")
    return found


def of_shell(values: Any) -> Any:
    """The same configuration, in which `${NAME}` in capitals is the shell's and no reference to another key."""

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: escaped(one) for key, one in value.items()}
        if isinstance(value, list):
            return [escaped(one) for one in value]
        return SHELL_VARIABLE.sub(r"\\${", value) if isinstance(value, str) else value

    return OmegaConf.create(escaped(OmegaConf.to_container(values)))


def as_written(value: Any, text: Any) -> Any:
    """A value of YAML with those numbers as texts that are written otherwise: an account 0123, a time 1:00:00.

    YAML 1.1 reads them as 83 and as 3600. `text` is the same YAML in texts alone.
    """
    if isinstance(value, dict) and isinstance(text, dict) and len(value) == len(text):
        return {key: as_written(one, other) for (key, one), other in zip(value.items(), text.values(), strict=True)}
    if isinstance(value, list) and isinstance(text, list) and len(value) == len(text):
        return [as_written(one, other) for one, other in zip(value, text, strict=True)]
    of_other_base = type(value) in (int, float) and isinstance(text, str) and OTHER_BASE.search(text)
    return text if of_other_base and str(value) != text else value


def shallow(text: bytes) -> bytes:
    """The text of a YAML file; ValueError for one that is nested without end, which would crash libyaml's loader."""
    if sum(text.count(begin) for begin in (b"[", b"{", b"- ", b"? ")) > MOST_NESTED:
        raise ValueError("nested too deeply")
    return text


def require_fits(kind: type, values: DictConfig, source: str, prefix: str = "", also: Iterable[str] = ()) -> None:
    """Raises UserError for the first value that no field of `kind` takes: an unknown key, or another type.

    `prefix` is what keys are called in `source` beyond their names here; `also` are further words that it knows.
    """
    empty = OmegaConf.structured(kind)
    for key, value in leaves(OmegaConf.to_container(values)):
        expected = type_at(kind, key)
        if expected is None:
            names = [name if name in also else prefix + name for name in _similar_keys(kind, key, also)]
            raise UserError(f"{source}: unknown setting '{prefix}{key}'; did you mean {_listed(names)}?")
        one = value
        for part in reversed(key.split(".")):
            one = {part: one}
        try:
            OmegaConf.merge(empty, one)  # unlike OmegaConf.update, it also fills a section whose default is null
        except (OmegaConfBaseException, TypeError):
            shown = "(empty)" if value in ("", None) else value
            takes = _takes(expected)
            if typing.get_origin(expected) is list and isinstance(value, str | int | float):
                takes += f", so {prefix}{key}=[{value}]"
            if ":" in key and value in ("", None):
                takes = f"a mapping with spaces behind its colons: {{{key.rpartition('.')[2].replace(':', ': ')}}}"
            raise UserError(f"{source}: {prefix}{key}={shown}: takes {takes}") from None


def check(settings: Any, prefix: str = "") -> None:
    """Refuses values outside a field's choices or range, wherever they came from."""
    for item in dataclasses.fields(settings):
        value, key = getattr(settings, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            check(value, f"{key}.")
            continue
        if isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
            for name, entry in value.items():
                check(entry, f"{key}.{name}.")
            continue
        several = isinstance(value, dict | list)
        shown, words = f"{key}={value}", list(value) if several else [value]
        for word in words:
            _check_choice(f"{shown}: '{word}' is none of them;" if several else f"{shown}:", word, item.metadata)
        for number in value.values() if isinstance(value, dict) else words:
            _check_range(shown, number, item.metadata)
        least = item.metadata.get("least", 0)
        if "least" in item.metadata and not least <= len(words) == len(set(words)):
            some = "at least one, and " if least else ""
            raise UserError(f"{shown}: takes {some}each once, of {_listed(item.metadata['choices'])}")


def _check_choice(shown: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise UserError(f"{shown} takes one of {_listed(choices)}{similar(str(value), map(str, choices))}")


def _check_range(shown: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    low, high = metadata.get("range", (0, math.inf))
    if not math.isfinite(value):
        raise UserError(f"{shown}: must be a finite number")
    if not low <= value <= high:
        must = (
            f"be from {low:g} to {high:g}" if high < math.inf else f"be at least {low:g}" if low else "not be negative"
        )
        raise UserError(f"{shown}: must {must}")


def similar(word: str, valid: Iterable[str]) -> str:
    """`; did you mean X?` where a valid word is similar."""
    known = {name.casefold(): name for name in valid}
    close = difflib.get_close_matches(word.casefold(), list(known), n=1, cutoff=0.5)
    return f"; did you mean {known[close[0]]}?" if close else ""


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping with entries."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def type_at(kind: Any, key: str) -> Any:
    """The type of a dotted key's value; None for an unknown key."""
    for part in key.split("."):
        if isinstance(kind, types.UnionType):
            kind = typing.get_args(kind)[0]
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(part)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif kind is not Any:
            return kind  # deeper than a plain value goes: its type is what is wrong
    return kind


def _similar_keys(kind: type, key: str, also: Iterable[str]) -> list[str]:
    """Keys that may be meant: of the same name elsewhere, of a similar name, or those of the same section."""
    known = [*also, *keys(kind, key)]
    if corrected := _corrected(kind, key):
        return [corrected]
    above, _, leaf = key.rpartition(".")
    alike = difflib.get_close_matches(key.lstrip("-"), known, n=3, cutoff=0.7)
    elsewhere = [other for other in known if other.endswith(f".{leaf}")]
    beside = [other for other in known if other.rpartition(".")[0] == above]
    return elsewhere[:3] or alike or beside[:12] or known[:12]


def _corrected(kind: Any, key: str) -> str:
    """The key with a section's name corrected; empty where its last part alone is wrong, or too much is."""
    parts: list[str] = []
    for part in key.split("."):
        if dataclasses.is_dataclass(kind):
            names = [item.name for item in dataclasses.fields(kind)]
            close = difflib.get_close_matches(part, names, n=1, cutoff=0.7)
            if not close:
                return ""
            part = close[0]
        parts.append(part)
        kind = type_at(kind, part)
    found = ".".join(parts)
    return found if kind is not None and parts[-1] == key.rpartition(".")[2] else ""


def keys(kind: Any, key: str, prefix: str = "") -> Iterator[str]:
    """Every dotted key, sections included; the entries of a mapping by the name that `key` has for them."""
    for name, inner in typing.get_type_hints(kind).items():
        yield prefix + name
        below = f"{prefix}{name}."
        if typing.get_origin(inner) is dict and (key.startswith(below) or dataclasses.is_dataclass(inner.__args__[1])):
            entry = key.removeprefix(below).split(".")[0] if key.startswith(below) else "KIND"
            inner, below = typing.get_args(inner)[1], f"{below}{entry}."
        if isinstance(inner, types.UnionType):
            inner = typing.get_args(inner)[0]
        if dataclasses.is_dataclass(inner):
            yield from keys(inner, key, below)


def _takes(kind: Any) -> str:
    """What a field of this type takes."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        kind = parts[0]
    if dataclasses.is_dataclass(kind):
        return f"no value of its own, but those of {_listed(item.name for item in dataclasses.fields(kind))}"
    if origin is list:
        return f"a list, each {TYPE_NAMES[parts[0]]}, as in [{'a, b' if parts[0] is str else '1, 2'}]"
    if origin is dict:
        return "a mapping, as in {a: 1}"
    return TYPE_NAMES.get(kind, str(kind))


def _listed(words: Iterable[Any]) -> str:
    return ", ".join(map(str, words))
