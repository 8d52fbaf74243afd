"""Human-readable validation errors: the file that a setting is in, its key, its type, its value."""

from __future__ import annotations

import dataclasses
import difflib
import io
import math
import pickle
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lumen_hpc.config.fields import field_docs
from lumen_hpc.errors import UserError
from lumen_hpc.files import read_bytes

MAX_NESTING = 2000
"""Nested lists and mappings that a YAML file may have; a run's config.yaml has a few dozen."""
MAX_MEANING_LENGTH = 90
"""Longest docstring of a field that a message shows whole [characters]."""
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


OTHER_BASE_NUMBER = re.compile(r"(?<![\w.])0\d|\d:\d|\d_\d")
"""A text that may have a number which YAML 1.1 reads in another base than 10."""
TEXT_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""Reads every value of YAML as the text that it is; libyaml's where PyYAML was built with it."""
SHELL_VARIABLE = re.compile(r"(?<!\\)\$\{(?=[!#]?[A-Z_][A-Z0-9_]*\W)")
"""The beginning of `${NAME}`, `${NAME:-otherwise}` and the like, as a shell reads them."""
REFERENCE = re.compile(r"\\*\$\{")
"""The beginning of any reference, with the backslashes that escape it."""


def read_yaml(path: Path, kind: Any = Any, *, resolved: bool = False) -> DictConfig:
    """A file's mapping; UserError of one line if it has none. `kind` says which of its values are texts.

    A `resolved` file, a run's config.yaml, holds no references: its `${name}` are the shell's, whatever their letters.
    """
    try:
        text = require_shallow(read_bytes(path)).decode()
        values = pickle.loads(_parse_yaml(text, kind, REFERENCE if resolved else SHELL_VARIABLE))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start + 1} is no UTF-8: save the file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        problem = str(error.problem)
        problem += ", with a space behind it" * problem.endswith("expected ':'")
        problem = "a tab: YAML is indented with spaces" if mark and "\t" in _indentation(text, mark.line) else problem
        raise UserError(f"{path}{where}: not readable as YAML: {problem}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, DictConfig):
        raise UserError(f"{path}: holds no `key: value` lines, but a {type(values).__name__.removesuffix('Config')}")
    require_values(f"{path}: ", text, values)
    return values


@lru_cache(maxsize=64)
def _parse_yaml(text: str, kind: Any, pattern: re.Pattern[str]) -> bytes:
    """The values of a YAML text, pickled: a sweep and a check read the same files again and again."""
    values = OmegaConf.load(io.StringIO(text))
    if kind is not Any or OTHER_BASE_NUMBER.search(text):
        values = OmegaConf.create(restore_texts(OmegaConf.to_container(values), yaml.load(text, TEXT_LOADER), kind))
    return pickle.dumps(escape_shell_variables(values, pattern) if pattern.search(text) else values)


def require_values(prefix: str, text: str, values: DictConfig) -> None:
    """Raises UserError for `key: ???` in the text of these values: OmegaConf would ignore it."""
    if "???" in text and (keys := OmegaConf.missing_keys(values)):
        raise UserError(f"{prefix}{min(keys)}=??? is no value: give one, or leave it out")


def escape_shell_variables(values: Any, pattern: re.Pattern[str] = SHELL_VARIABLE) -> Any:
    """The same configuration, in which what begins like `pattern` is the shell's and no reference to another key."""

    def escape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: escape(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [escape(item) for item in value]
        return pattern.sub(lambda match: match[0][:-2] * 2 + r"\${", value) if isinstance(value, str) else value

    return OmegaConf.create(escape(OmegaConf.to_container(values)))


def _indentation(text: str, number: int) -> str:
    """The white space at the beginning of a line; lines count from 0."""
    line = "".join(text.split("\n")[number : number + 1])
    return line[: len(line) - len(line.lstrip())]


def restore_texts(value: Any, text: Any, kind: Any = Any) -> Any:
    """A value of YAML in which numbers of another base stay texts: an account 0123, a time 1:00:00.

    YAML 1.1 reads them as 83 and as 3600. Where `kind` takes text, so are `3.10`, `true` and `no`, which would become
    3.1, True and False. `text` is the same YAML, read as texts.
    """
    if isinstance(value, dict) and isinstance(text, dict) and len(value) == len(text):
        return {
            name if type(key) in (bool, int, float) else key: restore_texts(entry, entry_text, type_at(kind, name))
            for (key, entry), (name, entry_text) in zip(value.items(), text.items(), strict=True)
        }
    if isinstance(value, list) and isinstance(text, list) and len(value) == len(text):
        item_kind = typing.get_args(kind)[0] if typing.get_origin(kind) is list else Any
        return [restore_texts(item, item_text, item_kind) for item, item_text in zip(value, text, strict=True)]
    if type(value) not in (bool, int, float) or not isinstance(text, str):
        return value
    in_other_base = type(value) is not bool and OTHER_BASE_NUMBER.search(text) and str(value) != text
    return text if kind is str or in_other_base else value


def require_shallow(text: bytes) -> bytes:
    """The text of a YAML file; ValueError for one nested so deeply that libyaml's loader would crash."""
    if sum(text.count(begin) for begin in (b"[", b"{", b"- ", b"? ")) > MAX_NESTING:
        raise ValueError("nested too deeply")
    return text


def require_fits(
    kind: type, values: DictConfig, source: str, prefix: str = "", other_words: Iterable[str] = ()
) -> None:
    """Raises UserError for the first value that no field of `kind` takes: an unknown key, or another type.

    `prefix` stands before the keys in `source`; `other_words` are further words that it accepts.
    """
    schema, values_dict = OmegaConf.structured(kind), OmegaConf.to_container(values)
    if dotted_key := next(_dotted_keys(values_dict), ""):
        spelling = ": {".join(dotted_key.split(".")) + ": …" + "}" * dotted_key.count(".")
        raise UserError(f"{source}: {dotted_key}: keys with dots are for a command line; in a file: {spelling}")
    for key, value in leaves(values_dict):
        expected = type_at(kind, key)
        if expected is None:
            before, colon, after = key.partition(":")
            if colon and type_at(kind, before) is not None:
                raise UserError(f"{source}: {prefix}{key}: a space belongs behind the colon: {before}: {after}")
            names = [name if name in other_words else prefix + name for name in _similar_keys(kind, key, other_words)]
            hint = (
                f"did you mean {_comma_separated(names)}?" if names else "python launch.py --help lists every setting"
            )
            raise UserError(f"{source}: unknown setting '{prefix}{key}'; {hint}")
        nested_value = value
        for part in reversed(key.split(".")):
            nested_value = {part: nested_value}
        section, _, name = key.rpartition(".")
        section_kind = type_at(kind, section) if section else kind
        try:
            # Unlike OmegaConf.update, it also fills a section whose default is null.
            OmegaConf.merge(schema, nested_value)
            fits = section_kind not in TYPE_NAMES and not _is_too_deep(value, expected)
        except (OmegaConfBaseException, TypeError, OverflowError):
            fits = False
        if not fits:
            value_text = "(empty)" if value in ("", None) else value
            accepted = _accepted_values(expected, _choices(section_kind, name)) + _meaning(section_kind, name)
            wants_list = typing.get_origin(expected) is list and section_kind != expected
            if wants_list and value != "" and isinstance(value, str | int | float):
                accepted += f", so {prefix}{key}=[{str(value).strip('()')}]"
            if ":" in key and value in ("", None):
                accepted = f"a mapping with spaces behind its colons: {{{name.replace(':', ': ')}}}"
            raise UserError(f"{source}: {prefix}{key}={value_text}: takes {accepted}")


def _is_too_deep(value: Any, kind: Any) -> bool:
    """Whether a list or a mapping stands where one value belongs: OmegaConf takes it there, in lists and mappings."""
    if typing.get_origin(kind) is list and isinstance(value, list):
        return any(isinstance(item, list | dict) for item in value)
    return kind in TYPE_NAMES and isinstance(value, list | dict)


def _dotted_keys(values: Any, prefix: str = "") -> Iterator[str]:
    """The keys of a file that have a dot in themselves."""
    for name, value in values.items() if isinstance(values, dict) else ():
        if "." in str(name):
            yield f"{prefix}{name}"
        yield from _dotted_keys(value, f"{prefix}{name}.")


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
    text = text if len(text) <= MAX_MEANING_LENGTH else re.split(r"[;.] |: ", text)[0]
    name_first = any(character.isupper() for character in text.split(" ")[0][1:])  # AdamW, GPUs
    text = text if name_first else text[:1].lower() + text[1:]
    return f" ({text})" if text else ""


def check(settings: Any, prefix: str = "") -> None:
    """Refuses values outside a field's choices or range, from any source."""
    for item in dataclasses.fields(settings):
        value, key = getattr(settings, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            check(value, f"{key}.")
            continue
        if isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
            for name, entry in value.items():
                check(entry, f"{key}.{name}.")
            continue
        is_collection = isinstance(value, dict | list)
        if is_collection and "Any" not in str(item.type):
            _check_flat(key, value)
        assignment, items = f"{key}={value}", list(value) if is_collection else [value]
        for word in items:
            _check_choice(
                f"{assignment}: '{word}' is none of them;" if is_collection else f"{assignment}:", word, item.metadata
            )
        for number in value.values() if isinstance(value, dict) else items:
            _check_range(assignment, number, item)
        least = item.metadata.get("least", 0)
        if "least" in item.metadata and not least <= len(items) == len(set(items)):
            at_least = "at least one, and " if least else ""
            raise UserError(f"{assignment}: takes {at_least}each once, of {_comma_separated(item.metadata['choices'])}")


def _check_flat(key: str, value: Any) -> None:
    """Raises UserError for a list or a mapping within a list or a mapping of plain values."""
    entries = value.items() if isinstance(value, dict) else ((None, entry) for entry in value)
    for name, entry in entries:
        if isinstance(entry, dict | list):
            where = key if name is None else f"{key}.{name}"
            raise UserError(f"{where}={entry}: takes one value, neither a list nor a mapping")


def _check_choice(assignment: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices = metadata.get("choices")
    if choices and value not in choices:
        if isinstance(value, str) and value in map(str, choices):
            raise UserError(
                f"{assignment.partition('=')[0]}={value!r}: takes one of {_comma_separated(choices)}; a number, so "
                "without quotes"
            )
        raise UserError(
            f"{assignment} takes one of {_comma_separated(choices)}{suggestion(str(value), map(str, choices))}"
        )


def _check_range(assignment: str, value: Any, item: dataclasses.Field[Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    (low, high), excludes_low = item.metadata.get("range", (0, math.inf)), item.metadata.get("positive", False)
    try:
        is_finite = math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        is_finite = False
    if is_finite and low <= value <= high and not (excludes_low and value == low):
        return
    if not is_finite:
        rule = "be a finite number"
    elif excludes_low:
        rule = f"be above {low:g}" + f" and at most {high:.12g}" * (high < math.inf)
    elif high < math.inf:
        rule = f"be from {low:g} to {high:.12g}"
    else:
        rule = f"be at least {low:g}" if low else "not be negative"
    default = f"; the default is {item.default:g}" if isinstance(item.default, int | float) else ""
    raise UserError(f"{assignment}: must {rule}{default}")


def suggestion(word: str, valid: Iterable[str], likeness: float = 0.5) -> str:
    """`; did you mean X?` where a valid word is similar, by at least this share of its characters."""
    names = {name.casefold(): name for name in valid}
    matches = difflib.get_close_matches(word.casefold(), list(names), n=1, cutoff=likeness)
    return f"; did you mean {names[matches[0]]}?" if matches else ""


def drop_emptied(kind: type, earlier: DictConfig, later: DictConfig) -> DictConfig:
    """The earlier values without the mappings of plain values that the later ones empty, as in `train.mixture: {}`.

    Merged, an empty mapping would leave the earlier one as it is.
    """
    for key, value in leaves(OmegaConf.to_container(later)):
        expected = type_at(kind, key) if value == {} else None
        is_plain_mapping = typing.get_origin(expected) is dict and not dataclasses.is_dataclass(
            typing.get_args(expected)[1]
        )
        if is_plain_mapping and OmegaConf.select(earlier, key):
            earlier = earlier.copy()
            OmegaConf.update(earlier, key, {}, merge=False)
    return earlier


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping with entries."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_type_hints: Any = cache(typing.get_type_hints)
"""The types of a dataclass's fields."""


def type_at(kind: Any, key: str) -> Any:
    """The type of a dotted key's value; None for an unknown key."""
    for part in key.split("."):
        if isinstance(kind, types.UnionType):
            kind = typing.get_args(kind)[0]
        if dataclasses.is_dataclass(kind):
            kind = _type_hints(kind).get(part)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif kind is not Any:
            return kind  # deeper than a plain value goes: its type is what is wrong
    return kind


def _similar_keys(kind: type, key: str, other_words: Iterable[str]) -> list[str]:
    """Keys that may be meant: of the same name elsewhere, of a similar name, or those of the same section."""
    valid_keys = [*keys(kind, key), *other_words]
    if corrected_key := _correct_sections(kind, key):
        return [corrected_key]
    section, _, leaf = key.lstrip("-").rpartition(".")
    similar_keys = difflib.get_close_matches(key.lstrip("-").casefold(), valid_keys, n=3, cutoff=0.7)
    same_name = [other for other in valid_keys if other.endswith(f".{leaf}")]
    siblings = [other for other in valid_keys if other.rpartition(".")[0] == section] if section else []
    return same_name[:3] or similar_keys or siblings[:12]


def _correct_sections(kind: Any, key: str) -> str:
    """The key with a section's name corrected; empty where its last part alone is wrong, or too much is."""
    parts: list[str] = []
    for part in key.split("."):
        if dataclasses.is_dataclass(kind):
            names = [item.name for item in dataclasses.fields(kind)]
            matches = difflib.get_close_matches(part, names, n=1, cutoff=0.7)
            if not matches:
                return ""
            part = matches[0]
        parts.append(part)
        kind = type_at(kind, part)
    corrected_key = ".".join(parts)
    return corrected_key if kind is not None and parts[-1] == key.rpartition(".")[2] else ""


def keys(kind: Any, key: str, prefix: str = "") -> Iterator[str]:
    """Every dotted key, sections included; the entries of a mapping by the name that `key` has for them."""
    for name, field_kind in _type_hints(kind).items():
        yield prefix + name
        section = f"{prefix}{name}."
        if typing.get_origin(field_kind) is dict and (
            key.startswith(section) or dataclasses.is_dataclass(field_kind.__args__[1])
        ):
            entry = key.removeprefix(section).split(".")[0] if key.startswith(section) else "KIND"
            field_kind, section = typing.get_args(field_kind)[1], f"{section}{entry}."
        if isinstance(field_kind, types.UnionType):
            field_kind = typing.get_args(field_kind)[0]
        if dataclasses.is_dataclass(field_kind):
            yield from keys(field_kind, key, section)


def _accepted_values(kind: Any, choices: tuple[Any, ...]) -> str:
    """What a field of this type takes."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if choices and origin not in (list, dict):
        return f"one of {_comma_separated(choices)}"
    if isinstance(kind, types.UnionType):
        kind = parts[0]
    if dataclasses.is_dataclass(kind):
        text = f"no value of its own, but those of {_comma_separated(item.name for item in dataclasses.fields(kind))}"
        return text + "; or null, for none" * (type(None) in parts)
    if origin is list:
        return f"a list, each {TYPE_NAMES[parts[0]]}, as in [{'a, b' if parts[0] is str else '1, 2'}]"
    if origin is dict:
        return "a mapping, as in {a: 1}"
    return TYPE_NAMES.get(kind, str(kind))


def _comma_separated(words: Iterable[Any]) -> str:
    return ", ".join(str(word).lower() if isinstance(word, bool) else str(word) for word in words)
