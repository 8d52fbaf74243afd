"""Spans of time as a number of days: `two weeks from now`, `the tenth day`, `a fortnight`."""

from __future__ import annotations

import re

_ONES = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_NUMBERS = {word: number for number, word in enumerate(f"{_ONES} eighteen nineteen".split(), start=1)}
_TEN = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * number for number, word in enumerate(_TEN.split(), start=2)}
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth"
_ORDINAL = {word: number for number, word in enumerate(_ORDINALS.split(), start=1)}
_ORDINAL |= {"thirtieth": 30, "sixtieth": 60, "ninetieth": 90, "twentieth": 20, "fortieth": 40, "fiftieth": 50}
_HOURS = {"hour": 1, "day": 24, "night": 24, "week": 7 * 24, "fortnight": 14 * 24}

_SPELLED = rf"(?:{'|'.join(sorted({*_NUMBERS, *_TENS}, key=len, reverse=True))})"
_NUMBER = (
    rf"(?:an? |one )?(?:hundred(?: and)? )?{_SPELLED}(?: {_SPELLED})?"
    r"|(?:an?|one) hundred|(?!0)\d+|(?:a )?couple of|an?(?: single)?|single"
)
_UNIT = rf"(?P<unit>{'|'.join(_HOURS)}|month|year)s?"
_SPAN = re.compile(
    rf"\b(?:(?P<least>{_NUMBER}) (?:to|or) )?(?P<number>{_NUMBER}) (?:more |full |further |additional )?{_UNIT}\b"
)
_ONE = re.compile(r"\b(?P<which>next|coming|following|ensuing|upcoming) (?P<unit>day|week|fortnight)\b(?! \d)")
_NTH = re.compile(rf"\b(?:(?P<tens>{'|'.join(_TENS)}) )?(?P<word>{'|'.join(_ORDINAL)}) day\b")
_DAY = re.compile(rf"\bday (?P<number>(?:{'|'.join(_TENS)}) (?:{'|'.join(_NUMBERS)})|{_SPELLED})\b")


def in_days(text: str) -> str:
    """A text of lower-case words with its spans and points of time as `7 days` or `day 7`.

    A month and a year have no one number of days and keep their unit; what is vague (`the coming weeks`) stays.
    """
    text = re.sub(r"\b(?:by )?tomorrow\b", "in 1 days", text)
    text = re.sub(r"\btomorrows (follow up |followup |next )?", lambda found: f"1 days {found[1] or 'next '}", text)
    text = _NTH.sub(lambda found: f"day {_TENS.get(found['tens'], 0) + _ORDINAL[found['word']]}", text)
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th) day\b", r"day \1", text)
    text = _DAY.sub(lambda found: f"day {_number(found['number'])}", text)
    text = _ONE.sub(lambda found: f"{found['which']} {_HOURS[found['unit']] // 24} days", text)
    return _SPAN.sub(_span, text)


def _span(found: re.Match) -> str:
    unit = found["unit"]
    numbers = [_number(found[name]) for name in ("least", "number") if found[name]]
    hours = [number * _HOURS.get(unit, 1) for number in numbers]
    if unit in _HOURS and not any(number % 24 for number in hours):
        numbers, unit = [number // 24 for number in hours], "day"
    return f"{' to '.join(map(str, numbers))} {unit}s"


def _number(words: str) -> int:
    if words.isdigit():
        return int(words)
    if "couple" in words:
        return 2
    parts = words.split()
    total = 100 * ("hundred" in parts) + sum(_TENS.get(part, 0) for part in parts)
    ones = [_NUMBERS[part] for part in parts[1 if len(parts) > 1 and parts[0] == "one" else 0 :] if part in _NUMBERS]
    return (total + sum(ones)) or 1
