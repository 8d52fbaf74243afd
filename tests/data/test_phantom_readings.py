"""What one image of a phantom cannot tell and a pair can, and the ceiling of two separate readings."""

from __future__ import annotations

import numpy as np
import pytest

from lumen_hpc.config.data_schema import Phantom
from lumen_hpc.data import phantom, phantom_images
from lumen_hpc.data import phantom_ceilings as pc
from lumen_hpc.data import phantom_readings as pr
from lumen_hpc.data import phantom_states as ps

HEART, NODULE = "is there cardiomegaly?", "is there nodule?"


@pytest.fixture(scope="module")
def pairs():
    settings = Phantom(patients=400, dicom_every=0, size=64)
    timelines = (phantom.patient(0, number, settings) for number in range(settings.patients))
    return [(one.states, two.states, two.day - one.day, 0) for one, two in timelines]


def states(**chosen):
    return {finding: chosen.get(finding.replace(" ", "_"), ps.ABSENT) for finding in ps.FINDINGS}


ALIKE = [
    (states(cardiomegaly=ps.State(True)), states(cardiomegaly=ps.State(constant="medium"))),
    (states(cardiomegaly=ps.State(True, constant="medium")), states(cardiomegaly=ps.State(constant="large"))),
    (states(nodule=ps.State(True, "left")), states(nodule=ps.State(constant="left"))),
    (states(nodule=ps.State(True, "left", constant="right")), states(nodule=ps.State(True, "right", constant="left"))),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_a_finding_and_its_imitation_are_the_same_pixels(one, other):
    anatomy = phantom_images.draw_anatomy(np.random.default_rng(0))
    exposure = phantom_images.draw_exposure(np.random.default_rng(1))
    pixels = [phantom_images.render(each, anatomy, exposure, 64, np.random.default_rng(2)) for each in (one, other)]
    assert (pixels[0] == pixels[1]).all()
    assert [ps.appearance(f, one[f]) for f in ps.FINDINGS] == [ps.appearance(f, other[f]) for f in ps.FINDINGS]


def test_a_patients_constants_are_in_every_image_and_are_no_findings():
    studies = phantom.patient(1, 5, Phantom(studies=6))
    for finding in pr.AMBIGUOUS:
        assert len({study.states[finding].constant for study in studies}) == 1
    assert pc.study_states(phantom._truth(studies[0])) == studies[0].states


def test_both_images_show_every_change(pairs):
    assert all(pr.visible_changes(before, after) == pc.changes(before, after) for before, after, _, _ in pairs)


def test_two_readings_and_a_rule_stay_well_below_a_reader_of_the_pair(pairs):
    truth = [pc.changes(before, after) for before, after, _, _ in pairs]
    best = pc.micro_f1(truth, pr.two_readings(pairs))
    assert 0.85 < best < 0.92
    likeliest = [pc.changes(pr.likeliest(before, k), pr.likeliest(after, k + 1)) for before, after, _, k in pairs]
    assert pc.micro_f1(truth, likeliest) <= best


def test_any_other_reading_of_one_image_at_a_time_is_no_better(pairs):
    truth = [pc.changes(before, after) for before, after, _, _ in pairs]
    best = pc.micro_f1(truth, pr.two_readings(pairs))
    rng = np.random.default_rng(0)
    for _ in range(20):
        called = {(f, str(ps.appearance(f, s))): rng.random() < 0.5 for f in pr.AMBIGUOUS for s in ps.states(f)}
        read = [
            [{f: called[f, str(ps.appearance(f, each[f]))] for f in pr.AMBIGUOUS} for each in (before, after)]
            for before, after, _, _ in pairs
        ]
        named = [
            {item for item in true if item[1] not in pr.AMBIGUOUS}
            | {("new" if two[f] else "resolved", f) for f in pr.AMBIGUOUS if one[f] != two[f]}
            for true, (one, two) in zip(truth, read, strict=True)
        ]
        assert pc.micro_f1(truth, named) <= best


def test_questions_that_the_image_does_not_decide_are_known():
    one, other = ALIKE[0]
    for each in (one, other):
        assert not pr.is_decidable("presence", HEART, each)
        assert not pr.is_decidable("abnormality", "is there evidence of any abnormalities in this image?", each)
        assert pr.is_decidable("presence", NODULE, each) and pr.is_decidable("presence", "is there edema?", each)
    largest = states(cardiomegaly=ps.State(True, constant="large"))
    assert pr.is_decidable("presence", HEART, largest) and pr.likeliest_answer(HEART, largest, 0)
    assert pr.is_decidable("presence", HEART, states()) and not pr.likeliest_answer(HEART, states(), 0)
    two_spots, side = ALIKE[3][0], "is the nodule located on the left side or right side?"
    assert pr.is_decidable("presence", NODULE, two_spots) and not pr.is_decidable("location", side, two_spots)
    assert pr.is_decidable("location", side, ALIKE[2][0])


def test_the_best_guess_is_better_than_always_yes_or_always_no(pairs):
    """Asked as phantoms ask: of one finding that is there and of one that is not."""
    right = {"guess": 0, "yes": 0, "no": 0}
    rng, asked = np.random.default_rng(0), 0
    for before, after, _, order in pairs:
        for each, at in ((before, order), (after, order + 1)):
            for _, question, answer in phantom.questions.diagnostic(each, False, rng):
                if question in (HEART, NODULE) and not pr.is_decidable("presence", question, each):
                    asked += 1
                    right["guess"] += pr.likeliest_answer(question, each, at) == (answer == "yes")
                    right[answer] += 1
    assert asked > 50
    assert right["guess"] >= max(right["yes"], right["no"])


def test_the_ceiling_is_printed(tmp_path, capsys, monkeypatch):
    phantom.write(tmp_path, Phantom(patients=40, dicom_every=0), seed=0)
    monkeypatch.setattr("sys.argv", ["phantom_readings", str(tmp_path)])
    pr.main()
    assert "40 pairs" in (printed := capsys.readouterr().out)
    assert "1.000" in printed


def test_a_folder_without_phantoms_is_refused_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["phantom_readings", str(tmp_path)])
    with pytest.raises(SystemExit):
        pr.main()
    assert "has no truth.jsonl; lumen_hpc.data.phantom.write" in capsys.readouterr().err
