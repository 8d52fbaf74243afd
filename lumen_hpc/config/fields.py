"""Fields of the settings: each constructor says which values a field takes, and whether it decides results.

A `runtime_only` field changes how a stage runs, never what it writes, so changing it leaves finished shards valid.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
from dataclasses import field
from typing import Any


def in_range(default: Any, low: float, high: float = math.inf) -> Any:
    """A number from `low` to `high`; any other number need only not be negative."""
    return field(default=default, metadata={"range": (low, high)})


def positive(default: float, high: float = math.inf) -> Any:
    """A number above 0 and at most `high`."""
    return field(default=default, metadata={"range": (0, high), "positive": True})


def runtime_only(default: Any, low: float = 0, high: float = math.inf) -> Any:
    """A field that changes speed or place, not results; it takes no part in a shard's `config` hash."""
    return field(default=default, metadata={"runtime_only": True, "range": (low, high)})


def runtime_choice(value: Any, *choices: Any) -> Any:
    """A `choice` that changes speed or place, not results."""
    return field(default=value, metadata={"runtime_only": True, "choices": choices})


def list_of(*values: Any) -> Any:
    """A list-valued field with these defaults."""
    return field(default_factory=lambda: list(values))


def choice(value: Any, *choices: Any) -> Any:
    """A field that takes one of `choices`; `validate.check` refuses anything else."""
    return field(default=value, metadata={"choices": choices})


def subset_of(values: tuple[Any, ...], *choices: Any, least: int = 0) -> Any:
    """A list-valued field that takes some of `choices`, each once, and at least `least` of them."""
    return field(default_factory=lambda: list(values), metadata={"choices": choices, "least": least})


def field_docs(kind: type) -> dict[str, str]:
    """The string literal under each field of a dataclass."""
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for statement, following in itertools.pairwise(body):
        is_doc = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_doc:
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
