"""The reference of every option, setting and profile key, read from the dataclasses and their docstrings (`--help`)."""

from __future__ import annotations

import dataclasses
from typing import Any

from lumen_hpc.config.fields import field_docs
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.request import OPTIONS, VERB_OPTIONS, VERB_SETTINGS, Request
from lumen_hpc.config.schema import Settings


def documentation(verb: str = "") -> list[tuple[str, str, str]]:
    """(key, default, docstring) of every option, setting and profile key, for `--help`; of the options of one verb."""
    rows = [row for row in _field_rows(Request, "") if row[0] in OPTIONS]
    if verb:
        settings = [row for row in _field_rows(Settings, "") if row[0] in VERB_SETTINGS.get(verb, ())]
        options = ("runs",) if verb == "compare" else ("run", "runs", *VERB_OPTIONS[verb])
        return [row for row in rows if row[0] in options] + settings
    rows += _field_rows(Settings, "")
    return rows + _field_rows(Profile, "profile.")


def _field_rows(kind: type, prefix: str) -> list[tuple[str, str, str]]:
    docs = field_docs(kind)
    rows = []
    default = kind()
    for item in dataclasses.fields(kind):
        value = getattr(default, item.name)
        if dataclasses.is_dataclass(value):
            rows += _field_rows(type(value), f"{prefix}{item.name}.")
            continue
        text = docs.get(item.name, "")
        if "choices" in item.metadata:
            text += f" One of: {', '.join(map(str, item.metadata['choices']))}."
        rows.append((prefix + item.name, _format_default(value), text))
        if isinstance(value, dict) and value and dataclasses.is_dataclass(next(iter(value.values()))):
            rows += _field_rows(type(next(iter(value.values()))), f"{prefix}{item.name}.KIND.")
    return rows


def _format_default(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(value) + "}"
    return str(value) if value != "" else '""'
