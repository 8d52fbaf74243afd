"""Sweeps: a list in a setting that takes one value makes a run of each, `train.learning_rate=[1e-5,2e-5]`.

A setting that is a list by nature (`predict.models=[ft,lumen]`) sweeps nothing.
"""

from __future__ import annotations

import itertools
import json
import re
import typing

import yaml

from lumen_hpc.config.request import OPTIONS, SHORTHANDS, VERB_SETTINGS, Request
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import TEXT_LOADER, type_at
from lumen_hpc.errors import UserError

MAX_RUNS = 50
"""Most runs of one command; more are likely a mistake."""


def points(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """(run's name, its command line) of every combination; empty for a command line without a sweep."""
    sweep_values = {index: values for index, word in enumerate(arguments) if (values := _sweep_values(word))}
    if not sweep_values or set(arguments) & set(VERB_SETTINGS):  # verbs that refuse any setting
        return []
    keys = {index: arguments[index].partition("=")[0] for index in sweep_values}
    first_words = {index: f"{key}={sweep_values[index][0]}" for index, key in keys.items()}
    base = resolve([first_words.get(index, word) for index, word in enumerate(arguments)])
    if base.verb != "submit":
        raise UserError(
            f"{next(iter(keys.values()))}: {base.verb} takes one value; a list makes a run of each on submission alone"
        )
    if base.config:
        raise UserError("config= repeats one run; sweep from its settings with recipe= instead")
    combinations = list(itertools.product(*sweep_values.values()))
    if len(combinations) > MAX_RUNS:
        raise UserError(
            f"this sweep has {len(combinations)} runs, more than {MAX_RUNS}: shorter lists, or one after another"
        )
    short_keys = [key.rpartition(".")[2] for key in keys.values()]
    command_lines: dict[str, list[str]] = {}
    for combination in combinations:
        words = list(arguments)
        names = [base.run]
        for (index, key), short, value in zip(keys.items(), short_keys, combination, strict=True):
            words[index] = f"{key}={value}"
            names.append(f"{short if short_keys.count(short) == 1 else key}-{value}")
        name = re.sub(r"[^\w.-]", "_", "-".join(names), flags=re.ASCII)
        if name in command_lines:
            raise UserError(f"two runs of this sweep would have the name {name}; submit one by itself, run=NAME")
        other_words = [word for word in words if not word.startswith("run=")]
        command_lines[name] = [*_base_words(base, arguments), *other_words, f"run={name}"]
    return list(command_lines.items())


def _base_words(base: Request, arguments: list[str]) -> list[str]:
    """The words that give a new run the settings of run `base`, where that exists, but those on the command line."""
    if base.recorded_settings is None:
        return []
    command_keys = {SHORTHANDS.get(key, key) for key in (word.partition("=")[0] for word in arguments)}
    words = [f"recipe={base.recipe}"] if "recipe" not in command_keys else []
    words += [f"profile={base.profile.name}"] if "profile.name" not in command_keys else []
    return words + [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in base.given.items()
        if key not in command_keys
    ]


def _sweep_values(word: str) -> list[str]:
    """The values of a word that sweeps; empty for any other."""
    key, _, text = word.partition("=")
    key = SHORTHANDS.get(key, key)
    if not text.startswith("[") or key in OPTIONS or key.startswith(("profile.", "serve.")):
        return []
    kind = type_at(Settings, key)
    if kind is None or typing.get_origin(kind) in (list, dict):
        return []
    try:
        values = yaml.load(text, TEXT_LOADER)  # as they are written: null is no None, 1.0e-5 no 1e-05
    except yaml.YAMLError:
        return []
    if not isinstance(values, list) or not values or any(isinstance(value, list | dict) for value in values):
        raise UserError(f"command line: {word}: a sweep takes a list of values, as in {key}=[1e-5,2e-5]")
    if len({_parse_value(value, kind) for value in values}) < len(values):
        raise UserError(f"command line: {word}: a value comes twice")
    return values


def _parse_value(value: str, kind: type) -> float | str:
    """A value whatever its spelling: 1e-5 equals 0.00001."""
    try:
        return float(value) if kind in (int, float) else value
    except ValueError:
        return value
