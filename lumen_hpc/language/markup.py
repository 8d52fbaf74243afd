"""A text without its markup: out of JSON, Markdown, HTML, LaTeX and their signs, as plain sentences."""

from __future__ import annotations

import html
import re
from itertools import pairwise

from lumen_hpc.language.json_words import in_sentences, json_value

_INVISIBLE = "\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}\N{WORD JOINER}\N{SOFT HYPHEN}\ufeff"
_QUOTES = '\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"'
_PLAIN_SIGNS: dict[int, str] = str.maketrans({
    **dict.fromkeys(_INVISIBLE, ""), **dict.fromkeys(_QUOTES, " "), "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-",
    "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{NO-BREAK SPACE}": " ",
    "\N{FULLWIDTH COMMA}": ", ", "\N{IDEOGRAPHIC COMMA}": ", ", "\N{FULLWIDTH SEMICOLON}": "; ",
    "\N{VARIATION SELECTOR-16}": "",
    "\N{FULLWIDTH COLON}": ": ", "\N{IDEOGRAPHIC FULL STOP}": ". ", "\N{FULLWIDTH FULL STOP}": ". ",
})  # fmt: skip
_UP = "[\N{UPWARDS ARROW}\N{UPWARDS BLACK ARROW}]\ufe0f?"
_DOWN = "[\N{DOWNWARDS ARROW}\N{DOWNWARDS BLACK ARROW}]\ufe0f?"
_LEADING_ARROWS = re.compile(rf"^[ *-]*(?:{_UP}|{_DOWN}).*$", re.MULTILINE)
"""A line whose arrows stand before their findings; elsewhere they stand behind."""
_OPENING_TAGS = (
    r"<(?:\w+:)?(?:think|thinking|thought|reasoning)\b[^<>]*>|\[THINK\]|\N{WHITE LEFT-POINTING TRIANGLE}think"
    r"\N{WHITE RIGHT-POINTING TRIANGLE}|<unused94>|<\|begin_of_thought\|>|<\|channel\|>analysis<\|message\|>"
    r"|(?-i:\Aanalysis(?=[A-Z]))"
)
"""What begins a model's reasoning: DeepSeek's and Qwen's tag, Mistral's, Kimi's, MedGemma's, gpt-oss's with and without
its control tokens."""
_CLOSING_TAGS = (
    r"</(?:\w+:)?(?:think|thinking|thought|reasoning)>|\[/THINK\]|\N{WHITE LEFT-POINTING TRIANGLE}/think"
    r"\N{WHITE RIGHT-POINTING TRIANGLE}|<unused95>|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>|assistantfinal"
)
_REASONING = re.compile(rf"(?:{_OPENING_TAGS}).*?(?:{_CLOSING_TAGS}|\Z)", re.DOTALL | re.IGNORECASE)
_REASONING_BEFORE_CLOSING_TAG = re.compile(rf"\A.*(?:{_CLOSING_TAGS})", re.DOTALL | re.IGNORECASE)
"""Reasoning that only closes: many a chat template puts its opening tag into the prompt."""
_CONTROL_TOKEN = re.compile(r"<\|[^<>]*\|>|</?s>|<(?:bos|eos|pad|unk)>|\[(?:PAD|EOS|SEP|CLS)\]")
_BLOCK_TAG = re.compile(r"</?(?:p|br|li|ul|ol|div|tr|h\d)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_FENCE = re.compile(r"```(?:\w*(?=\n))?")
_LATEX_COMMAND = re.compile(r"\\(?:boxed|text(?:bf|it|rm)?|mathrm|emph)\{([^{}]*)\}")
_FORMULA_MARK = re.compile(r"\$+|\\[()\[\]]|\\(?:begin|end)\{\w+\}")
"""Where a formula, or a list in LaTeX, begins and ends."""
_LATEX_ITEM = re.compile(r"\\item\b\s*|\\\\")
_HORIZONTAL_RULE = re.compile(r"[\s|:+=_*-]*")
_ARROW = re.compile(r" ?(?:[-=]+>|[\N{RIGHTWARDS ARROW}\N{RIGHTWARDS DOUBLE ARROW}\N{LONG RIGHTWARDS ARROW}]) ?")
_STATES = (
    r"(?:(?:none|absent|present|minimal|trace|tiny|slight|mild|small|moderate|large|marked|severe|massive)"
    r"(?: to (?=[mls]))?)+"
)
_STATE_ARROW = re.compile(
    rf"(?<!from )\b({_STATES}){_ARROW.pattern}({_STATES}(?:{_ARROW.pattern}{_STATES})*)\b"
    r"(?: (?!(?:in|on|since|compared|from|now|today|and|but|with)\b)([a-z][a-z ]*?)(?= *(?:[.,;]|$)))?",
    re.IGNORECASE,
)
"""`mild -> severe` without a colon before, and the finding that may follow."""
_BULLET = re.compile(r"(?:[-*+\N{BULLET}\N{EN DASH}]|\d+[.)])\s")
_CHECK_MARK = re.compile(
    r"^((?:[-*+]\s)?)(?:\[[ xX]?\]|[\N{CHECK MARK}\N{HEAVY CHECK MARK}\N{BALLOT BOX WITH CHECK}])\s*"
)
_TICKED_BOX, _UNTICKED_BOX = re.compile(r"\s*(?:[-*+]\s)?\[[xX]\]"), re.compile(r"\s*(?:[-*+]\s)?\[ ?\]")
HEADING = (
    r"((?:new|additional|added|resolved|missing|removed|disappeared|appeared|developed)"
    r"(?: (?:findings?|abnormalit(?:y|ies)|changes?))?)"
)
"""One group: the heading of a list of findings that are new or resolved."""
_LISTED = rf"((?:{_BULLET.pattern}.*(?:\n|\Z)|\n)+)"
"""One group: the lines of a list."""
_HEADING_OF_LIST = re.compile(rf"^{HEADING} *:?\n{_LISTED}", re.IGNORECASE | re.MULTILINE)
_IMAGE_OF_LIST = re.compile(
    rf"^((?:the )?(?:reference|main)(?: image)?(?: findings)?) *:\n{_LISTED}", re.IGNORECASE | re.MULTILINE
)
_DENIAL_OF_LIST = re.compile(
    rf"^([^:\n]*\b(?:no|not|without|negatives?|absent)\b[^:.\n]*):\n{_LISTED}", re.IGNORECASE | re.MULTILINE
)
"""`No evidence of:` above a list."""
_IMAGE_COLUMN = re.compile(
    r"^\s*\|[^|]*\|\W*(?:reference|main)(?: image)?\W*\|\W*(?:reference|main)(?: image)?\W*\|?\s*$", re.IGNORECASE
)
"""The head of a table with a column for each of the two images."""
_MARKED_CELLS = dict.fromkeys("\N{CHECK MARK}\N{HEAVY CHECK MARK}\N{WHITE HEAVY CHECK MARK}+", "yes") | dict.fromkeys(
    "\N{BALLOT X}\N{HEAVY BALLOT X}\N{CROSS MARK}-\N{MINUS SIGN}", "no"
)
_NARROWEST_WRAP = 25
"""Fewest characters of the longest line in a text that was wrapped at a width."""
_LINK_WORDS = (
    "and|or|of|in|a|an|the|than|from|to|is|are|has|have|was|were|been|with|without|on|but|no|not|new|now|compared|,"
)


def strip_reasoning(text: str) -> str:
    """The text without reasoning in tags; what follows a tag that nothing closes is reasoning that was cut off."""
    if not any(sign in text for sign in ("<", "[", "\N{WHITE LEFT-POINTING TRIANGLE}", "analysis", "assistantfinal")):
        return text
    visible = _REASONING_BEFORE_CLOSING_TAG.sub("", _REASONING.sub(" ", text))
    return text if visible == text else visible.strip()


def strip_control_tokens(text: str) -> str:
    """The text without a tokenizer's control tokens, as `Yes.<|im_end|>` and `Yes.</s>` have them."""
    return _CONTROL_TOKEN.sub(" ", text).strip() if "<" in text or "[" in text else text


def strip_markup(text: str) -> str:
    """The text in plain lines, without reasoning; lines that were wrapped at a width are joined."""
    text = _FENCE.sub("\n", _CONTROL_TOKEN.sub(" ", strip_reasoning(text))).strip()
    if (value := json_value(text)) is not None:
        text = in_sentences(value)
    text = _spell_signs(text)
    if "\\" in text or "$" in text:
        text = _strip_latex(text)
    text = html.unescape(_TAG.sub(" ", _BLOCK_TAG.sub("\n", text)))
    text = _LEADING_ARROWS.sub(lambda line: re.sub(_UP, ". Increased ", re.sub(_DOWN, ". Decreased ", line[0])), text)
    text = re.sub(_UP, " has increased", re.sub(_DOWN, " has decreased", text)).translate(_PLAIN_SIGNS)
    if "\n" not in text:
        text = text.replace("\\n", "\n").replace("\\t", "\n")
    lines = _compare_columns(text.splitlines())
    if any(map(_TICKED_BOX.match, lines)):
        lines = [line for line in lines if not _UNTICKED_BOX.match(line)]
    text = "\n".join(line for line in map(_strip_markdown, lines) if not line.startswith("#"))
    text = _IMAGE_OF_LIST.sub(_inline_list, _HEADING_OF_LIST.sub(_inline_list, text))
    return "\n".join(_rejoin_lines(_DENIAL_OF_LIST.sub(_inline_denials, text).split("\n"))).strip()


def _compare_columns(lines: list[str]) -> list[str]:
    """A table with a column for each image as lines `edema: absent -> present`; any other lines as they are."""
    heads = [_IMAGE_COLUMN.search(line) for line in lines]
    if not any(heads):
        return lines
    start = next(at for at, head in enumerate(heads) if head)
    is_reversed = lines[start].lower().index("main") < lines[start].lower().index("reference")
    compared = lines[:start]
    for line in lines[start + 1 :]:
        cells = [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
        name, *states = cells
        if line.lstrip()[:1] != "|" or len(states) < 2:
            compared.append(line)
        elif not _HORIZONTAL_RULE.fullmatch(line):
            before, after = states[1::-1] if is_reversed else states[:2]
            is_same = before.lower() == after.lower()
            compared.append(f"{name}: unchanged" if is_same else f"{name}: {before} -> {after}")
    return compared


def _spell_signs(text: str) -> str:
    """A list whose every item has a plus or a minus as `edema, no effusion`; bullets are all alike."""
    items = [item.strip() for item in re.split("[,;\n]", text) if item.strip()]
    signs = {item[0] for item in items}
    if signs not in ({"+", "-"}, {"+", "\N{MINUS SIGN}"}) or any(item[-1] == ":" for item in items):
        return text
    return re.sub(r"((?:^|[,;\n])\s*)([^\w\s])\s*", lambda it: it[1] + "no " * (it[2] != "+"), text)


def _strip_latex(text: str) -> str:
    """The text without LaTeX's boxes, formulas and lists."""
    for _ in range(3):  # `\\boxed{\\text{no}}` holds one in another
        text = _LATEX_COMMAND.sub(r"\1", text)
    return _LATEX_ITEM.sub("\n- ", _FORMULA_MARK.sub(" ", text)).replace("\\%", "%").strip()


def _items(lines: str) -> list[str]:
    """The items of a list, without their bullets."""
    return [_BULLET.sub("", line, count=1).rstrip(" .") for line in lines.split("\n") if line]


def _inline_list(heading: re.Match[str]) -> str:
    """A heading of new or resolved findings, or of an image, and the list below it, in one line."""
    return f"{heading[1]}: {', '.join(_items(heading[2]))}.\n"


def _inline_denials(heading: re.Match[str]) -> str:
    """A denial and the list below it, in one line: `No evidence of effusion or nodule.`"""
    is_label = re.fullmatch(r"(?:absent|negatives?|not (?:seen|present))(?: findings)?", heading[1], re.IGNORECASE)
    return f"{'There is no' if is_label else heading[1]} {' or '.join(_items(heading[2]))}.\n"


def _strip_markdown(line: str) -> str:
    """A line without the marks of Markdown: headings, quotes, emphasis, checks, and the bars of a table."""
    line = re.sub(r"^\s*(?:>\s?)+", "", line).strip()
    line = re.sub(r"\*\*|__|`|(?<!\S)\*(?=\S)|(?<=\S)\*(?!\S)", "", line)
    line = _CHECK_MARK.sub(r"\1", line)
    line = re.sub(r"^#+\s*(?=(?:new|additional|resolved|missing)\b)", "", line, flags=re.IGNORECASE)
    if _HORIZONTAL_RULE.fullmatch(line):
        return ""
    if line.startswith("|"):
        head, *rest = [_MARKED_CELLS.get(cell.strip(), cell.strip()) for cell in line.strip("|").split("|")]
        line = f"{head}: {', '.join(rest)}." if rest else head
    line = re.sub(r"(?<=[a-z])_(?=[a-z])", " ", line, flags=re.IGNORECASE)
    return _spell_arrows(line) if _ARROW.search(line) else line


def _spell_arrows(line: str) -> str:
    """A line with `from … to …` for the arrows between levels, and between absent and present."""
    for words, state in (("no|negative|gone|not (?:present|seen)", "none"), ("yes|positive", "present")):
        line = re.sub(rf"\b(?:{words})(?={_ARROW.pattern})", state, line, flags=re.IGNORECASE)
        line = re.sub(rf"({_ARROW.pattern})(?:{words})\b", rf"\1{state}", line, flags=re.IGNORECASE)
    line = re.sub(rf"\(([\w -]+?){_ARROW.pattern}([\w -]+)\)", r"from \1 to \2", line)
    line = re.sub(rf"^([^:]*):\s*([\w -]+?){_ARROW.pattern}", r"\1 from \2 to ", line)
    line = _STATE_ARROW.sub(lambda it: f"{it[3] or ''} from {it[1]} to {it[2]}".strip(), line)
    return _ARROW.sub(" to ", line)


def _rejoin_lines(lines: list[str]) -> list[str]:
    """The lines of a text; those that were wrapped at a width are joined."""
    widest = max(map(len, lines))
    breaks = [
        at for at, (above, line) in enumerate(pairwise(lines), 1) if above and line and not _starts_item(above, line)
    ]
    broken_by_width = (
        widest >= _NARROWEST_WRAP
        and len(breaks) > 1
        and all(len(lines[at - 1]) + 1 + len(lines[at].split()[0]) > widest for at in breaks)
    )
    joined = lines[:1]
    for at, (above, line) in enumerate(pairwise(lines), 1):
        if at in breaks and (broken_by_width or _continues_sentence(above, line)):
            joined[-1] += f" {line}"
        else:
            joined.append(line)
    return [line for line in joined if line]


def _starts_item(before: str, line: str) -> bool:
    """True for a line that begins a sentence or an item of its own."""
    return before[-1] in ".!?;" or bool(_BULLET.match(line)) or bool(_BULLET.match(before))


def _continues_sentence(before: str, line: str) -> bool:
    """True where a sentence runs on from one line to the next."""
    return before.endswith(":") or bool(
        re.search(rf"(?:(?<![-:] )\b(?:{_LINK_WORDS})|,)$", before, re.IGNORECASE)
        or re.match(rf"(?:{_LINK_WORDS})\b", line)
    )
