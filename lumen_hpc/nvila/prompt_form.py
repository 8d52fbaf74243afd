"""The form of the prompts in a checkpoint's training: a note in its config.json, which `preprocess` follows.

A published base has no such note: its prompts have the official form, with all pictures before the first message.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lumen_hpc.errors import UserError

KEY = "prompt_form"
"""The note's key in the root config.json."""


@dataclass(frozen=True, kw_only=True)
class PromptForm:
    """The form of a checkpoint's prompts and answers; the defaults are the official code's."""

    inline: bool = False
    """Pictures stand where the text has `<image>`, instead of opening the first human message."""
    image_order: str = "as given"
    """The order of the pictures."""
    findings_line: bool = False
    """Answers about two studies begin with a line of each finding's state (`instruct.findings_first`)."""
    line: tuple[str, ...] = ()
    """The findings of that line, in its order; older checkpoints with a line lack them."""
    expert_text: bool = False
    """The experts' words follow each picture (`instruct.expert_text`)."""
    clinical: bool = False
    """Lines of the clinical state follow each picture (`instruct.clinical`)."""

    @classmethod
    def trained(cls, **parts: Any) -> PromptForm:
        """The form of every training here; `parts`: those that the instruction settings add."""
        return cls(inline=True, image_order="references, then the main image", **parts)

    @classmethod
    def read(cls, root: Mapping[str, Any]) -> PromptForm:
        """From a root config.json; unknown keys are ignored. Raises UserError for a value of another type."""
        note = root.get(KEY, {})
        if not isinstance(note, dict):
            raise UserError(f"{KEY} in config.json is a {type(note).__name__}: it takes an object")
        values = {field.name: note[field.name] for field in dataclasses.fields(cls) if field.name in note}
        for name, value in values.items():
            kind = type(getattr(cls, name))
            if kind is tuple and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
                values[name] = tuple(value)
            elif type(value) is not kind:
                takes = {bool: "true or false", str: "text", tuple: "a list of texts"}[kind]
                raise UserError(f"{KEY}.{name}={json.dumps(value)} in config.json: it takes {takes}")
        return cls(**values)

    def note(self) -> dict[str, Any]:
        """The value that config.json keeps."""
        return dataclasses.asdict(self)
