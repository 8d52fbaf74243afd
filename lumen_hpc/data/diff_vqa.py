"""Medical-Diff-VQA's language: question types, question templates, and the grammar of its short answers.

Answers are both read and written: `parse_*` undoes `render_*`. Names of findings are an open vocabulary;
a name is any text without a comma, a full stop or the word `and`, since those separate names.
Formats: the dataset's documentation (PhysioNet `medical-diff-vqa` 1.0.0 and 1.0.1). Paper, section 2.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from lumen_hpc.errors import UserError

DIAGNOSTIC = ("abnormality", "presence", "view", "location", "level", "type")
"""Question types about one image (paper, section 2.1)."""

TYPES = (*DIAGNOSTIC, "difference")
"""All question types of the dataset; `prediction` questions come later (section 2.4)."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "abnormality": (
        "what abnormalities are seen in this image?",
        "is there evidence of any abnormalities in this image?",
        "what abnormalities are seen in the {location}?",
    ),
    "presence": (
        "is there evidence of {finding} in this image?",
        "is the {finding} bilateral?",
        "is there {finding} in the {location}?",
        "is there {finding}?",
    ),
    "view": ("which view is this image taken?", "is this PA view?", "is this AP view?"),
    "location": (
        "where in the image is the {finding} located?",
        "is the {finding} located on the left side or right side?",
        "where is the {finding}?",
    ),
    "level": ("what level is the {finding}?",),
    "type": ("what type is the {finding}?",),
    "difference": ("what has changed compared to the reference image?", "what has changed in the {location} area?"),
}
"""Question templates by type; within a type, the first that matches a text is its template."""

CLOSED_TEMPLATES = frozenset(
    {"is there evidence of any abnormalities in this image?", "is this PA view?", "is this AP view?"}
    | set(TEMPLATES["presence"])
)
"""Templates whose only answers are yes and no."""

LEVELS = {
    "minimal": 1.0, "minimally": 1.0, "subtle": 1.0, "minor": 1.0, "trace": 1.0,
    "mild": 2.0, "mildly": 2.0, "small": 2.0,
    "mild to moderate": 2.5, "small to moderate": 2.5,
    "moderate": 3.0, "moderately": 3.0,
    "moderate to large": 3.5, "moderate to severe": 3.5,
    "large": 4.0, "severe": 4.0, "severely": 4.0, "massive": 4.0,
    "acute": None, "increasing": None, "decreasing": None,
}  # fmt: skip
"""Known level words with their rank of severity (None: the word gives no severity)."""

NO_CHANGE = "nothing has changed."
NO_FINDING = "no abnormality"


class GrammarError(UserError):
    """A text that the dataset's grammar does not produce."""


@dataclass(frozen=True, slots=True)
class LevelChange:
    """A finding seen on both images, at another level."""

    finding: str
    before: str
    after: str

    @property
    def direction(self) -> int:
        """+1 worse, -1 better, 0 equal or not comparable."""
        before, after = severity(self.before), severity(self.after)
        return 0 if before is None or after is None else (after > before) - (after < before)


@dataclass(frozen=True, slots=True)
class Change:
    """The content of a difference answer; the empty Change means that nothing has changed."""

    new: tuple[str, ...] = ()
    resolved: tuple[str, ...] = ()
    levels: tuple[LevelChange, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.new or self.resolved or self.levels)

    def reversed(self) -> Change:
        """The change between the same two images in the other order: new ↔ resolved, levels swapped."""
        levels = tuple(LevelChange(level.finding, level.after, level.before) for level in self.levels)
        return Change(self.resolved, self.new, levels)


@dataclass(frozen=True, slots=True)
class Question:
    """A parsed question: its type, its template, and the values of the template's blanks."""

    type: str
    template: str
    finding: str | None = None
    location: str | None = None


def is_closed(short_answer: str) -> bool:
    """True for a closed-ended answer: exactly yes or no (so `nothing` and `no change` are open)."""
    return short_answer.strip().lower() in ("yes", "no")


def severity(level: str) -> float | None:
    """Rank of a level from 1 (minimal) to 4 (severe); None if its words give no severity.

    Of several words (`small acute`), the mean over those that have a rank.
    """
    ranks = [rank for word in _level_words(level.strip().lower()) if (rank := LEVELS.get(word)) is not None]
    return sum(ranks) / len(ranks) if ranks else None


def parse_findings(text: str) -> tuple[str, ...]:
    """The findings that a list answer names, in order and without repeats; none for `no abnormality`, `no`, `none`.

    Accepts `a, b`, `a and b`, `a, b, and c`, and a full stop at the end. Raises GrammarError for an empty text or an
    empty item in the list.
    """
    text = text.strip().removesuffix(".")
    if text.lower() in ("no abnormality", "no abnormalities", "none", "no", "no finding"):
        return ()
    return _unique(_names(" ".join(text.split())))


def render_findings(findings: tuple[str, ...]) -> str:
    """A list answer, `a, b`; `no abnormality` for none. Raises GrammarError for a name that cannot be listed."""
    return ", ".join(_valid_name(name) for name in findings) or NO_FINDING


def parse_difference(text: str) -> Change:
    """Reads a short difference answer.

    Clauses may come in any order, since the dataset holds both orders. `from A to B` with more than one `to` is
    split where both sides are known levels (the leftmost such split, then the leftmost with one known side).
    Raises GrammarError with the first words that do not match.
    """
    new: list[str] = []
    resolved: list[str] = []
    levels: list[LevelChange] = []
    *clauses, rest = text.split(".")
    for index, clause in enumerate(clauses):
        if (change := _clause(clause)) is None:
            rest = ".".join([*clauses[index:], rest])
            break
        new += change.new
        resolved += change.resolved
        levels += change.levels
    if rest.strip():
        rest, text = (" ".join(words.split()) for words in (rest, text))
        if text.lower() == NO_CHANGE:
            return Change()
        raise GrammarError(
            f"difference answer outside the grammar at character {len(text) - len(rest) + 1} of {len(text)}; expected "
            "`the main image has (an additional finding|additional findings) of … than the reference image.`, "
            "`the main image is missing the (finding|findings) of … than the reference image.`, "
            f"`the level of … has changed from … to ….` or `{NO_CHANGE}` alone"
        )
    if not (new or resolved or levels):
        raise GrammarError(f"an empty difference answer; `{NO_CHANGE}` means that there is no change")
    return Change(_unique(new), _unique(resolved), _unique(levels))


def render_difference(change: Change) -> str:
    """A short difference answer in the dataset's wording, trailing space included.

    Raises GrammarError for a finding or level that the grammar cannot express.
    """
    if not change:
        return NO_CHANGE
    clauses = []
    if change.new:
        form = "an additional finding" if len(change.new) == 1 else "additional findings"
        clauses.append(f"the main image has {form} of {_comma_separated(change.new)} than the reference image. ")
    if change.resolved:
        form = "finding" if len(change.resolved) == 1 else "findings"
        clauses.append(
            f"the main image is missing the {form} of {_comma_separated(change.resolved)} than the reference image. "
        )
    for level in change.levels:
        finding, before, after = map(_valid_name, (level.finding, level.before, level.after))
        clauses.append(f"the level of {finding} has changed from {before} to {after}. ")
    return "".join(clauses)


def parse_question(type: str, text: str) -> Question | None:
    """Parses a question; None if no template of its type matches (the dataset holds a few such questions)."""
    text = " ".join(text.split())
    for template in TEMPLATES.get(type, ()):
        if match := _template_pattern(template).fullmatch(text):
            return Question(type, template, **match.groupdict())
    return None


def is_in_its_words(question: str) -> bool:
    """Whether a question of any type is one that the dataset asks."""
    return any(parse_question(type, question) for type in TEMPLATES)


_CLAUSE = re.compile(
    r"the main image has (?:an additional finding|additional findings) of (?P<new>.+) than the reference image"
    r"|the main image is missing the findings? of (?P<resolved>.+) than the reference image"
    r"|the level of (?P<finding>.+?) has changed from (?P<levels>.+ to .+)",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"\s*,\s*and\s+|\s*,\s*|\s+and\s+", re.IGNORECASE)
_TO_WORD = re.compile(" to ", re.IGNORECASE)
_LEVEL = re.compile("|".join(rf"\b{re.escape(level)}\b" for level in sorted(LEVELS, key=len, reverse=True)))


@cache
def _template_pattern(template: str) -> re.Pattern:
    """A template's regular expression; the article before a location is optional, as in the dataset."""
    pattern = re.escape(template).replace(r"the\ \{location\}", r"(?:the\ )?\{location\}")
    return re.compile(
        pattern.replace(r"\{finding\}", r"(?P<finding>.+?)").replace(r"\{location\}", r"(?P<location>.+?)"),
        re.IGNORECASE,
    )


@lru_cache(maxsize=4096)
def _clause(text: str) -> Change | None:
    """What one clause of a difference answer states, without its full stop; None for any other text."""
    clause = _CLAUSE.fullmatch(" ".join(text.split()))
    if clause is None:
        return None
    if clause["new"]:
        return Change(new=_names(_separate_fused_names(clause["new"])))
    if clause["resolved"]:
        return Change(resolved=_names(_separate_fused_names(clause["resolved"])))
    return Change(levels=(_level_change(clause["finding"], clause["levels"]),))


def _separate_fused_names(names_text: str) -> str:
    """A list in which the dataset's generator fused names: it writes each copy of the last one as `and NAME`, no comma.

    `opacity, and pneumonia edema, and pneumonia` names an opacity, a pneumonia and an edema: infections became
    pneumonia, so that an answer could hold two (Holipori/EKAID issue 9).
    """
    last_name = _SEPARATOR.split(names_text)[-1]
    return re.sub(
        rf"(?:,? |^)and {re.escape(last_name)}(?= )", f", {last_name},", names_text, flags=re.IGNORECASE
    ).removeprefix(", ")


@lru_cache(maxsize=4096)
def _names(text: str) -> tuple[str, ...]:
    names = _SEPARATOR.split(text)
    if not all(names):
        raise GrammarError(f"a list of findings, {len(text)} characters, has an empty item")
    return tuple(names)


def _valid_name(name: str) -> str:
    if name != " ".join(name.split()) or "." in name or len(_SEPARATOR.split(name)) != 1 or not name:
        raise GrammarError(
            f"a name of {len(name)} characters cannot stand in an answer: a name has no comma, full stop or `and`"
        )
    return name


def _comma_separated(names: tuple[str, ...]) -> str:
    """`a`, `a, and b`, `a, b, and c`: the dataset writes the comma before `and` even between two."""
    *rest, last = map(_valid_name, names)
    return f"{', '.join(rest)}, and {last}" if rest else last


def _unique(items: list | tuple) -> tuple:
    return tuple(dict.fromkeys(items) if len(items) > 1 else items)


def _level_words(level: str) -> list[str]:
    """A level phrase as known levels, longest first; unknown words are returned as they are."""
    levels = _LEVEL.findall(level)
    return levels + _LEVEL.sub(" ", level).split()


def _level_change(finding: str, levels: str) -> LevelChange:
    """A finding and `A to B`, split as in parse_difference."""
    words = _TO_WORD.split(levels)
    splits = [(" to ".join(words[:i]), " to ".join(words[i:])) for i in range(1, len(words))]
    return LevelChange(finding, *max(splits, key=lambda split: sum(map(_is_known_level, split))))


def _is_known_level(phrase: str) -> bool:
    return all(word in LEVELS for word in _level_words(phrase.lower()))
