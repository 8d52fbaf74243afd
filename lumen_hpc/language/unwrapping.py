"""A model's answer as plain sentences, for the lenient reading: out of its markup, its labels and its short notes.

It drops what is no answer: reasoning in tags, control tokens, questions, general knowledge, and sentences that decline
to answer.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lumen_hpc.language.markup import HEADING, strip_markup

MOST_CHARACTERS = 8000
"""Characters of an answer that are read."""
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9 ,.;:()'%-]*")
"""Letters and signs of a plain sentence."""
_OPTION_LETTER = re.compile(r"\s*(?:\([A-D]\)|[A-D][.)])\s*(?=(?:yes|no)\b)", re.IGNORECASE)
"""The letter before a choice: `(A) Yes`."""
_ANSWER_ADJECTIVES = "(?:(?:the|my|final|short|correct|right|best) )*"
_LABEL = re.compile(
    rf"\s*(?:(?:{_ANSWER_ADJECTIVES}(?:answer|response|output|result|option|choice)|assistant|a) *(?:[:\n]|- )"
    rf"|{_ANSWER_ADJECTIVES}(?:answer|option|choice)(?: to (?:the|this|your) question)? is\b:?"
    r"|i(?:'d| would) (?:say|answer|lean towards?)\b:?"
    r"|(?:sure|certainly|of course|okay|ok)[!,.]|it(?:'s| is) an? (?=(?:yes|no)\b)"
    r"|here(?: is|'s) (?:the|my) [a-z ]{1,20}:)\s*",
    re.IGNORECASE,
)
_FINAL_ANSWER = re.compile(
    r".*(?:(?:\bfinal answer|\?\W*(?:short )?answer)\W*?(?: is)?\s*(?:[:\n]|- )\s*"
    r"|\b(?:the|my) (?:\w+ )?answer (?:is|would be):? *(?=(?:yes|no)\b))",
    re.IGNORECASE | re.DOTALL,
)
"""The text before the answer: reasoning without tags, or a repetition of the question."""
_SECTION_HEADING = re.compile(
    r"(^|[.;\n])\s*(?:(?:indications?|(?:clinical |past )?(?:history|information)|reason for [a-z ]+|recommendations?):"
    r"[^.\n]*|(?:findings?|impressions?|conclusions?|interpretation|assessment|results?|report):"
    r"(?! *(?:none|nothing|nil)\b)|(?:changes?|differences?):(?= *[a-z -]+\())",
    re.IGNORECASE,
)
"""A heading of a report; that of an indication or a recommendation goes together with its text."""
_BOOLEANS = {"true": "yes", "false": "no"}
_JUDGING_VERBS = (
    "say|tell|determine|know|assess|judge|evaluate|comment|decide|confirm|exclude|rule out|compare|conclude"
    "|be (?:sure|certain|said|determined|assessed|excluded|ruled out|made|confirmed|evaluated|judged)"
)
_REFUSAL = re.compile(
    rf"\b(?:can(?:not| not|'t)|could(?: not|n't)|(?:unable|not able|impossible|not possible|hard|difficult|hesitate"
    rf"|too poor|insufficient|not enough \w+) to|(?:do|did|does)(?: not|n't)(?= know)|no \w+ can(?= be))"
    rf" (?:\w+ly )?(?:{_JUDGING_VERBS})\b"
    r"|\b(?:unclear|uncertain|unsure|no way of knowing|not (?:sure|certain|clear))\b|\b(?:whether|if)\b",
    re.IGNORECASE,
)
"""A sentence that declines to answer, or only asks."""
_NO_SUBJECT = "the|this|that|these|those|there|it|they|findings?|which|image|radiograph|x-ray|i|we"
_LOOKING = "diagnose|detect|identify|show|reveal|evaluate|assess|look for|check for|find|see"
_USUALLY = "often|usually|commonly|typically|generally|frequently"
_GENERAL_KNOWLEDGE = re.compile(
    rf"(^|[.;\n]) *(?:(?:an? )?(?!(?:{_NO_SUBJECT})\b)[a-z]+(?: [a-z]+)? (?:refers? to"
    r"|(?:is|are) (?:defined as|characteri[sz]ed by"
    r"|(?:an? |the )?(?:\w+ )?(?:condition|disease|disorder)s? (?:in which|where|that|of|characteri)"
    rf"|(?:{_USUALLY}) (?:caused|associated|an?|the|due|treated|defined|seen as|characteri[sz]ed)))\b[^.;\n]*"
    r"|(?:typical|characteristic)(?: signs?| features?| findings?)? of [a-z ]+? (?:is|are|includes?)\b"
    r"(?! (?:seen|present|noted|visible|evident|identified|observed|shown)\b)[^.;\n]*"
    rf"|[^.,;\n]*\b(?:is|are) (?:(?:{_USUALLY}) )?used to (?:{_LOOKING})\b[^.;\n]*"
    rf"|(?:an? |the )?(?:chest )?(?:x-rays?|radiographs?) can (?:help )?(?:{_LOOKING})\b[^.,;\n]*)",
    re.IGNORECASE,
)
"""A sentence of general knowledge, as models like to begin:
`Edema refers to fluid in the lungs.`, `X-rays can show edema.`"""
_CLAUSE_LINK = re.compile(r",? \b(?:but|however|though|although|so)\b|, (?=(?:and|i|it|which)\b)", re.IGNORECASE)
_BUT = re.compile(r"(?:,? but|, (?:however,?|though|although))\b", re.IGNORECASE)
_ALTHOUGH = re.compile(r"\s*(?:although|though|while|even)\b", re.IGNORECASE)
_CHANGE_HEADING = re.compile(
    rf"(^|[.;\n]|(?<=[.;\n]) )[ *-]*{HEADING}(?:\s*:\s*| - )((?:(?!; *{HEADING}:)[^.\n])*)[.]?", re.IGNORECASE
)
_CHANGE_ADJECTIVES = (
    r"(?:new|resolved|worsen(?:ing|ed)|improv(?:ing|ed)|(?:in|de)creas(?:ing|ed)|stable|unchanged|persistent)"
)
_NEXT_NOTE = re.compile(
    r"(?:, (?:and )?|(?<!ing)(?<!new)(?<!ed)(?<!stable)(?<!tent) and )"
    rf"(?={_CHANGE_ADJECTIVES} (?!since|compared|on|in|from|to|and|as)[a-z -]+(?:[,.;]|$))",
    re.IGNORECASE,
)
"""Before each further note of `New edema, resolved nodule, and worsening effusion`."""
_SENTENCE_BY_STATE = {
    **dict.fromkeys(("new", "newly seen", "appeared"), "New: {}."),
    **dict.fromkeys(("resolved", "gone", "disappeared", "no longer seen"), "Resolved: {}."),
    **dict.fromkeys(
        ("present", "yes", "positive", "seen", "likely", "probable", "definite", "confirmed", "true", "y", "1"),
        "{} is present.",
    ),
    **dict.fromkeys(
        ("absent", "no", "negative", "not seen", "not present", "unlikely", "false", "n", "0"), "There is no {}."
    ),
    **dict.fromkeys(("possible", "suspected", "questionable", "equivocal"), "{} is possible."),
    **dict.fromkeys(
        ("worse", "worsened", "worsening", "increased", "increasing", "larger", "bigger"), "{} has worsened."
    ),
    **dict.fromkeys(("better", "improved", "improving", "decreased", "decreasing", "smaller"), "{} has improved."),
    **dict.fromkeys(("unchanged", "stable", "same", "no change"), "{} is unchanged."),
}
"""State in a note beside a finding → its sentence."""
_SHORT_QUESTION = re.compile(
    r"((?:^|[.;,\n]) *)(?:any )?(?!(?:is|are|was|were|does|do|did|has|have|can|what|which|any)\b)([a-z][a-z ]{2,30})"
    r"\?[ -]*(yes|no)\b",
    re.IGNORECASE,
)
"""`Edema? No.`"""
_SIDE_NOTE = re.compile(r" \((left|right|[LR])\)(?=:)", re.IGNORECASE)
"""`effusion (L):`"""
_QUERY = re.compile(r"((?:^|[,;.\n]) *)\?(?=[a-z])", re.IGNORECASE)
"""`?edema`"""
_CONFIDENCE = re.compile(r" *\(?\bconfidence(?: level)?:? *\d[\d.]* ?%?\)?", re.IGNORECASE)
_UNCERTAIN_NOTE = re.compile(
    r"(?:(?<=[.,;\n])|^) *[a-z][a-z' -]{2,40}?(?: ?[:=] ?| ?[(\[])"
    r"(?:uncertain|unclear|unknown|unsure|indeterminate|n/a|\?)(?!\w)[)\]]?(?= *(?:[.,;\n]|$))",
    re.IGNORECASE,
)
"""`nodule (uncertain)`"""
_DENIED_LIST = re.compile(
    r"((?:^|[.;\n]) *(?:[a-z][a-z' -]*, )+(?:and |or )?[a-z][a-z' -]*): ?(?:no|absent|negative)(?= *(?:[.;\n]|$))",
    re.IGNORECASE,
)
"""`Nodule, mass, edema: no.`"""
_STATE_WORDS = "|".join(sorted(_SENTENCE_BY_STATE, key=len, reverse=True))
_STATE_NOTE = re.compile(
    r"(^ *|[.,;\n] *|(?<=[.,;\n]) )(?:[-*] )?"
    r"((?!(?:and|no|new|resolved|yes|likely|probably|most|maybe|not)\b)[a-z][a-z' -]{2,40}?)"
    rf"(?: ?[:=\N{{EN DASH}}\N{{EM DASH}}] ?| - | ?[(\[]| (?=(?:yes|no)(?:[.,;\n]|$)))({_STATE_WORDS})\b"
    r"[)\]]?(?= *(?:[,;\n]|\.(?!\d)|$))[.,;]?",
    re.IGNORECASE,
)


@lru_cache(maxsize=1 << 14)
def unwrap(text: str) -> str:
    """The answer without its wrapping; a plain line stays as it is."""
    text = text if _PLAIN_TEXT.fullmatch(text) else strip_markup(text[:MOST_CHARACTERS])
    for prefix in (_FINAL_ANSWER, _LABEL, _LABEL, _OPTION_LETTER):
        if (prefix_match := prefix.match(text)) and text[prefix_match.end() :].strip():
            text = text[prefix_match.end() :]
    text = text[1:-1] if text[:1] == "'" == text[-1:] else text
    text = _GENERAL_KNOWLEDGE.sub(r"\1", _SECTION_HEADING.sub(r"\1 ", text))
    if text.strip(" .!").lower() in _BOOLEANS:
        return _BOOLEANS[text.strip(" .!").lower()]
    text = _SIDE_NOTE.sub("", text)
    text = _CONFIDENCE.sub("", _QUERY.sub(r"\1possible ", text))
    return _spell_notes(_drop_refusals(_UNCERTAIN_NOTE.sub("", _SHORT_QUESTION.sub(r"\1\2: \3", text))))


def _drop_refusals(text: str) -> str:
    """The text without its questions, and without the sentences that decline to answer."""
    if "?" not in text and not _REFUSAL.search(text):
        return text
    kept_sentences = []
    for sentence in re.findall(r"[^.;!?\n]*(?:[.;!?\n]+|$)", text):
        if refusal := _REFUSAL.search(sentence):
            start = max((link.start() for link in _CLAUSE_LINK.finditer(sentence, 0, refusal.start())), default=0)
            comma = sentence.find(",", refusal.end())
            rest = sentence[comma + 1 :] if comma >= 0 and _ALTHOUGH.match(sentence) else "."
            but = _BUT.search(sentence, refusal.end())
            if but and not _REFUSAL.search(sentence, but.end()):
                rest = f". {sentence[but.end() :]}"
            sentence = sentence[:start] + rest
        kept_sentences.append("." if "?" in sentence else sentence)
    return "".join(kept_sentences)


def _spell_notes(text: str) -> str:
    """Spells notes such as `New findings: a; b`, `Edema (new)` and `Edema: mild to severe` as the reader knows them."""
    text = _DENIED_LIST.sub(r"\1: none", _CHANGE_HEADING.sub(_spell_heading, text))
    text = _NEXT_NOTE.sub(". ", text) if re.match(rf"\s*{_CHANGE_ADJECTIVES} ", text, re.IGNORECASE) else text
    return _STATE_NOTE.sub(lambda note: f"{note[1]}{_SENTENCE_BY_STATE[note[3].lower()].format(note[2].strip())}", text)


def _spell_heading(heading: re.Match[str]) -> str:
    is_new = bool(re.match(r"new|add|interval dev|devel|appear", heading[2], re.IGNORECASE))
    names = ", ".join(name.strip(" -") for name in re.split(r"[;,]", heading[3]) if name.strip(" -"))
    if names.lower() in ("none", "no", "nothing", "n/a", "nil", "none seen", ""):
        return f"{heading[1]}No {'new findings' if is_new else 'findings have resolved'}."
    return f"{heading[1]}{'New' if is_new else 'Resolved'}: {names}."
