"""Yes or no out of an answer to a close-ended question, by three rules that the field uses.

LLaVA-Med takes any substring (`no` is in `nodule`), D-Rax and VILA-M3 want equality after normalising;
LUMEN's own rule is unstated. Here `first_yes_no` is the accuracy, `strict` and `stated` stand beside it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lumen_hpc.data.diff_vqa import parse_question
from lumen_hpc.language.clauses import ANY
from lumen_hpc.language.facts import check
from lumen_hpc.language.reader import read
from lumen_hpc.language.unwrapping import unwrapped
from lumen_hpc.language.words import knows
from lumen_hpc.metrics.change import named
from lumen_hpc.metrics.recall import words

_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:no|not|without|absent|absence|negative|free of|neither|nor|never|none|cannot|lacks?)\b|n't\b", re.IGNORECASE
)

_KNOWN = ("present", "same", "absent")
"""What is said of a finding where it answers: residual edema is there."""


def first_yes_no(answer: str) -> str | None:
    """The first word `yes` or `no` of an answer, in lower case; None if it has neither."""
    found = _YES_NO.search(answer)
    return found[1].lower() if found else None


def _both(answer: str) -> bool:
    """True for `yes/no` and `Yes or no?`, which choose neither."""
    return {"yes", "no"} <= set(re.findall(r"\w+", answer.lower())) <= {"yes", "no", "and", "or"}


def strict(answer: str) -> str | None:
    """`yes` or `no` if that is all the answer says, punctuation aside (D-Rax, VILA-M3)."""
    spoken = words(answer)
    return spoken[0] if spoken in (["yes"], ["no"]) else None


@lru_cache(maxsize=1 << 16)  # closed answers are few sentences, given again and again
def stated(kind: str, question: str, answer: str) -> str | None:
    """Whether an answer affirms or denies what was asked: by its opening `Yes` or `No`, else by what it says.

    Long answers (paper, section 2.2) may affirm without saying yes: `There is evidence of edema in this image.` A
    sentence about another finding answers nothing: None. So does one that only says what may be. An opening that
    speaks of another finding gives way to what is said of the one asked about. `kind` is the question's type; of a
    question outside the dataset's templates the subject is not known, so any sentence counts, and a word of negation
    decides.
    """
    parsed = parse_question(kind, question)
    if parsed is None:
        return first_yes_no(answer) or (("no" if _NEGATION.search(answer) else "yes") if answer.strip() else None)
    finding = named(parsed.finding) if parsed.finding else None
    answer = unwrapped(answer)
    facts = read(answer, kind, (("finding", finding),) if finding and not knows(finding) else (), lenient=True)
    if facts.lead and _both(answer):
        return None
    if facts.lead and (finding is None or next(iter(facts.findings), finding) in (finding, ANY)):
        return facts.lead  # but: `No, there is no edema. However, there is an effusion.`, asked for the effusion
    for reply in ("yes", "no"):
        if not check(kind, question, reply, answer):
            return reply
    if kind == "view":
        asked = "PA" if "PA" in parsed.template else "AP"
        claims = [there == (view == asked) for view, there in facts.views.items() if there or view == asked]
    else:
        states = facts.findings.values() if finding is None else [facts.findings.get(finding)]
        claims = [state.status != "absent" for state in states if state and state.status in _KNOWN]
    if not claims:
        return facts.lead or None
    return "yes" if any(claims) else "no"
