"""Which text can be the short answer to a question of Medical-Diff-VQA, of all seven types and of predictions.

The vocabulary is open, so this refuses only what no answer of its type looks like: missing values of pandas and JSON,
Python's notation, numbers, control characters, and yes or no in place of a name. A change that no two images can show
is refused too.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

from lumen_hpc.data.diff_vqa import (
    CLOSED_TEMPLATES,
    Change,
    GrammarError,
    LevelChange,
    is_closed,
    parse_difference,
    parse_findings,
)

MISSING = frozenset({
    "nan", "none", "null", "nil", "nat", "n/a", "n.a", "na", "undefined", "unknown", "unspecified", "missing", "empty",
    "blank", "true", "false", "inf", "infinity", "unk", "tbd", "todo", "error", "unavailable", "unanswered", "pending",
    "redacted", "deleted", "removed", "placeholder", "ditto", "idem", "skipped", "invalid", "void", "string", "answer",
})  # fmt: skip
"""Words that stand for a missing value, never for a finding; lower case, without punctuation around them."""

_CLOSED_QUESTIONS = frozenset(map(str.lower, CLOSED_TEMPLATES))
_PUNCTUATION = " .,:;!?#()<>/+-'\""
_NOTATION = frozenset(
    '[]{}<>|="\\`_#@~^$*+&;?!:\N{BULLET}\N{REPLACEMENT CHARACTER}\N{HORIZONTAL ELLIPSIS}'
    "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}"
)
"""Characters of lists, objects, markup, formulas, questions, blanks and lost letters; `;` and `&` would fuse names."""
_ABSENCE = re.compile(r"(?:no|not|without|absence of) .*|nothing|normal|absent|resolved", re.IGNORECASE)
"""Words that deny a finding, where its name or its level is expected."""
_REFUSAL = re.compile(
    r"(?:no|not|none|yes|i|i'm|sorry,?|cannot|can't|could|unable|see|as an?) .*|maybe|sorry|y(?:es)?/no?|\w"
    r"|same|(?:same as|as|all of the|none of the|any of the) above|(?:no|some|any|else)where|here|there"
    r"|(?:level|type|location|place|finding|class|label|category|grade|option|choice)(?: \w?\d*)?|\d+e[+-]?\d+"
    r"|.* (?:not|never) .*|.*\bthe (?:reference|main) image\b.*"
    r"|.*(?:\d{4}|\bl?xxx\b|%s|%[0-9a-f]{2}|\. |\.\.|\b(?:nan|null|na na|etc)\b).*",
    re.IGNORECASE,
)
"""In a name's place: a refusal, a word about the record or another row, one letter, the kind of word that is asked for,
a number, a date, a denial, a template's blank, escapes of a link, a missing value among words, several sentences."""
_NO_QUESTION = re.compile(
    r"[\[\]{}<>|=\\`_#@~^$*;\ufffd]|%(?:s|[0-9a-f]{2})|\b(?:l?xxx|nan|null|n/a)\b|\b(?:the|of|there) none\b"
    r"|^unnamed:"
    r"|\b(?:there|of|the) (?:in th|located\b|area\?|bilateral\?|\?)",
    re.IGNORECASE,
)
"""Notation, escapes, a missing value, or an empty blank in a question."""
_CUT_NAME = re.compile(r"(?:and|or|to|than)\b.*|(?:.* )?(?:and|or|to|of|the|with|than)", re.IGNORECASE)
"""A name that is cut off at its beginning or end."""


def answer_fault(type: str, question: str, short_answer: str) -> tuple[str, str] | None:
    """Kind and reason if `short_answer` cannot answer this question, else None.

    `type`: one of the seven, or prediction. The answer is a patient's, so the reason holds nothing of it.
    """
    if not short_answer.strip("\n\t ").isprintable():
        expected = "text without control characters"
    elif is_misread(short_answer):
        expected = "text in the characters that its writer meant"
    elif type in ("difference", "prediction"):
        try:
            change = parse_difference(short_answer)
        except GrammarError:
            expected = "made of the dataset's clauses"
        else:
            expected = "" if _has_names(change) else "made of the dataset's clauses with names of findings and levels"
            if not expected and (conflict := contradiction(change)):
                reason = f"no two images can have the answer to this {type} question: {conflict}"
                return "self-contradicting answer", reason
    else:
        expected = _expected_form(type, question, short_answer)
    return ("answer outside the grammar", f"the answer to this {type} question is not {expected}") if expected else None


def _expected_form(type: str, question: str, short_answer: str) -> str:
    """What the short answer to a question about one image should be; empty if it is an answer of its type."""
    text, question_text = " ".join(short_answer.split()), " ".join(question.split()).lower()
    if type == "presence" or question_text in _CLOSED_QUESTIONS:
        return "" if is_closed(text) else "yes or no"
    if type == "view":
        views = ("pa view", "ap view")
        if question_text == "which view is this image taken?" or not is_closed(text):
            return "" if text.lower() in views else "PA view or AP view"
        return ""
    if type == "abnormality":
        return _expected_findings(text)
    return "" if all(map(_is_present, re.split(r"\s*,\s*", text))) else f"a {type}"


@lru_cache(maxsize=4096)
def is_name(text: str) -> bool:
    """True for a name of a finding, a place, a level or a type: words, and no stand-in for a missing value."""
    stripped = text.strip(_PUNCTUATION)
    if is_closed(stripped) or is_missing(text) or text.startswith("'"):
        return False
    if _REFUSAL.fullmatch(text) or _CUT_NAME.fullmatch(text):
        return False
    if text.startswith(("-", "/", ")")) or text.endswith(("-", "/", "(")) or text.count("(") != text.count(")"):
        return False
    if not text.isascii() and any(unicodedata.category(character) == "So" for character in text):  # an emoji
        return False
    return any(map(str.isalpha, text)) and _NOTATION.isdisjoint(text)


def is_missing(text: str) -> bool:
    """True for a word that stands for a missing value, whatever punctuation is around it."""
    return text.strip(_PUNCTUATION).lower() in MISSING


def is_misread(text: str) -> bool:
    """True for text that was decoded wrongly (`effusiÃ³n`), or copied with ligatures and wide letters (`\ufb01brosis`).

    It would name another finding than the one that it displays.
    """
    if text.isascii():
        return False
    try:
        text.encode("cp1252").decode()
        return True
    except UnicodeError:
        return unicodedata.normalize("NFKC", text) != text


@lru_cache(maxsize=4096)
def is_question(text: str) -> bool:
    """True for text that can be a question: words in their own characters, each blank of its template filled."""
    words = text.split()
    if len(words) < 2 or not any(map(str.isalpha, text)) or not text.strip().isprintable() or is_misread(text):
        return False
    return _NO_QUESTION.search(" ".join(words)) is None


def _has_names(change: Change) -> bool:
    """True if a change has names where the dataset writes them."""
    names = [*change.new, *change.resolved]
    for level in change.levels:
        names += level.finding, level.before, level.after
    return all(map(_is_present, names))


def _expected_findings(text: str) -> str:
    try:
        findings = parse_findings(text)
    except GrammarError:
        return "a list of findings"
    # `none` is a word for no findings, `None` is Python's for no answer; a name with a full stop cannot be written.
    valid = all(map(_is_present, findings)) and not any("." in name for name in findings)
    return "" if valid and text.rstrip(".") != "None" else "a list of findings"


@lru_cache(maxsize=4096)
def _is_present(text: str) -> bool:
    """True for a name of a finding, or of its place, level or type, that an image shows."""
    return is_name(text) and not _ABSENCE.fullmatch(text)


def contradiction(change: Change) -> str:
    """How a change contradicts itself; empty if it does not.

    Several changes of level of one finding do not: the two sides can differ, and the dataset writes such answers.
    """
    resolved = {name.lower() for name in change.resolved}
    if change.new and resolved and not resolved.isdisjoint(map(str.lower, change.new)):
        return "a finding is both new and resolved"
    for level in change.levels:
        if level.before.lower() == level.after.lower():
            return "a level has changed to itself"
        if (finding := level.finding.lower()) in resolved or finding in map(str.lower, change.new):
            return "a finding has a level on both images, and is new or resolved"
    return ""


def facts(type: str, short_answer: str) -> Any:
    """What a valid short answer states: equal for those that differ only in order, spaces or capitals.

    A frozenset for a list and a change: `<` then says that one answer states less than the other.
    """
    text = " ".join(short_answer.split()).lower()
    if type in ("difference", "prediction"):
        return change_items(parse_difference(text))
    if type == "abnormality" and not is_closed(text):
        return frozenset(parse_findings(text))
    return frozenset(re.split(r"\s*,\s*", text.rstrip(".")))


def change_items(change: Change) -> frozenset[tuple[str, ...]]:
    """The single facts of a change."""
    items = [("new", name) for name in change.new] + [("resolved", name) for name in change.resolved]
    return frozenset([*items, *map(_level_item, change.levels)])


def _level_item(level: LevelChange) -> tuple[str, ...]:
    """A level change by its words and direction: `mild to moderate to severe` has two readings that are one fact."""
    if not level.direction:
        return "level", level.finding, level.before, level.after
    words = f"{level.before} {level.after}".replace(" to ", " ").split()
    return "worse" if level.direction > 0 else "better", level.finding, *sorted(words)
