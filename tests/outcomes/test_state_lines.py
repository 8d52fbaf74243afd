"""The state as lines: exact, readable, and of the parts that the settings ask for."""

from __future__ import annotations

from lumen_hpc.outcomes.state_lines import clinical
from tests.outcomes.conftest import Small

PARTS = ("patient", "stay", "labs")


def test_the_lines_of_a_full_state(read_small: Small) -> None:
    assert clinical(read_small.states["ordinary"], PARTS) == (
        "Patient: 62 years old, female.\n"
        "Stay: in the hospital for 2 hours.\n"
        "Laboratory values: creatinine 1.6 mg/dL (high, up 0.6, 2 hours ago); "
        "lactate 2 mmol/L (less than an hour ago); hemoglobin 7.2 g/dL (low, 71 hours ago); INR 1.1 (3 hours ago)."
    )


def test_the_lines_of_an_unknown_state_say_so(read_small: Small) -> None:
    assert clinical(read_small.states["unknown patient"], PARTS) == (
        "Patient: of unknown age.\nStay: not in the hospital.\nLaboratory values: none known."
    )


def test_only_the_parts_asked_for_are_told(read_small: Small) -> None:
    state = read_small.states["in icu"]
    assert clinical(state, ["stay"]) == "Stay: in intensive care for 20 hours."
    assert clinical(state, []) == ""


def test_the_analytes_asked_for_stand_alone(read_small: Small) -> None:
    line = clinical(read_small.states["ordinary"], ["labs"], ["INR", "lactate", "sodium"])
    assert line == "Laboratory values: lactate 2 mmol/L (less than an hour ago); INR 1.1 (3 hours ago)."
