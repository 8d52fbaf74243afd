"""Yes or no out of an answer to a close-ended question, by three rules that the field uses.

LLaVA-Med takes any substring (`no` is in `nodule`), D-Rax and VILA-M3 want equality after normalising;
LUMEN's own rule is unstated. Here `first_yes_no` is the accuracy, `strict_yes_no` and `polarity` stand beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from lumen_hpc.data.diff_vqa import parse_question
from lumen_hpc.language.attributes import SIDES
from lumen_hpc.language.clauses import ANY
from lumen_hpc.language.facts import check
from lumen_hpc.language.findings import State
from lumen_hpc.language.reader import Facts, places_in, read
from lumen_hpc.language.unwrapping import unwrap
from lumen_hpc.language.words import canonical_name, knows
from lumen_hpc.metrics.change import PRESENT, Reader, reader_name
from lumen_hpc.metrics.recall import words

_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_CHOICE = re.compile(r"\byes *(?:/|or) *no\b|\bno *(?:/|or) *yes\b", re.IGNORECASE)
"""Both words as a question has them: `Is there edema, yes or no?`"""
_NEGATION = re.compile(
    r"\b(?:no|not|without|absent|absence|negative|free of|neither|nor|never|none|cannot|lacks?)\b|n't\b", re.IGNORECASE
)

_ANSWERING_STATES = PRESENT | {"absent", "resolved"}
"""States that answer a question: residual or new edema is there, resolved edema is not."""
_GENERAL_STATES = ("present", "new", "absent", "resolved")
"""States that count for a finding without a name: stable contours are no abnormality."""
_ANY_ABNORMALITY = "is there evidence of any abnormalities in this image?"
_YES = frozenset({
    "yes", "y", "yeah", "yep", "yup", "affirmative", "positive", "present", "correct", "indeed", "true", "probably",
    "likely yes", "probably yes", "most likely", "definitely", "certainly", "absolutely",
    "\N{WHITE HEAVY CHECK MARK}", "\N{CHECK MARK}", "\N{HEAVY CHECK MARK}",
})  # fmt: skip
_NO = frozenset({
    "no", "n", "nope", "nah", "negative", "absent", "incorrect", "false", "probably not", "not likely", "likely not",
    "likely no", "probably no", "most likely not", "definitely not", "certainly not", "absolutely not", "not really",
    "not that i can see", "no there isn't", "that's not the case",
    "\N{CROSS MARK}", "\N{BALLOT X}", "\N{HEAVY BALLOT X}",
})  # fmt: skip
"""Words that alone are an answer."""
_WHOLE_ANSWERS = (
    ("abnormalities", "no", r"(?:an? )?(?:normal|unremarkable)(?: (?:chest|study|radiograph|image|x-ray|exam))*"),
    ("abnormalities", "no", r"(?:everything|it) (?:looks|is|seems|appears) (?:fine|good|healthy|ok|okay)"),
    ("abnormalities", "no", r"no (?:acute )?(?:cardiopulmonary |cardiothoracic )?(?:process|disease|abnormality)"),
    (
        "abnormalities",
        "yes",
        r"(?:it is )?not normal|(?:an? )?abnormal(?: (?:chest|study|radiograph|image|x-ray|exam))*",
    ),
    (
        "is there",
        "no",
        r"(?:(?:it|this) is )?(?:not|none|nothing) (?:is )?(?:seen|present|visible|evident|identified|detected|there)"
        r"|none",
    ),
    ("is there", "no", r"(?:it|this) is (?:absent|unlikely)|unlikely"),
    ("is there", "no", r"there (?:is|are)(?: none(?: (?:visible|seen|present))?|(?: not|n't)(?: any)?)"),
    ("is there", "no", r"(?:there is )?no (?:evidence|sign)(?: of (?:it|this|that))?"),
    ("is there", "yes", r"there is(?: evidence(?: of (?:it|this|that))?)?"),
    (
        "is there",
        "yes",
        r"(?:(?:it|this) is )?(?:seen|present|visible|evident|identified|detected|likely)|(?:it|this) is there",
    ),
    ("is there", "yes", r"(?:only )?(?:an? )?(?:trace|minimal|mild|small|moderate|large|severe)(?: one| amount)?"),
    ("bilateral", "yes", r"(?:on )?both sides|bilateral(?:ly)?"),
    ("bilateral", "no", r"unilateral(?:ly)?|(?:only )?(?:on )?(?:the )?(?:left|right|one)(?:[ -]sided?)?(?: only)?"),
)
"""(word of the template, reply, whole answer): answers that name nothing of the question."""
_OF_A_KIND = re.compile(r"\b(?:acute|active|new|focal|significant|change)\b", re.IGNORECASE)
"""What limits a denial of every abnormality to some."""
_CONCLUSION = re.compile(r"\b(yes|no)[^\w,/]*(?=$|[.;!\n])|(?:^|[.;!\n])\W*(yes|no)\W*(?=$|[,.;:!\n])", re.IGNORECASE)
"""Yes or no at either end of a sentence: `Based on the image, yes.`"""
_FINAL_WORD = re.compile(r"[.;!\n]\s*(?:(?:so|thus|therefore|hence)[,:]?\s*)?(yes|no)\W*$", re.IGNORECASE)
"""Yes or no as the last sentence: `The angle is blunted. Yes.`"""


def first_yes_no(answer: str) -> str | None:
    """The first word `yes` or `no` of an answer, in lower case; None if it has neither. `Yes or no` offers both."""
    match = _YES_NO.search(_CHOICE.sub(" ", answer))
    return match[1].lower() if match else None


def _offers_both(answer: str) -> bool:
    """True for `yes/no` and `Yes or no?`, which choose neither."""
    return {"yes", "no"} <= set(re.findall(r"\w+", answer.lower())) <= {"yes", "no", "and", "or"}


def strict_yes_no(answer: str) -> str | None:
    """`yes` or `no` if that is all the answer says, punctuation aside (D-Rax, VILA-M3)."""
    answer_words = words(answer)
    return answer_words[0] if answer_words in (["yes"], ["no"]) else None


@lru_cache(maxsize=1 << 16)  # closed answers are few sentences, given again and again
def polarity(kind: str, question: str, answer: str) -> str | None:
    """Whether an answer affirms or denies what was asked: by its opening `Yes` or `No`, else by what it says.

    Long answers (paper, section 2.2) may affirm without saying yes: `There is evidence of edema in this image.` A
    sentence about another finding answers nothing: None. So does one that only says what may be. An opening that
    speaks of another finding gives way to the claims about the one asked about. `kind` is the question's type; of a
    question outside the dataset's templates the subject is not known, so any sentence counts, and a word of negation
    decides.
    """
    parsed = parse_question(kind, question)
    if parsed is None:
        return first_yes_no(answer) or (("no" if _NEGATION.search(answer) else "yes") if answer.strip() else None)
    finding = reader_name(parsed.finding) if parsed.finding else None
    answer = _CHOICE.sub(" ", unwrap(answer))
    if (word := answer.strip(" .!:()").lower()) in _YES | _NO:
        return "yes" if word in _YES else "no"
    for template_word, reply, pattern in _WHOLE_ANSWERS:
        if template_word in parsed.template and re.fullmatch(pattern, word):
            return reply
    facts = read(answer, kind, (("finding", finding),) if finding and not knows(finding) else (), lenient=True)
    if facts.lead and _offers_both(answer):
        return None
    if facts.lead and (finding is None or next(iter(facts.findings), finding) in (finding, ANY)):
        return facts.lead  # but: `No, there is no edema. However, there is an effusion.`, asked for the effusion
    for reply in ("yes", "no"):
        if not check(kind, question, reply, answer):
            return reply
    if kind == "view":
        asked_view = "PA" if "PA" in parsed.template else "AP"
        claims = [there == (view == asked_view) for view, there in facts.views.items() if there or view == asked_view]
        claims = [] if facts.views.get("AP") and facts.views.get("PA") else claims  # it is either AP or PA
    else:
        if finding is None:
            states = [it for name, it in facts.findings.items() if name != ANY or it.status in _GENERAL_STATES]
        else:
            names = [name for name in facts.findings if canonical_name(name) == canonical_name(finding)]
            states = [facts.findings[name] for name in sorted(names, key=finding.__eq__, reverse=True)[:1]]
        answering_states = [state for state in states if state.status in _ANSWERING_STATES]
        replies = (_affirms(parsed.template, parsed.location, state) for state in answering_states)
        claims = [claim for claim in replies if claim is not None]
    if claims:
        return "yes" if any(claims) else "no"
    if finding and finding not in facts.findings and _denies_all(facts, answer):
        return "no"
    conclusions = {reply.lower() for groups in _CONCLUSION.findall(answer) for reply in groups if reply}
    nothing_else = not facts.findings and not facts.views and len(conclusions) == 1
    if facts.lead or nothing_else:
        return facts.lead or conclusions.pop()
    final_word = _FINAL_WORD.search(answer)
    return final_word[1].lower() if final_word and finding not in facts.findings else None


def _denies_all(facts: Facts, answer: str) -> bool:
    """True for `The image is normal.`, which denies every finding; `no acute process` and clear lungs do not."""
    general = facts.findings.get(ANY)
    says_normal = general is not None and general.status == "absent"
    return says_normal and not (facts.partial or facts.places or facts.unread or _OF_A_KIND.search(answer))


def listed_findings(reader: Reader, answer: str) -> set[str] | None:
    """The findings that an answer names; None where it names none and does not say that there is none."""
    names = reader.findings(answer)
    return names if names or polarity("abnormality", _ANY_ABNORMALITY, answer) == "no" else None


def _heights(place: Iterable[str]) -> set[str]:
    """Upper, middle or lower, of the names of a place."""
    names = " ".join(place).replace("apex", "upper").replace("base", "lower").split()
    return {"upper", "middle", "lower"} & set(names)


def _affirms(template: str, location: str | None, state: State) -> bool | None:
    """Whether the claim about the finding affirms the question; None where it is about something else.

    Of a finding that is there, sides and heights that lie elsewhere deny: `on the left only`, asked whether it is
    bilateral, and the left upper lobe, asked for the left lower lung. That there is none elsewhere tells nothing.
    """
    sides = {name for place in state.places for name in place} & SIDES
    asked_names = {name for place in places_in(location or "") for name in place}
    side, height = asked_names & SIDES, _heights(asked_names)
    nearby_heights = [_heights(place) for place in state.places if not (side and place & SIDES) or place & side]
    height_matches = not (nearby_heights and height) or any(
        not heights or heights & height for heights in nearby_heights
    )
    place_matches = height_matches and (not sides or side <= sides)
    if state.status in ("absent", "resolved"):
        return False if place_matches else None
    if "bilateral" in template:
        return sides == SIDES if sides else None
    return place_matches
