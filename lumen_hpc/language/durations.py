"""Spans of time as a number of days: `two weeks from now`, `the tenth day`, `a fortnight`."""

from __future__ import annotations

import re

_ONES_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_NUMBER_BY_WORD = {word: number for number, word in enumerate(f"{_ONES_WORDS} eighteen nineteen".split(), start=1)}
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_BY_TENS = {word: 10 * number for number, word in enumerate(_TENS_WORDS.split(), start=2)}
_ORDINAL_WORDS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth"
)
_NUMBER_BY_ORDINAL = {word: number for number, word in enumerate(_ORDINAL_WORDS.split(), start=1)}
_NUMBER_BY_ORDINAL |= {
    "thirtieth": 30,
    "sixtieth": 60,
    "ninetieth": 90,
    "twentieth": 20,
    "fortieth": 40,
    "fiftieth": 50,
}
_HOURS_BY_UNIT = {"hour": 1, "day": 24, "night": 24, "week": 7 * 24, "fortnight": 14 * 24}

_NUMBER_WORD = rf"(?:{'|'.join(sorted({*_NUMBER_BY_WORD, *_NUMBER_BY_TENS}, key=len, reverse=True))})"
_NUMBER = (
    rf"(?:an? |one )?(?:hundred(?: and)? )?{_NUMBER_WORD}(?: {_NUMBER_WORD})?"
    r"|(?:an?|one) hundred|(?!0)\d+|(?:a )?couple of|an?(?: single)?|single"
)
_UNIT = rf"(?P<unit>{'|'.join(_HOURS_BY_UNIT)}|month|year)s?"
_SPAN = re.compile(
    rf"\b(?:(?P<least>{_NUMBER}) (?:to|or) )?(?P<number>{_NUMBER}) (?:more |full |further |additional )?{_UNIT}\b"
)
_NEXT_UNIT = re.compile(r"\b(?P<which>next|coming|following|ensuing|upcoming) (?P<unit>day|week|fortnight)\b(?! \d)")
_NTH = re.compile(rf"\b(?:(?P<tens>{'|'.join(_NUMBER_BY_TENS)}) )?(?P<word>{'|'.join(_NUMBER_BY_ORDINAL)}) day\b")
_DAY = re.compile(
    rf"\bday (?P<number>(?:{'|'.join(_NUMBER_BY_TENS)}) (?:{'|'.join(_NUMBER_BY_WORD)})|{_NUMBER_WORD})\b"
)


def in_days(text: str) -> str:
    """A text of lower-case words with its spans and points of time as `7 days` or `day 7`.

    A month and a year have no one number of days and keep their unit; what is vague (`the coming weeks`) stays.
    """
    text = re.sub(r"\b(?:by )?tomorrow\b", "in 1 days", text)
    text = re.sub(r"\btomorrows (follow up |followup |next )?", lambda match: f"1 days {match[1] or 'next '}", text)
    text = _NTH.sub(
        lambda match: f"day {_NUMBER_BY_TENS.get(match['tens'], 0) + _NUMBER_BY_ORDINAL[match['word']]}", text
    )
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th) day\b", r"day \1", text)
    text = _DAY.sub(lambda match: f"day {_parse_number(match['number'])}", text)
    text = _NEXT_UNIT.sub(lambda match: f"{match['which']} {_HOURS_BY_UNIT[match['unit']] // 24} days", text)
    return _SPAN.sub(_span_in_days, text)


def _span_in_days(match: re.Match) -> str:
    unit = match["unit"]
    numbers = [_parse_number(match[name]) for name in ("least", "number") if match[name]]
    hours = [number * _HOURS_BY_UNIT.get(unit, 1) for number in numbers]
    if unit in _HOURS_BY_UNIT and not any(number % 24 for number in hours):
        numbers, unit = [number // 24 for number in hours], "day"
    return f"{' to '.join(map(str, numbers))} {unit}s"


def _parse_number(words: str) -> int:
    if words.isdigit():
        return int(words)
    if "couple" in words:
        return 2
    parts = words.split()
    total = 100 * ("hundred" in parts) + sum(_NUMBER_BY_TENS.get(part, 0) for part in parts)
    ones = [
        _NUMBER_BY_WORD[part]
        for part in parts[1 if len(parts) > 1 and parts[0] == "one" else 0 :]
        if part in _NUMBER_BY_WORD
    ]
    return (total + sum(ones)) or 1
