"""The state at a study's time, as lines that models and people can read; they follow the experts' words in the prompt.

Patient: 62 years old, female.
Stay: in the hospital for 2 hours.
Laboratory values: creatinine 1.6 mg/dL (high, up 0.6, 2 hours ago); hemoglobin 7.2 g/dL (low, 71 hours ago).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

State = dict[str, Any]

PLACES = {"icu": "in intensive care", "hospital": "in the hospital", "ed": "in the emergency department"}
SEXES = {"F": "female", "M": "male"}


def clinical(state: State, parts: Sequence[str], analytes: Sequence[str] = ()) -> str:
    """The lines of a state that `instruct.clinical` asks for, in the order patient, stay, labs; empty for none.

    `analytes`: those of the labs line; none means the whole panel.
    """
    if analytes:
        state = {**state, "labs": {name: value for name, value in state["labs"].items() if name in analytes}}
    by_part = {"patient": _patient, "stay": _stay, "labs": _labs}
    return "\n".join(line(state) for part, line in by_part.items() if part in parts)


def _patient(state: State) -> str:
    age = "of unknown age" if state["age"] is None else f"{state['age']} years old"
    sex = SEXES.get(state["sex"])
    return f"Patient: {age}, {sex}." if sex else f"Patient: {age}."


def _stay(state: State) -> str:
    if state["place"] == "outside":
        return "Stay: not in the hospital."
    return f"Stay: {PLACES[state['place']]} for {_hours(state['hours'][state['place']])}."


def _labs(state: State) -> str:
    if not state["labs"]:
        return "Laboratory values: none known."
    return f"Laboratory values: {'; '.join(_value(name, value) for name, value in state['labs'].items())}."


def _value(name: str, value: dict[str, Any]) -> str:
    remarks = [value["level"]] if value["level"] in ("high", "low") else []
    if value["change"]:
        remarks.append(f"{'up' if value['change'] > 0 else 'down'} {abs(value['change']):g}")
    remarks.append(f"{_hours(value['hours'])} ago")
    unit = f" {value['unit']}" if value["unit"] else ""
    return f"{name} {value['value']:g}{unit} ({', '.join(remarks)})"


def _hours(hours: float) -> str:
    """Whole hours up to three days, then whole days."""
    if hours < 1:
        return "less than an hour"
    number, unit = (round(hours), "hour") if hours < 72 else (round(hours / 24), "day")
    return f"{number} {unit}{'s' * (number != 1)}"
