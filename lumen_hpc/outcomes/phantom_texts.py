"""The words of outcome questions about phantoms, so that the demo's tokenizer knows them as words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lumen_hpc.config.schema import Instruct
from lumen_hpc.data import timelines
from lumen_hpc.data.findings_line import SEPARATOR
from lumen_hpc.data.instructions import EARLIER, distance
from lumen_hpc.data.phantom_states import FINDINGS
from lumen_hpc.outcomes.labs import level
from lumen_hpc.outcomes.panel import PANEL
from lumen_hpc.outcomes.phantom_severity import MARKERS
from lumen_hpc.outcomes.questions import sentence, wordings
from lumen_hpc.outcomes.state_lines import clinical

STATES = 300
"""States that are drawn, so that their numbers are seen."""


def texts(settings: Instruct) -> Iterator[str]:
    """Questions, answers and lines of the state, as these settings ask for them; nothing where they ask for none."""
    yield from (f"{EARLIER}{distance(-days)}: " for days in range(1, 10) if settings.max_images > 2)
    for outcome in settings.outcomes:
        yield from ("current image: ", *wordings(outcome), sentence(outcome, True), sentence(outcome, False))
    if settings.timelines:
        for finding in FINDINGS:
            yield from (way.format(f=finding) for ways in timelines.QUESTIONS.values() for way in ways)
            for kind, answer in (("since when", "9 days before"), ("worst", "taken now"), ("getting worse", "yes"),
                                 ("getting worse", "no")):  # fmt: skip
                yield timelines.sentence(timelines.Timeline(kind, finding, "", answer))
    rng = np.random.default_rng(0)
    for number in range(STATES):
        if settings.clinical:
            yield clinical(_state(rng), settings.clinical, settings.labs)
        for outcome in settings.outcomes:
            yield SEPARATOR + sentence(outcome, number % 2 == 0)  # as it stands after a findings line


def _state(rng: np.random.Generator) -> dict[str, Any]:
    """A state of the form that stage outcomes writes."""
    labs = {}
    for analyte in PANEL:
        marker = MARKERS.get(analyte.name)
        if marker:
            value, before = np.round(marker.mean + marker.spread * rng.normal(size=2), marker.digits).tolist()
            low, high = marker.reference
            labs[analyte.name] = {
                "value": value, "unit": analyte.unit, "low": low, "high": high, "level": level(value, low, high),
                "hours": float(rng.uniform(2, 20)), "change": round(value - before, 6),
            }  # fmt: skip
    place = ("icu", "hospital", "ed", "outside")[rng.integers(4)]
    hours = {} if place == "outside" else {place: float(rng.uniform(1, 200))}
    age, sex = int(rng.integers(18, 92)), "FM"[rng.integers(2)]
    return {"age": age, "sex": sex, "place": place, "hours": hours, "labs": labs}
