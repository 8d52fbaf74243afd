"""No cheat passes as a model that learned: a gate catches it, or a row of the page shows it for what it is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lumen_hpc.config.schema import Evaluate
from sandbox.cheat_scores import score
from sandbox.cheats import CHEATS, World, rows
from tests.report import pretend

LEAK = "prediction, change F1 of the best model, at most the full oracle's upper bound"
TOLD = "closed questions that no image decides, best model, at most the best guess's upper bound"
BEST = "difference, change F1, LUMEN minus the best two readings and a rule, lower bound"
COMPARED = "difference, change F1, LUMEN minus LUMEN + rule, lower bound"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Each cheat's score on 80 pretended patients; the models are the ideal reader, whose answers good ones give."""
    path = tmp_path_factory.mktemp("phantom") / "truth.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pretend.truth(80)))
    inputs = replace(pretend.inputs(patients=80), truth=path)
    training = pretend.inputs(patients=200, seed=1)
    inputs = replace(
        inputs,
        training_meta=[record["meta"] for record in training.records],
        experts={**training.experts, **inputs.experts},
        findings={**training.findings, **inputs.findings},
        answers={model: list(each) for model, each in inputs.answers.items()},
    )
    good = list(rows(next(cheat for cheat in CHEATS if cheat.name == "ideal reader"), World.of(inputs)))
    inputs.answers |= {"lumen": good, "ft": [row | {"model": "ft"} for row in good]}
    world = World.of(inputs)
    settings = Evaluate(bootstrap=200, permutations=100)
    learned = {
        False: inputs.training_meta,
        True: [*inputs.training_meta, *(record["meta"] for record in inputs.records)],
    }
    return {
        cheat.name: score(
            replace(inputs, training_meta=learned[cheat.learns_test]),
            settings,
            0,
            cheat.name,
            list(rows(cheat, world)),
            (),
        )
        for cheat in CHEATS
    }


def test_a_good_model_fails_no_gate(scored):
    assert scored["model"].failed == ()


@pytest.mark.parametrize("name", ["blind", "constant", "experts"])
def test_an_answerer_that_sees_no_image_is_caught(scored, name):
    assert {"prediction, change F1", "same image twice: nothing has changed"} & set(scored[name].failed)
    assert "difference, change F1" in scored[name].failed or "difference, ROUGE-L" in scored[name].failed


@pytest.mark.parametrize("name", ["future shown", "future by name"])
def test_a_leak_of_the_future_is_caught_by_the_full_oracles_bound(scored, name):
    assert LEAK in scored[name].failed
    assert LEAK not in scored["model"].failed


def test_two_separate_readings_and_a_rule_are_caught_and_shown_for_what_they_are(scored):
    assert COMPARED in scored["classifier"].failed
    assert any("LUMEN + rule" in statement for statement in scored["classifier"].shown)
    assert scored["classifier"].values["difference", "change_f1"] < 0.92


def test_poor_probes_do_not_help_a_classifier_with_a_rule(scored):
    assert COMPARED not in scored["sandbagger"].failed
    assert BEST in scored["sandbagger"].failed and BEST not in scored["model"].failed


def test_the_best_reader_of_pairs_beats_its_own_separate_readings(scored):
    assert COMPARED not in scored["ideal reader"].failed
    assert scored["ideal reader"].values["difference", "change_f1"] == 1


@pytest.mark.parametrize("name", ["reports", "memorizer", "future by name"])
def test_an_answer_that_no_image_holds_was_told(scored, name):
    assert TOLD in scored[name].failed
    assert TOLD not in scored["model"].failed


def test_a_patient_in_both_splits_is_caught(scored):
    assert "patients of the test set among the training's" in scored["memorizer"].failed


def test_a_model_that_never_looks_at_the_main_image_fails_its_controls(scored):
    assert {"difference, change F1", "same image twice: nothing has changed"} <= set(scored["reference only"].failed)


def test_everything_that_could_be_right_is_no_answer(scored):
    assert "level questions, share right" in scored["padded"].failed
    assert any("Precision" in statement for statement in scored["padded"].shown)


def test_an_order_to_the_judge_is_as_blind_as_without_it(scored):
    assert set(scored["order to the judge"].failed) == set(scored["blind"].failed)


def test_a_list_of_everything_has_its_precision_beside_its_recall(scored):
    values = scored["constant"].values
    assert values["diagnostic", "recall"] > 0.8 and values["diagnostic", "precision"] < 0.3
    assert any("Precision" in statement for statement in scored["constant"].shown)
    assert values["diagnostic", "finding_f1"] < 0.8 and values["diagnostic", "accuracy_polarity"] < 0.8


def test_a_blind_answerer_is_no_better_than_its_row(scored):
    assert any("Question and interval only" in statement for statement in scored["blind"].shown)
