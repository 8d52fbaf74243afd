"""Text that others wrote, without what would control its reader: tokens for a model, characters for a terminal.

Text of a record or an answer must not open or close a turn. A tokenizer parses `<|im_end|>` wherever it stands, in a
template and in a dataset row alike. In data it is broken by a space after its first character (`< |im_end|>`), so that
it becomes plain text; other text does not change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

USUAL = (
    r"<\|[^<>|\s]{1,64}\|>",  # ChatML, Llama 3, Phi
    r"</?(?:s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn|image|video|think|tool_call)>",  # Llama 2, Gemma, Mistral
    r"\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]",
    r"<</?SYS>>",
    r"<\uff5c[^<>\s]{1,64}\uff5c>",  # DeepSeek
)
"""Patterns of the usual control tokens, for a server whose tokenizer is not known."""


def control_tokens(tokens: Iterable[str]) -> list[str]:
    """A tokenizer's added tokens that are more than a word or white space, the longest first."""
    controls = {token.strip() for token in tokens if re.search(r"[^\w\s]", token) and len(token.strip()) > 1}
    return sorted(controls, key=lambda token: (-len(token), token))


class PlainText:
    """Breaks control tokens in data: those of one tokenizer, or the usual ones."""

    def __init__(self, tokens: Iterable[str] | None = None) -> None:
        """`tokens`: a tokenizer's added tokens; None stands for USUAL. Words and white space are left alone."""
        if tokens is None:
            patterns = list(USUAL)
        else:
            patterns = [re.escape(token) for token in control_tokens(tokens)]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def __call__(self, text: str) -> str:
        """The text without control tokens."""
        while self._pattern is not None and self._pattern.search(text):
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text


_CONTROLS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """The text as a terminal may show it: without colours and cursor moves, other control characters as U+FFFD."""
    return _CONTROLS.sub(lambda match: "" if len(match[0]) > 1 else "\ufffd", text)
