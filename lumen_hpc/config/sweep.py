"""Sweeps: a list in a setting that takes one value makes a run of each, `train.learning_rate=[1e-5,2e-5]`.

A setting that is a list by nature (`predict.models=[ft,lumen]`) sweeps nothing.
"""

from __future__ import annotations

import itertools
import json
import re
import typing

import yaml

from lumen_hpc.config.request import OPTIONS, READS, SHORTHANDS, Request
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import TEXTS, type_at
from lumen_hpc.errors import UserError

MOST = 50
"""Runs of one command; more are likely a mistake."""


def points(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """(run's name, its command line) of every combination; of a command line without a sweep none."""
    swept = {index: values for index, word in enumerate(arguments) if (values := _values(word))}
    if not swept or set(arguments) & set(READS):  # verbs that refuse any setting
        return []
    keys = {index: arguments[index].partition("=")[0] for index in swept}
    first = {index: f"{key}={swept[index][0]}" for index, key in keys.items()}
    base = resolve([first.get(index, word) for index, word in enumerate(arguments)])
    if base.verb != "submit":
        raise UserError(
            f"{next(iter(keys.values()))}: {base.verb} takes one value; a list makes a run of each on submission alone"
        )
    if base.config:
        raise UserError("config= repeats one run; sweep from its settings with recipe= instead")
    combinations = list(itertools.product(*swept.values()))
    if len(combinations) > MOST:
        raise UserError(
            f"this sweep has {len(combinations)} runs, more than {MOST}: shorter lists, or one after another"
        )
    last = [key.rpartition(".")[2] for key in keys.values()]
    found: dict[str, list[str]] = {}
    for combination in combinations:
        words = list(arguments)
        names = [base.run]
        for (index, key), short, value in zip(keys.items(), last, combination, strict=True):
            words[index] = f"{key}={value}"
            names.append(f"{short if last.count(short) == 1 else key}-{value}")
        name = re.sub(r"[^\w.-]", "_", "-".join(names), flags=re.ASCII)
        if name in found:
            raise UserError(f"two runs of this sweep would have the name {name}; submit one by itself, run=NAME")
        own = [word for word in words if not word.startswith("run=")]
        found[name] = [*_remembered(base, arguments), *own, f"run={name}"]
    return list(found.items())


def _remembered(base: Request, arguments: list[str]) -> list[str]:
    """The words by which a new run has the settings of run `base`, where that exists; those that are given stay out."""
    if base.recorded is None:
        return []
    named = {SHORTHANDS.get(key, key) for key in (word.partition("=")[0] for word in arguments)}
    words = [f"recipe={base.recipe}"] if "recipe" not in named else []
    words += [f"profile={base.profile.name}"] if "profile.name" not in named else []
    return words + [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in base.given.items()
        if key not in named
    ]


def _values(word: str) -> list[str]:
    """The values of a word that sweeps; none of any other."""
    key, _, text = word.partition("=")
    key = SHORTHANDS.get(key, key)
    if not text.startswith("[") or key in OPTIONS or key.startswith(("profile.", "serve.")):
        return []
    kind = type_at(Settings, key)
    if kind is None or typing.get_origin(kind) in (list, dict):
        return []
    try:
        values = yaml.load(text, TEXTS)  # as they are written: null is no None, 1.0e-5 no 1e-05
    except yaml.YAMLError:
        return []
    if not isinstance(values, list) or not values or any(isinstance(value, list | dict) for value in values):
        raise UserError(f"command line: {word}: a sweep takes a list of values, as in {key}=[1e-5,2e-5]")
    if len({_meant(value, kind) for value in values}) < len(values):
        raise UserError(f"command line: {word}: a value comes twice")
    return values


def _meant(value: str, kind: type) -> float | str:
    """What a value is, however it is written."""
    try:
        return float(value) if kind in (int, float) else value
    except ValueError:
        return value
