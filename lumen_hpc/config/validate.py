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

from lumen_hpc.config.fields import field_docs
from lumen_hpc.errors import UserError
from lumen_hpc.files import read_bytes

MOST_NESTED = 2000
"""Lists and mappings that may begin within a line of a YAML file; a run's config.yaml has a few dozen."""
LONGEST_MEANING = 90
"""Characters of a field's docstring that a message shows whole."""
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


OTHER_BASE = re.compile(r"(?<![\w.])0\d|\d:\d|\d_\d")
"""A text that may have a number which YAML 1.1 reads in another base than 10."""
TEXTS: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""Reads every value of YAML as the text that it is; libyaml's where PyYAML was built with it."""
SHELL_VARIABLE = re.compile(r"(?<!\\)\$\{(?=[!#]?[A-Z_][A-Z0-9_]*\W)")
"""The beginning of `${NAME}`, `${NAME:-otherwise}` and the like, as a shell reads them."""


def read_yaml(path: Path, kind: Any = Any) -> DictConfig:
    """A file's mapping; UserError of one line if it has none. `kind` says which of its values are texts."""
    try:
        text = shallow(read_bytes(path)).decode()
        found = OmegaConf.load(io.StringIO(text))
        if kind is not Any or OTHER_BASE.search(text):
            found = OmegaConf.create(as_written(OmegaConf.to_container(found), yaml.load(text, TEXTS), kind))
        found = of_shell(found) if SHELL_VARIABLE.search(text) else found
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start + 1} is no UTF-8: save the file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        problem = str(error.problem)
        problem += ", with a space behind it" * problem.endswith("expected ':'")
        problem = "a tab: YAML is indented with spaces" if mark and "\t" in _indent(text, mark.line) else problem
        raise UserError(f"{path}{where}: not readable as YAML: {problem}") from None
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


def _indent(text: str, number: int) -> str:
    """The white space that a line begins with; the lines count from 0."""
    line = "".join(text.split("\n")[number : number + 1])
    return line[: len(line) - len(line.lstrip())]


def as_written(value: Any, text: Any, kind: Any = Any) -> Any:
    """A value of YAML with those numbers as texts that are written otherwise: an account 0123, a time 1:00:00.

    YAML 1.1 reads them as 83 and as 3600. Where `kind` takes text, so are `3.10`, `true` and `no`, which would become
    3.1, True and False. `text` is the same YAML in texts alone.
    """
    if isinstance(value, dict) and isinstance(text, dict) and len(value) == len(text):
        return {
            name if type(key) in (bool, int, float) else key: as_written(one, other, type_at(kind, name))
            for (key, one), (name, other) in zip(value.items(), text.items(), strict=True)
        }
    if isinstance(value, list) and isinstance(text, list) and len(value) == len(text):
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is list else Any
        return [as_written(one, other, inner) for one, other in zip(value, text, strict=True)]
    if type(value) not in (bool, int, float) or not isinstance(text, str):
        return value
    of_other_base = type(value) is not bool and OTHER_BASE.search(text) and str(value) != text
    return text if kind is str or of_other_base else value


def shallow(text: bytes) -> bytes:
    """The text of a YAML file; ValueError for one that is nested without end, which would crash libyaml's loader."""
    if sum(text.count(begin) for begin in (b"[", b"{", b"- ", b"? ")) > MOST_NESTED:
        raise ValueError("nested too deeply")
    return text


def require_fits(kind: type, values: DictConfig, source: str, prefix: str = "", also: Iterable[str] = ()) -> None:
    """Raises UserError for the first value that no field of `kind` takes: an unknown key, or another type.

    `prefix` is what keys are called in `source` beyond their names here; `also` are further words that it knows.
    """
    empty, plain = OmegaConf.structured(kind), OmegaConf.to_container(values)
    if dotted := next(_dotted(plain), ""):
        nested = ": {".join(dotted.split(".")) + ": …" + "}" * dotted.count(".")
        raise UserError(f"{source}: {dotted}: keys with dots are for a command line; in a file: {nested}")
    for key, value in leaves(plain):
        expected = type_at(kind, key)
        if expected is None:
            before, colon, after = key.partition(":")
            if colon and type_at(kind, before) is not None:
                raise UserError(f"{source}: {prefix}{key}: a space belongs behind the colon: {before}: {after}")
            names = [name if name in also else prefix + name for name in _similar_keys(kind, key, also)]
            raise UserError(f"{source}: unknown setting '{prefix}{key}'; did you mean {_listed(names)}?")
        one = value
        for part in reversed(key.split(".")):
            one = {part: one}
        section, _, name = key.rpartition(".")
        holder = type_at(kind, section) if section else kind
        try:
            OmegaConf.merge(empty, one)  # unlike OmegaConf.update, it also fills a section whose default is null
            fits = holder not in TYPE_NAMES and not _holds_another(value, expected)
        except (OmegaConfBaseException, TypeError):
            fits = False
        if not fits:
            shown = "(empty)" if value in ("", None) else value
            takes = _takes(expected, _choices(holder, name)) + _meaning(holder, name)
            of_list = typing.get_origin(expected) is list and holder != expected
            if of_list and value != "" and isinstance(value, str | int | float):
                takes += f", so {prefix}{key}=[{str(value).strip('()')}]"
            if ":" in key and value in ("", None):
                takes = f"a mapping with spaces behind its colons: {{{name.replace(':', ': ')}}}"
            raise UserError(f"{source}: {prefix}{key}={shown}: takes {takes}")


def _holds_another(value: Any, kind: Any) -> bool:
    """Whether a list or a mapping stands where one value belongs: OmegaConf takes it there, in lists and mappings."""
    if typing.get_origin(kind) is list and isinstance(value, list):
        return any(isinstance(one, list | dict) for one in value)
    return kind in TYPE_NAMES and isinstance(value, list | dict)


def _dotted(values: Any, prefix: str = "") -> Iterator[str]:
    """The keys of a file that have a dot in themselves."""
    for name, value in values.items() if isinstance(values, dict) else ():
        if "." in str(name):
            yield f"{prefix}{name}"
        yield from _dotted(value, f"{prefix}{name}.")


def _choices(section: Any, name: str) -> tuple[Any, ...]:
    """The values that a section's field may have; empty where it has no choices."""
    fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
    return next((item.metadata.get("choices", ()) for item in fields if item.name == name), ())


def _meaning(section: Any, name: str) -> str:
    """What a section's plain field is, in parentheses: its docstring, or the beginning of a long one."""
    if isinstance(section, types.UnionType):
        section = typing.get_args(section)[0]
    if not dataclasses.is_dataclass(section) or dataclasses.is_dataclass(type_at(section, name)):
        return ""
    text = field_docs(section).get(name, "").rstrip(".")  # type: ignore[arg-type]
    text = text if len(text) <= LONGEST_MEANING else re.split(r"[;.] |: ", text)[0]
    name_first = any(character.isupper() for character in text.split(" ")[0][1:])  # AdamW, GPUs
    text = text if name_first else text[:1].lower() + text[1:]
    return f" ({text})" if text else ""


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
        if several and "Any" not in str(item.type):
            _check_flat(key, value)
        shown, words = f"{key}={value}", list(value) if several else [value]
        for word in words:
            _check_choice(f"{shown}: '{word}' is none of them;" if several else f"{shown}:", word, item.metadata)
        for number in value.values() if isinstance(value, dict) else words:
            _check_range(shown, number, item)
        least = item.metadata.get("least", 0)
        if "least" in item.metadata and not least <= len(words) == len(set(words)):
            some = "at least one, and " if least else ""
            raise UserError(f"{shown}: takes {some}each once, of {_listed(item.metadata['choices'])}")


def _check_flat(key: str, value: Any) -> None:
    """Raises UserError for a list or a mapping within a list or a mapping of plain values."""
    inner = value.items() if isinstance(value, dict) else ((None, one) for one in value)
    for name, one in inner:
        if isinstance(one, dict | list):
            where = key if name is None else f"{key}.{name}"
            raise UserError(f"{where}={one}: takes one value, neither a list nor a mapping")


def _check_choice(shown: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise UserError(f"{shown} takes one of {_listed(choices)}{similar(str(value), map(str, choices))}")


def _check_range(shown: str, value: Any, item: dataclasses.Field[Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    (low, high), above = item.metadata.get("range", (0, math.inf)), item.metadata.get("positive", False)
    if math.isfinite(value) and low <= value <= high and not (above and value == low):
        return
    if not math.isfinite(value):
        must = "be a finite number"
    elif above:
        must = f"be above {low:g}" + f" and at most {high:.12g}" * (high < math.inf)
    else:
        must = (
            f"be from {low:g} to {high:.12g}"
            if high < math.inf
            else f"be at least {low:g}"
            if low
            else "not be negative"
        )
    default = f"; the default is {item.default:g}" if isinstance(item.default, int | float) else ""
    raise UserError(f"{shown}: must {must}{default}")


def similar(word: str, valid: Iterable[str], alike: float = 0.5) -> str:
    """`; did you mean X?` where a valid word is similar, by at least this share of its characters."""
    known = {name.casefold(): name for name in valid}
    close = difflib.get_close_matches(word.casefold(), list(known), n=1, cutoff=alike)
    return f"; did you mean {known[close[0]]}?" if close else ""


def without_emptied(kind: type, below: DictConfig, above: DictConfig) -> DictConfig:
    """The values `below` without the mappings of plain values that those `above` empty, as in `train.mixture: {}`.

    Merged, an empty mapping would leave what is below as it is.
    """
    for key, value in leaves(OmegaConf.to_container(above)):
        expected = type_at(kind, key) if value == {} else None
        plain = typing.get_origin(expected) is dict and not dataclasses.is_dataclass(typing.get_args(expected)[1])
        if plain and OmegaConf.select(below, key):
            below = below.copy()
            OmegaConf.update(below, key, {}, merge=False)
    return below


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
    above, _, leaf = key.lstrip("-").rpartition(".")
    alike = difflib.get_close_matches(key.lstrip("-").casefold(), known, n=3, cutoff=0.7)
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


def _takes(kind: Any, choices: tuple[Any, ...]) -> str:
    """What a field of this type takes."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if choices and origin not in (list, dict):
        return f"one of {_listed(choices)}"
    if isinstance(kind, types.UnionType):
        kind = parts[0]
    if dataclasses.is_dataclass(kind):
        own = f"no value of its own, but those of {_listed(item.name for item in dataclasses.fields(kind))}"
        return own + "; or null, for none" * (type(None) in parts)
    if origin is list:
        return f"a list, each {TYPE_NAMES[parts[0]]}, as in [{'a, b' if parts[0] is str else '1, 2'}]"
    if origin is dict:
        return "a mapping, as in {a: 1}"
    return TYPE_NAMES.get(kind, str(kind))


def _listed(words: Iterable[Any]) -> str:
    return ", ".join(str(word).lower() if isinstance(word, bool) else str(word) for word in words)
