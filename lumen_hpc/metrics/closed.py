"""Yes or no out of an answer to a close-ended question, by three rules that the field uses.

LLaVA-Med takes any substring (`no` is in `nodule`), D-Rax and VILA-M3 want equality after normalising;
LUMEN's own rule is unstated. Here `first_yes_no` is the accuracy, `strict` and `stated` stand beside it.
"""

from __future__ import annotations

import re

from lumen_hpc.data.diff_vqa import parse_question
from lumen_hpc.language.facts import check
from lumen_hpc.language.reader import read
from lumen_hpc.metrics.change import named
from lumen_hpc.metrics.recall import words

_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:no|not|without|absent|absence|negative|free of|neither|nor|never|none|cannot|lacks?)\b|n't\b", re.IGNORECASE
)


def first_yes_no(answer: str) -> str | None:
    """The first word `yes` or `no` of an answer, in lower case; None if it has neither."""
    found = _YES_NO.search(answer)
    return found[1].lower() if found else None


def strict(answer: str) -> str | None:
    """`yes` or `no` if that is all the answer says, punctuation aside (D-Rax, VILA-M3)."""
    spoken = words(answer)
    return spoken[0] if spoken in (["yes"], ["no"]) else None


def stated(kind: str, question: str, answer: str) -> str | None:
    """`first_yes_no`, and for a sentence without either word, whether it denies or affirms what was asked.

    Long answers (paper, section 2.2) affirm without saying yes: `There is evidence of edema in this image.` What
    passes the fact check as yes or no is that; else a word of negation decides. A sentence about another finding
    answers nothing: None. `kind` is the question's type; of a question outside the dataset's templates the subject is
    not known, and any sentence counts.
    """
    if word := first_yes_no(answer):
        return word
    parsed = parse_question(kind, question)
    if parsed is not None:
        for word in ("yes", "no"):
            if not check(kind, question, word, answer):
                return word
        finding = named(parsed.finding) if parsed.finding else None
        facts = read(answer, kind, (finding,) if finding else ())
        subjects = facts.views if kind == "view" else facts.findings
        if not subjects or (finding and finding not in subjects):
            return None
    return ("no" if _NEGATION.search(answer) else "yes") if answer.strip() else None
