"""A model's answer as plain sentences, for the lenient reading: out of JSON, Markdown, HTML and their signs.

What is no answer goes: reasoning in tags, control tokens, questions, and sentences that decline to say.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

LONGEST = 8000
"""Characters of an answer that are looked at."""
_PLAIN = re.compile(r"[A-Za-z0-9 ,.;:()'%-]*")
"""Letters and signs of a plain sentence."""
_HIDDEN = "\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}\N{WORD JOINER}\N{SOFT HYPHEN}\ufeff"
_QUOTES = '\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"'
_SIGNS: dict[int, str] = str.maketrans({
    **dict.fromkeys(_HIDDEN, ""), **dict.fromkeys(_QUOTES, " "), "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-",
    "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{NO-BREAK SPACE}": " ",
    "\N{FULLWIDTH COMMA}": ", ", "\N{IDEOGRAPHIC COMMA}": ", ", "\N{FULLWIDTH SEMICOLON}": "; ",
    "\N{FULLWIDTH COLON}": ": ", "\N{IDEOGRAPHIC FULL STOP}": ". ", "\N{FULLWIDTH FULL STOP}": ". ",
})  # fmt: skip
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(r"<\|[^<>]*\|>")
_BLOCK = re.compile(r"</?(?:p|br|li|ul|ol|div|tr|h\d)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_FENCE = re.compile(r"```(?:\w*(?=\n))?")
_BOXED = re.compile(r"\\(?:boxed|text(?:bf|it|rm)?|mathrm|emph)\{([^{}]*)\}")
_MATHS = re.compile(r"\$+|\\[()\[\]]|\\(?:begin|end)\{\w+\}")
"""Where a formula, or a list in LaTeX, begins and ends."""
_ITEM = re.compile(r"\\item\b\s*|\\\\")
_OPTION = re.compile(r"\s*(?:\([A-D]\)|[A-D][.)])\s*(?=(?:yes|no)\b)", re.IGNORECASE)
"""The letter before a choice: `(A) Yes`."""
_SORT = "(?:(?:the|my|final|short|correct|right|best) )*"
_LABEL = re.compile(
    rf"\s*(?:(?:{_SORT}(?:answer|response|output|result|option|choice)|assistant|a) *(?:[:\n]|- )"
    rf"|{_SORT}(?:answer|option|choice) is\b:?|i(?:'d| would) (?:say|answer)\b:?"
    r"|(?:sure|certainly|of course|okay|ok)[!,.]|here(?: is|'s) (?:the|my) [a-z ]{1,20}:)\s*",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r".*(?:\bfinal answer|\?\W*(?:short )?answer)\W*?(?: is)?\s*(?:[:\n]|- )\s*", re.IGNORECASE | re.DOTALL
)
"""What comes before the answer: reasoning without tags, or the question again."""
_RULE = re.compile(r"[\s|:+=_*-]*")
_ARROW = re.compile(r" ?(?:[-=]+>|[\N{RIGHTWARDS ARROW}\N{RIGHTWARDS DOUBLE ARROW}\N{LONG RIGHTWARDS ARROW}]) ?")
_BULLET = re.compile(r"(?:[-*+\N{BULLET}\N{EN DASH}]|\d+[.)])\s")
_CHECK = re.compile(r"^((?:[-*+]\s)?)(?:\[[ xX]?\]|[\N{CHECK MARK}\N{HEAVY CHECK MARK}\N{BALLOT BOX WITH CHECK}])\s*")
_TICKED, _UNTICKED = re.compile(r"\s*(?:[-*+]\s)?\[[xX]\]"), re.compile(r"\s*(?:[-*+]\s)?\[ ?\]")
_BOOLEANS = {"true": "yes", "false": "no"}
_SAY = (
    "say|tell|determine|know|assess|judge|evaluate|comment|decide|confirm|exclude|rule out|compare|conclude"
    "|be (?:sure|certain|said|determined|assessed|excluded|ruled out|made|confirmed|evaluated|judged)"
)
_DECLINED = re.compile(
    rf"\b(?:can(?:not| not|'t)|could(?: not|n't)|(?:unable|not able|impossible|not possible|hard|difficult|hesitate"
    rf"|too poor|insufficient|not enough \w+) to|(?:do|did|does)(?: not|n't)(?= know)|no \w+ can(?= be))"
    rf" (?:\w+ly )?(?:{_SAY})\b"
    r"|\b(?:unclear|uncertain|unsure|no way of knowing|not (?:sure|certain|clear))\b|\b(?:whether|if)\b",
    re.IGNORECASE,
)
"""A sentence that declines to say, or only asks."""
_LINK = re.compile(r",? \b(?:but|however|though|although|so)\b|, (?=(?:and|i|it|which)\b)", re.IGNORECASE)
_ALTHOUGH = re.compile(r"\s*(?:although|though|while|even)\b", re.IGNORECASE)
_HEADING = (
    r"((?:new|additional|resolved|missing|disappeared|appeared|developed)"
    r"(?: (?:findings?|abnormalit(?:y|ies)|changes?))?)"
)
_HEADED = re.compile(rf"(^|[.;\n]|(?<=[.;\n]) )[ *-]*{_HEADING}(?:\s*:\s*| - )([^.\n]*)[.]?", re.IGNORECASE)
_ABOVE_A_LIST = re.compile(rf"^{_HEADING} *:?\n((?:{_BULLET.pattern}.*(?:\n|\Z)|\n)+)", re.IGNORECASE | re.MULTILINE)
_NOTE = r"(?:new|resolved|worsening|improving|stable|unchanged|persistent)"
_IN_A_ROW = re.compile(
    rf", (?:and )?(?={_NOTE} (?!since|compared|on|in|from|to|and|as)[a-z -]+(?:[,.;]|$))", re.IGNORECASE
)
"""Before each further note of `New edema, resolved nodule, and worsening effusion`."""
_STATES = {
    **dict.fromkeys(("new", "newly seen", "appeared"), "New: {}."),
    **dict.fromkeys(("resolved", "gone", "disappeared", "no longer seen"), "Resolved: {}."),
    **dict.fromkeys(("present", "yes", "positive", "seen"), "{} is present."),
    **dict.fromkeys(("absent", "no", "negative", "not seen", "not present"), "There is no {}."),
    **dict.fromkeys(("worse", "worsened", "increased"), "{} has worsened."),
    **dict.fromkeys(("better", "improved", "decreased"), "{} has improved."),
    **dict.fromkeys(("unchanged", "stable", "same", "no change"), "{} is unchanged."),
}
"""What a note beside a finding says → the sentence for it."""
_STATE = "|".join(sorted(_STATES, key=len, reverse=True))
_NOTED = re.compile(
    r"(^|[.,;\n] *|(?<=[.,;\n]) )(?:[-*] )?((?!(?:and|no|new|resolved|yes)\b)[a-z][a-z' -]{2,40}?)"
    rf"(?: ?[:=\N{{EN DASH}}\N{{EM DASH}}] ?| - | ?[(\[]| (?=(?:yes|no)(?:[.,;\n]|$)))({_STATE})\b"
    r"[)\]]?(?= *(?:[.,;\n]|$))[.,;]?",
    re.IGNORECASE,
)
_NARROW = 25
"""Characters of the longest line of a text that was broken by width."""
_NAME_KEYS, _STATE_KEYS = ("finding", "abnormality", "name"), ("status", "change", "state")
"""Keys of an object that says something of one finding."""
_ANSWERS = ("final answer", "answer", "response", "output", "result", "text", "content", "message", "choices")
"""Keys of an object whose value is the answer; the last three are a chat server's."""


def without_thought(text: str) -> str:
    """The text without reasoning in tags; what follows a tag that nothing closes is reasoning that was cut off."""
    return _THOUGHT.sub(" ", text).strip() if "<" in text else text


@lru_cache(maxsize=1 << 14)
def unwrapped(text: str) -> str:
    """The answer's own words; the text itself where it is one plain line."""
    text = text if _PLAIN.fullmatch(text) else _unmarked(text[:LONGEST])
    for before in (_FINAL, _LABEL, _LABEL, _OPTION):
        if (found := before.match(text)) and text[found.end() :].strip():
            text = text[found.end() :]
    text = text[1:-1] if text[:1] == "'" == text[-1:] else text
    if text.strip(" .!").lower() in _BOOLEANS:
        return _BOOLEANS[text.strip(" .!").lower()]
    return _spelled(_undeclined(text))


def _unmarked(text: str) -> str:
    text = _FENCE.sub("\n", _CONTROL.sub(" ", _THOUGHT.sub(" ", text))).strip()
    if (value := _value(text)) is not None:
        text = ".\n".join(_said(value))
    if "\\" in text or "$" in text:
        text = _without_latex(text)
    text = html.unescape(_TAG.sub(" ", _BLOCK.sub("\n", text))).translate(_SIGNS)
    if "\n" not in text:
        text = text.replace("\\n", "\n").replace("\\t", "\n")
    lines = text.splitlines()
    if any(map(_TICKED.match, lines)):
        lines = [line for line in lines if not _UNTICKED.match(line)]
    text = "\n".join(line for line in map(_line, lines) if not line.startswith("#"))
    return "\n".join(_joined(_ABOVE_A_LIST.sub(_listed, text).split("\n"))).strip()


def _without_latex(text: str) -> str:
    """The text without LaTeX's boxes, formulas and lists."""
    for _ in range(3):  # `\\boxed{\\text{no}}` holds one in another
        text = _BOXED.sub(r"\1", text)
    return _ITEM.sub("\n- ", _MATHS.sub(" ", text)).replace("\\%", "%").strip()


def _listed(found: re.Match[str]) -> str:
    """A heading that says what is new, or gone, with the list below it in one line."""
    items = (_BULLET.sub("", line, count=1).rstrip(" .") for line in found[2].split("\n") if line)
    return f"{found[1]}: {', '.join(items)}.\n"


def _undeclined(text: str) -> str:
    """The text without its questions, and without what it says it cannot say."""
    if "?" not in text and not _DECLINED.search(text):
        return text
    kept = []
    for sentence in re.findall(r"[^.;!?\n]*(?:[.;!?\n]+|$)", text):
        if declined := _DECLINED.search(sentence):
            begin = max((link.start() for link in _LINK.finditer(sentence, 0, declined.start())), default=0)
            comma = sentence.find(",", declined.end())
            rest = sentence[comma + 1 :] if comma >= 0 and _ALTHOUGH.match(sentence) else "."
            sentence = sentence[:begin] + rest
        kept.append("." if "?" in sentence else sentence)
    return "".join(kept)


def _spelled(text: str) -> str:
    """Notes such as `New findings: a; b`, `Edema (new)` and `Edema: mild to severe`, as the reader knows them."""
    text = _HEADED.sub(_headed, text)
    text = _IN_A_ROW.sub(". ", text) if re.match(rf"\s*{_NOTE} ", text, re.IGNORECASE) else text
    return _NOTED.sub(lambda noted: f"{noted[1]}{_STATES[noted[3].lower()].format(noted[2].strip())}", text)


def _headed(found: re.Match[str]) -> str:
    new = bool(re.match(r"new|additional|interval dev|devel|appear", found[2], re.IGNORECASE))
    names = ", ".join(name.strip(" -") for name in re.split(r"[;,]", found[3]) if name.strip(" -"))
    if names.lower() in ("none", "no", "nothing", "n/a", "nil", "none seen", ""):
        return f"{found[1]}No {'new findings' if new else 'findings have resolved'}."
    return f"{found[1]}{'New' if new else 'Resolved'}: {names}."


def _value(text: str) -> Any:
    """The list or object that a text is, in JSON or as Python writes it; None for any other."""
    if text[:1] not in ("{", "["):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, dict | list) else None
    return None


def in_words(value: Any) -> str:
    """What a value of JSON that stands in an answer's place says; the items of a list are a list of names."""
    return ", ".join(_said(value))


def _said(value: Any) -> Iterator[str]:
    """What a value of JSON says, in words: `{"new": ["a", "b"]}` as `new: a, b`, `{"a": false}` as `a: no`."""
    if isinstance(value, dict):
        named = {str(key).lower().replace("_", " "): each for key, each in value.items()}
        states = [named[key] for key in _STATE_KEYS if isinstance(named.get(key), str)]
        names = [named[key] for key in _NAME_KEYS if isinstance(named.get(key), str)]
        if states and names:
            yield f"{names[0]}: {states[0]}"
            return
        if {"from", "to"} <= named.keys():
            rest = " ".join(str(each) for key, each in named.items() if key not in ("from", "to"))
            yield f"{rest} has changed from {named['from']} to {named['to']}"
            return
        if answers := [named[key] for key in _ANSWERS if named.get(key) is not None]:
            yield from _said(answers[0])  # not its explanation
            return
        for key, each in named.items():
            words = list(_said(each))
            parts = each if isinstance(each, list) else [each]
            if any(isinstance(part, dict | list) for part in parts):
                yield from words
            elif words:
                yield f"{key}: {', '.join(words)}"
    elif isinstance(value, list):
        for each in value:
            yield from _said(each)
    elif isinstance(value, bool):
        yield "yes" if value else "no"
    elif value is not None:
        yield str(value)


def _line(line: str) -> str:
    """A line without the marks of Markdown: headings, quotes, emphasis, checks, and the bars of a table."""
    line = re.sub(r"^\s*(?:>\s?)+", "", line).strip()
    line = re.sub(r"\*\*|__|`|(?<!\S)\*(?=\S)|(?<=\S)\*(?!\S)", "", line)
    line = _CHECK.sub(r"\1", line)
    line = re.sub(r"^#+\s*(?=(?:new|additional|resolved|missing)\b)", "", line, flags=re.IGNORECASE)
    if _RULE.fullmatch(line):
        return ""
    if line.startswith("|"):
        head, *rest = [cell.strip() for cell in line.strip("|").split("|")]
        line = f"{head}: {', '.join(rest)}." if rest else head
    line = re.sub(r"(?<=[a-z])_(?=[a-z])", " ", line, flags=re.IGNORECASE)
    if _ARROW.search(line):
        line = re.sub(rf"\(([\w -]+?){_ARROW.pattern}([\w -]+)\)", r"from \1 to \2", line)
        line = _ARROW.sub(" to ", re.sub(rf"^([^:]*):\s*([\w -]+?){_ARROW.pattern}", r"\1 from \2 to ", line))
    return line


def _joined(lines: list[str]) -> list[str]:
    """Lines of a text, those that were broken by their width alone joined again."""
    widest = max(map(len, lines))
    breaks = [at for at, (above, line) in enumerate(pairwise(lines), 1) if above and line and not _begins(above, line)]
    by_width = (
        widest >= _NARROW
        and len(breaks) > 1
        and all(len(lines[at - 1]) + 1 + len(lines[at].split()[0]) > widest for at in breaks)
    )
    joined = lines[:1]
    for at, (above, line) in enumerate(pairwise(lines), 1):
        if at in breaks and (by_width or _goes_on(above, line)):
            joined[-1] += f" {line}"
        else:
            joined.append(line)
    return [line for line in joined if line]


def _begins(before: str, line: str) -> bool:
    """True for a line that begins a sentence or an item of its own."""
    return before[-1] in ".!?;" or bool(_BULLET.match(line)) or bool(_BULLET.match(before))


_LINKS = (
    "and|or|of|in|a|an|the|than|from|to|is|are|has|have|was|were|been|with|without|on|but|no|not|new|now|compared|,"
)


def _goes_on(before: str, line: str) -> bool:
    """True where a sentence runs on from one line to the next."""
    return before.endswith(":") or bool(
        re.search(rf"(?:(?<![-:] )\b(?:{_LINKS})|,)$", before, re.IGNORECASE) or re.match(rf"(?:{_LINKS})\b", line)
    )
