"""The findings of a phantom patient and how they change: a small Markov chain of known probabilities.

Five findings with side, place, level and a visible texture. The texture predicts the future: striped means
worsening or persistent, smooth means improving. How far a finding moves also depends on the interval. The
texture is drawn anew at every study, so the current image alone does not reveal its past. The same
tables draw the patients and give the exact ceilings (`phantom_ceilings.py`), so the two always agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np

SIDES = ("left", "right")
PLACES = ("left upper lobe", "left lower lobe", "right upper lobe", "right lower lobe")
TEXTURES = ("striped", "smooth")
LEVELS = {"pleural effusion": ("small", "moderate", "large"), "edema": ("mild", "moderate", "severe")}
FINDINGS = ("pleural effusion", "consolidation", "cardiomegaly", "nodule", "edema")

DAYS = {"day": (1,), "short": (7, 14, 21, 30, 45, 60), "long": (90, 120, 180, 365)}
"""Intervals [days] between studies by the classes of the dynamics."""
DAY_CLASS_SHARE = {"day": 0.20, "short": 0.40, "long": 0.40}
LONG_FROM = 90

PREVALENCE = {"pleural effusion": 0.65, "consolidation": 0.6, "cardiomegaly": 0.35, "nodule": 0.35, "edema": 0.65}
"""Share of first studies with the finding."""
TOGGLES = {"cardiomegaly": (0.3, 0.45), "nodule": (0.3, 0.45)}
"""Probability that a finding without level or cue appears, and that it resolves, over more than a day."""
CONSTANTS = {"cardiomegaly": {"": 1 / 3, "medium": 1 / 3, "large": 1 / 3},
             "nodule": {"": 0.5, "left": 0.25, "right": 0.25}}  # fmt: skip
"""What a patient has in every image, with its share of patients: the heart's own size (small if empty), which
cardiomegaly enlarges by one step, and the side of a spot that looks like a nodule and is none."""


@dataclass(frozen=True, slots=True)
class State:
    """One finding at one study; a field that the finding does not have is empty."""

    present: bool = False
    where: str = ""
    """Side (effusion, nodule) or lobe (consolidation)."""
    level: str = ""
    texture: str = ""
    constant: str = ""
    """One of CONSTANTS, present or not."""

    def record(self) -> dict[str, str]:
        """The non-empty fields besides `present`."""
        return {key: value for key, value in asdict(self).items() if key != "present" and value}


ABSENT = State()


@cache
def states(finding: str) -> tuple[State, ...]:
    """Every state of a finding, the absent one first."""
    if finding == "cardiomegaly":
        return tuple(State(present, constant=size) for size in CONSTANTS[finding] for present in (False, True))
    if finding == "nodule":
        return tuple(state for spot in CONSTANTS[finding] for state in (
            State(constant=spot), *(State(True, side, constant=spot) for side in SIDES if side != spot)))  # fmt: skip
    if finding == "consolidation":
        return (ABSENT, *(State(True, place, "", cue) for place in PLACES for cue in TEXTURES))
    where = SIDES if finding == "pleural effusion" else ("",)
    return (ABSENT, *(State(True, side, level, cue) for side in where for level in LEVELS[finding] for cue in TEXTURES))


def day_class(days: int) -> str:
    """`day`, `short` or `long` for an interval in whole days."""
    return "day" if days <= 1 else "long" if days >= LONG_FROM else "short"


@cache
def initial(finding: str) -> np.ndarray:
    """Probabilities of `states(finding)` at a patient's first study; float64 [states]."""
    prevalence, all_states = PREVALENCE[finding], states(finding)
    shares = CONSTANTS.get(finding, {"": 1.0})
    present = Counter(state.constant for state in all_states if state.present)
    return np.array([
        shares[state.constant] * (prevalence / present[state.constant] if state.present else 1 - prevalence)
        for state in all_states
    ])  # fmt: skip


@cache
def transition(finding: str, days: str) -> np.ndarray:
    """Probabilities from a state (row) to the next study's (column) over an interval of class `days`; float64."""
    all_states = states(finding)
    table = np.zeros((len(all_states), len(all_states)))
    for row, state in enumerate(all_states):
        for next_state, probability in _next(finding, state, days):
            matching = [k for k, other in enumerate(all_states) if _same_but_texture(other, next_state)]
            table[row, matching] += probability / len(matching)
    return table


def _same_but_texture(one: State, other: State) -> bool:
    return replace(one, texture="") == replace(other, texture="")


def _next(finding: str, state: State, days: str) -> Iterator[tuple[State, float]]:
    """The next study's (state without texture, probability) pairs."""
    same_state = replace(state, texture="")
    if days == "day":
        yield same_state, 1.0
    elif finding in LEVELS:
        yield from _levelled(finding, state, same_state, days)
    elif finding == "consolidation":
        yield from _consolidation(state, same_state, days)
    else:  # cardiomegaly and nodule come and go
        same_patient = [other for other in states(finding) if other.constant == state.constant]
        toggled_states = [other for other in same_patient if other.present != state.present]
        probability = TOGGLES[finding][state.present]
        yield same_state, 1 - probability
        yield from ((other, probability / len(toggled_states)) for other in toggled_states)


def _levelled(finding: str, state: State, same_state: State, days: str) -> Iterator[tuple[State, float]]:
    levels, step = LEVELS[finding], 2 if days == "long" else 1
    if not state.present:
        sides = SIDES if finding == "pleural effusion" else ("",)
        yield ABSENT, 0.88
        yield from ((State(True, side, level), 0.12 / len(sides) / len(levels)) for side in sides for level in levels)
        return
    next_level = levels.index(state.level) + (step if state.texture == "striped" else -step)
    yield same_state, 0.08
    yield (ABSENT if next_level < 0 else State(True, state.where, levels[min(next_level, len(levels) - 1)])), 0.92


def _consolidation(state: State, same_state: State, days: str) -> Iterator[tuple[State, float]]:
    if not state.present:
        yield ABSENT, 0.85
        yield from ((State(True, place), 0.15 / len(PLACES)) for place in PLACES)
        return
    resolution = 0.04 if state.texture == "striped" else 0.92 if days == "long" else 0.15
    yield same_state, 1 - resolution
    yield ABSENT, resolution


States = dict[str, State]
"""The state of each finding at one study, in the order of FINDINGS."""


def draw_first(rng: np.random.Generator) -> States:
    """The states at a patient's first study."""
    return {finding: _draw(finding, initial(finding), rng) for finding in FINDINGS}


def draw_next(before: States, days: int, rng: np.random.Generator) -> States:
    """The states `days` whole days after `before`."""
    interval_class = day_class(days)
    return {
        finding: _draw(finding, transition(finding, interval_class)[states(finding).index(state)], rng)
        for finding, state in before.items()
    }


def draw_days(rng: np.random.Generator) -> int:
    """An interval [whole days]; one fifth of the intervals are a single day."""
    classes = list(DAY_CLASS_SHARE)
    index = int(np.searchsorted(np.cumsum(list(DAY_CLASS_SHARE.values())), rng.random(), side="right"))
    intervals = DAYS[classes[index]]
    return intervals[int(rng.integers(len(intervals)))]


def _draw(finding: str, probabilities: np.ndarray, rng: np.random.Generator) -> State:
    index = int(np.searchsorted(np.cumsum(probabilities), rng.random(), side="right"))
    return states(finding)[min(index, len(probabilities) - 1)]


LOOKS = {"cardiomegaly": ("narrow", "medium", "wide", "widest"), "nodule": ("none", "left", "right", "both")}
"""What an image shows of the findings that CONSTANTS imitate: the size of the heart, the sides with a spot."""


def look(finding: str, state: State) -> str:
    """One of LOOKS; empty for a finding that nothing imitates."""
    if finding == "cardiomegaly":
        return LOOKS[finding][heart_size(state)]
    if finding == "nodule":
        sides_with_spots = spots(state)
        return "both" if len(sides_with_spots) == 2 else sides_with_spots[0] if sides_with_spots else "none"
    return ""


def appearance(finding: str, state: State) -> State | str:
    """What one image shows of a finding: equal for states that no single image can tell apart."""
    return look(finding, state) or state


def heart_size(state: State) -> int:
    """0 to 3: cardiomegaly adds one step to the patient's own size."""
    return list(CONSTANTS["cardiomegaly"]).index(state.constant) + state.present


def spots(state: State) -> tuple[str, ...]:
    """The sides with a spot, a nodule's or one that looks like it."""
    return tuple(side for side in SIDES if side in (state.where, state.constant))


def change(finding: str, before: State, after: State) -> tuple[str, ...] | None:
    """The change of one finding: ("new", f), ("resolved", f), ("level", f, from, to), or None.

    A finding that moves at the same level has not changed, as in the difference grammar.
    """
    if before.present != after.present:
        return ("new" if after.present else "resolved", finding)
    if before.level != after.level:
        return ("level", finding, before.level, after.level)
    return None
