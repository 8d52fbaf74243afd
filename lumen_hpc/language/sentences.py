"""The grammar's own sentences: every short answer as one whole sentence, without a language model.

They are what engine `grammar` says, and what stands in when a language model's sentence fails the fact check.
A difference keeps the dataset's own clauses, so that `diff_vqa.parse_difference` reads the sentence too.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lumen_hpc.data.diff_vqa import (
    TEMPLATES,
    Change,
    is_closed,
    parse_difference,
    parse_findings,
    parse_question,
    render_difference,
)
from lumen_hpc.errors import UserError


def sentence(kind: str, question: str, short_answer: str) -> str:
    """One whole sentence that says what the short answer says, and nothing else (sections 2.2 and 2.4).

    `kind` is one of the seven question types, or `prediction` with the difference as its short answer. A question
    outside the dataset's templates is quoted. Raises GrammarError for a difference that cannot be read.
    """
    answer = " ".join(short_answer.split())
    if kind == "difference":
        return render_difference(parse_difference(answer)).strip()
    if kind == "prediction":
        return _prediction(parse_difference(answer))
    parsed = parse_question(kind, question)
    if parsed is None:
        return f'The answer to the question "{" ".join(question.split())}" is {answer.rstrip(".")}.'
    return _SENTENCE_BY_TEMPLATE[parsed.template](parsed.finding, parsed.location, answer.rstrip("."))


def _prediction(change: Change) -> str:
    """A known difference as a statement about the future of the reference image."""
    if not change:
        return "No change is expected."
    clauses = []
    if change.new:
        clauses.append(f"{comma_list(change.new)} {_is_or_are(change.new)} expected to appear")
    if change.resolved:
        clauses.append(f"{comma_list(change.resolved)} {_is_or_are(change.resolved)} expected to resolve")
    clauses += [
        f"the level of {level.finding} is expected to change from {level.before} to {level.after}"
        for level in change.levels
    ]
    return ". ".join(clause[0].upper() + clause[1:] for clause in clauses) + "."


def comma_list(names: tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def _is_or_are(names: tuple[str, ...]) -> str:
    return "is" if len(names) == 1 else "are"


def _is_yes(answer: str) -> bool:
    if answer.lower() not in ("yes", "no"):
        raise UserError(f"a closed question has a short answer of {len(answer)} characters; it takes yes or no")
    return answer.lower() == "yes"


def _opening(answer: str) -> str:
    return "Yes, " if _is_yes(answer) else "No, "


def with_opening(short_answer: str, text: str) -> str:
    """A long answer to a closed question with `Yes,` or `No,` before it where it does not open so (section 2.2).

    The paper's example keeps them, and the accuracy of close-ended questions reads them.
    """
    if not is_closed(short_answer) or re.match(rf"{short_answer.strip()}\b", text, re.IGNORECASE):
        return text
    first_letter = text[:1].lower() if text[1:2].islower() or text[1:2] == " " else text[:1]
    return f"{_opening(short_answer.strip())}{first_letter}{text[1:]}"


def _location_phrase(answer: str) -> str:
    """A location answer as the end of `The finding is …`: the dataset gives adjectives, sides and whole phrases."""
    words = answer.lower().split()
    if words[0] in ("in", "on", "at"):
        return f"located {answer}"
    if words in (["bilateral"], ["unilateral"]):
        return answer
    if words[-1] in ("side", "sides"):
        return f"located on {'' if words[0] in ('the', 'both') else 'the '}{answer}"
    return f"located in {'' if words[0] in ('the', 'both') else 'the '}{answer}"


def _abnormality_sentence(place: str | None, answer: str) -> str:
    names = parse_findings(answer)
    where = f"the {place}" if place else "this image"
    return f"{where[0].upper()}{where[1:]} shows {comma_list(names) if names else 'no abnormality'}."


def _closed_sentence(text: str) -> Callable[..., str]:
    """The sentence of a closed question: `{no}` and `{not_}` in `text` stand where a negative answer has them."""

    def sentence(finding: str | None, location: str | None, answer: str) -> str:
        yes = _is_yes(answer)
        negation = {"no": "" if yes else "no ", "not_": "" if yes else "not "}
        return _opening(answer) + text.format(finding=finding, location=location, **negation)

    return sentence


def _location_sentence(finding: str | None, location: str | None, answer: str) -> str:
    return f"The {finding} is {_location_phrase(answer)}."


_SENTENCE_BY_TEMPLATE: dict[str, Callable[..., str]] = {
    "what abnormalities are seen in this image?": lambda finding, location, answer: _abnormality_sentence(None, answer),
    "what abnormalities are seen in the {location}?": lambda finding, location, answer: _abnormality_sentence(
        location, answer
    ),
    "is there evidence of any abnormalities in this image?": _closed_sentence(
        "there is {no}evidence of abnormalities in this image."
    ),
    "is there evidence of {finding} in this image?": _closed_sentence(
        "there is {no}evidence of {finding} in this image."
    ),
    "is the {finding} bilateral?": _closed_sentence("the {finding} is {not_}bilateral."),
    "is there {finding} in the {location}?": _closed_sentence("there is {no}{finding} in the {location}."),
    "is there {finding}?": _closed_sentence("there is {no}{finding}."),
    "which view is this image taken?": lambda finding, location, answer: f"This image is taken in the {answer}.",
    "is this PA view?": _closed_sentence("this image is {not_}a PA view."),
    "is this AP view?": _closed_sentence("this image is {not_}an AP view."),
    "where in the image is the {finding} located?": _location_sentence,
    "is the {finding} located on the left side or right side?": _location_sentence,
    "where is the {finding}?": _location_sentence,
    "what level is the {finding}?": lambda finding, location, answer: f"The level of the {finding} is {answer}.",
    "what type is the {finding}?": lambda finding, location, answer: f"The type of the {finding} is {answer}.",
}
"""Template of a question → its sentence, from the finding and location in the question and the short answer."""
for _kind, _templates in TEMPLATES.items():
    if _kind != "difference" and (_missing := [text for text in _templates if text not in _SENTENCE_BY_TEMPLATE]):
        raise NotImplementedError(f"the template '{_missing[0]}' has no sentence in lumen_hpc/language/sentences.py")
