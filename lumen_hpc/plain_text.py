"""Text that others wrote, without what would control its reader: tokens for a model, characters for a person.

Text of a record or an answer must not open or close a turn. A tokenizer parses `<|im_end|>` wherever it stands, in a
template and in a dataset row alike. In data it is broken by a space after its first character (`< |im_end|>`), so that
it becomes plain text; other text does not change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

USUAL = (
    r"</?[^\W\d][^<>\s]{0,63}>",  # Llama 2, Gemma, T5, Idefics, Seed, GLM: a name in angle brackets
    r"<[|\uff5c][^<>\s]{1,64}>",  # ChatML, Llama 3 and 4, Phi, Granite, Harmony, DeepSeek; Gemma 4 opens with one bar
    r"<[^<>\s]{1,64}[|\uff5c]>",  # and closes with one
    r"<</?SYS>>",
    r"\[/?[A-Z][A-Z_]{2,63}\]",  # Mistral, BERT
    r"\[\|[^\[\]\s]{1,64}\|\]",  # EXAONE
    r"\[g?MASK\]",  # GLM
    r"\]~!?b?(?:\]|\[)|\[e~\[",  # MiniMax
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


_UNSEEN = r"\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
"""Characters that reorder a line (bidirectional overrides turn "no" around), break it, or show nothing at all."""
_CONTROLS = re.compile(rf"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f{_UNSEEN}\ud800-\udfff]")


def visible(text: str) -> str:
    """The text as a terminal or a page may show it: without colours and cursor moves, other controls as U+FFFD."""
    return _CONTROLS.sub(lambda match: "" if len(match[0]) > 1 else "\ufffd", text)
