"""Each departure of a run from what the paper states is listed."""

from __future__ import annotations

import pytest

from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Settings
from lumen_hpc.report.identity import exposure, identify

PAPER = ("stage=full", "recipe=lumen")


def departures(*words: str) -> set[str]:
    return set(identify(resolve([*PAPER, *words]).settings).deviations)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.adapter.kind=lora", "low-rank updates of rank 64"),
        ("train.steps=50", "50 steps, not one epoch"),
        ("train.epochs=2", "2 epochs, not 1"),
        ("train.learning_rate=1e-4", "learning rate 0.0001"),
        ("train.global_batch=64", "global batch 64"),
        ("train.tune=[llm]", "frozen"),
        ("prepare.one_study_per_test_subject=false", "every study of a test patient"),
        ("prepare.difference_fraction=1", "every difference question is kept"),
        ("experts.thresholds=[0.2,0.5,0.8]", "words at probabilities [0.2, 0.5, 0.8]"),
        ("experts.in_prompt=[pathologies,age,view]", "without the experts' race"),
        ("experts.extra=[view]", "without the experts' age and race"),
        ("instruct.expert_text=false", "without the experts' predictions"),
        ("instruct.findings_first=true", "open with a line of each finding"),
    ],
)  # fmt: skip
def test_each_departure_is_said(word: str, said: str) -> None:
    more = departures(word) - departures()
    assert [said in sentence for sentence in more] == [True]


def test_lines_of_the_patients_state_are_a_departure() -> None:
    settings = Settings()
    settings.instruct.clinical = ["patient", "labs"]
    assert any("patient and labs" in sentence for sentence in identify(settings).deviations)


def test_an_expert_of_somebody_elses_is_no_classifier_of_phantoms() -> None:
    settings = Settings()
    settings.experts.model = "mine"
    assert [line for line in identify(settings).deviations if line.startswith("Experts")] == [
        "Experts: mine, not TorchXRayVision (2.3)."
    ]
    assert exposure(settings) == ""
