"""What an answer claims, as facts that can be counted: changes between two images, and findings of one.

References are read by the dataset's grammar. Answers are read by it too, and where they leave it, by the
words that say that a finding is new, gone or of another level; a finding is one that the references name.
An answer that cannot be read claims nothing. No weights: an error counts one, whatever it is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from lumen_hpc.data.diff_vqa import LEVELS, Change, GrammarError, LevelChange, parse_difference, parse_findings

KINDS = ("new", "resolved", "level")
Fact = tuple[str, ...]
"""("new", finding), ("resolved", finding) or ("level", finding, before, after)."""


class Tally(NamedTuple):
    """Facts of an answer against those of its reference."""

    hits: int
    extra: int
    missed: int

    @property
    def f1(self) -> float:
        """F1 of one answer; 1 where there is nothing to say and nothing is said."""
        whole = 2 * self.hits + self.extra + self.missed
        return 2 * self.hits / whole if whole else 1.0


def tally(answer: Iterable[Fact], reference: Iterable[Fact]) -> Tally:
    """Counts the facts of an answer that its reference has, those it has not, and those that the answer lacks."""
    answer, reference = set(answer), set(reference)
    return Tally(len(answer & reference), len(answer - reference), len(reference - answer))


def facts(change: Change) -> set[Fact]:
    """A change as facts, in lower case."""
    found = [("new", name) for name in change.new] + [("resolved", name) for name in change.resolved]
    found += [("level", level.finding, level.before, level.after) for level in change.levels]
    return {tuple(word.lower() for word in fact) for fact in found}


def direction(change: Change) -> str | None:
    """`worse`, `better`, `mixed` or `same`; None where only levels of unknown order changed."""
    ways = {1} if change.new else set()
    ways |= {-1} if change.resolved else set()
    ways |= {level.direction for level in change.levels}
    if ways >= {1, -1}:
        return "mixed"
    return "worse" if 1 in ways else "better" if -1 in ways else None if ways else "same"


class Reader:
    """Reads answers, knowing the names of the findings that may occur in them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {form: name for name in sorted({name.lower() for name in names if name}) for form in _forms(name)}
        # The longest first, so that `pleural effusion` is not read as `effusion`.
        forms = sorted(self._names, key=lambda form: (-len(form), form))
        self._name = re.compile(r"\b(?:" + "|".join(map(re.escape, forms)) + r")\b") if forms else None

    @classmethod
    def of(cls, references: Iterable[dict]) -> Reader:
        """A reader that knows every finding named in the short answers of these questions."""
        names: set[str] = set()
        for row in references:
            try:
                if row["type"] == "abnormality" and not row.get("closed"):
                    names.update(parse_findings(row["short_answer"]))
                elif row["type"] in ("difference", "prediction"):
                    names.update(fact[1] for fact in facts(parse_difference(row["short_answer"])))
            except GrammarError:
                continue
        return cls(names)

    def findings(self, text: str) -> set[str]:
        """The findings that a text affirms; one after a negation in the same clause is not."""
        affirmed: set[str] = set()
        for clause in _CLAUSE_END.split(text.lower()):
            denial = _DENIAL.search(clause)
            affirmed.update(name for name, at in self._named(clause) if not denial or at < denial.start())
        return affirmed

    def change(self, text: str) -> Change | None:
        """The change that a text claims; None if it claims neither a change nor that there is none."""
        try:
            return parse_difference(text)
        except GrammarError:
            pass
        found: dict[Fact, None] = {}
        for sentence in _SENTENCE_END.split(text.lower()):
            found.update(dict.fromkeys(self._claims(sentence)))
        if found:
            return Change(
                new=tuple(fact[1] for fact in found if fact[0] == "new"),
                resolved=tuple(fact[1] for fact in found if fact[0] == "resolved"),
                levels=tuple(LevelChange(*fact[1:]) for fact in found if fact[0] == "level"),
            )
        return Change() if _UNCHANGED.search(text.lower()) else None

    def level(self, text: str) -> str:
        """The level that a text names, the longest known word for one; empty if it names none."""
        found = _LEVEL.search(text.lower())
        return found[0] if found else ""

    def _named(self, text: str) -> list[tuple[str, int]]:
        found = self._name.finditer(text) if self._name else ()
        return [(self._names[match[0]], match.start()) for match in found]

    def _claims(self, sentence: str) -> list[Fact]:
        """Facts of one sentence: each of its parts has a cue, or shares its neighbour's.

        `additional findings of edema, nodule`: the cue stands before its findings and reaches on.
        `edema and nodule have resolved`: it stands after them and reaches back.
        """
        parts = [_Part(self._named(text), text) for text in _PART_END.split(sentence)]
        claims: list[Fact] = []
        for k, part in enumerate(parts):
            if part.levels:
                claims += [("level", name, *part.levels) for name in part.names]
                continue
            before = next((other for other in reversed(parts[:k]) if other.cue), None)
            after = next((other for other in parts[k + 1 :] if other.cue), None)
            reaching = part if part.cue else before if before and before.leads else after
            if reaching and not (part.cue is None and part.unchanged):
                claims += [(reaching.cue, name) for name in part.names]
        return claims


def _forms(name: str) -> tuple[str, ...]:
    """A finding's name and its plurals."""
    return (name, name + "s", name + "es", name[:-1] + "ies") if name.endswith("y") else (name, name + "s", name + "es")


class _Part:
    """A stretch of a sentence between its commas and conjunctions, and what it says of the findings in it."""

    def __init__(self, named: list[tuple[str, int]], text: str) -> None:
        self.names = [name for name, _ in named]
        levels, cue = _LEVELS.search(text), _CUE.search(text)
        self.levels = (levels[1], levels[2]) if levels else None
        self.cue = None if self.levels or not cue else "new" if cue["new"] else "resolved"
        self.leads = bool(cue) and (not named or cue.start() < named[0][1])
        self.unchanged = bool(_UNCHANGED.search(text))


_SENTENCE_END = re.compile(r"[.;!?\n]+\s*")
_CLAUSE_END = re.compile(r"[.;!?\n]+\s*|,? but |,? while |,? whereas |,? although |,? however ")
_PART_END = re.compile(r",\s*(?:and |but |while |whereas )?| and | but | while | whereas | as well as ")
_DENIAL = re.compile(
    r"\b(?:no|not|without|absent|absence of|negative for|free of|neither|resolved|no longer|cleared|disappeared)\b"
)
_LEVELS = re.compile(r"\bfrom ([a-z]+(?: to [a-z]+)??) to ([a-z]+(?: to [a-z]+)?)")
_LEVEL = re.compile(r"\b(?:" + "|".join(sorted(LEVELS, key=lambda word: (-len(word), word))) + r")\b")
_CUE = re.compile(
    r"(?P<resolved>\bresol\w+|\bmissing\b|\bno longer\b|\bdisappear\w*|\bclear(?:ed|s|ing|ance)?\b|\babsent\b|\bgone\b"
    r"|\bvanish\w*|\blacks?\b|\bnot (?:seen|present|visible|identified)\b|\bwithout\b)"
    r"|(?P<new>\bnew(?:ly)?\b|\badditional(?:ly)?\b|\bdevelop\w*|\bappear(?:s|ed|ance)?\b|\bemerg\w+|\bnow\b|\barise[ns]?\b)"
)
_UNCHANGED = re.compile(
    r"\bnothing (?:has )?changed?\b|\bnothing (?:is|will|would)\b|\bno (?:\w+ ){0,2}changes?\b|\bunchanged\b"
    r"|\b(?:remain(?:s|ed)?|is|are|stays?) (?:stable|the same)\b|\bnot changed?\b|\bno difference"
)
