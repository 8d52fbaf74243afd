"""Further trainings of a model: steps of their own, of the same records, that leave finished trainings valid."""

from __future__ import annotations

import pytest

from jobs import PIPELINE
from lumen_hpc import models
from lumen_hpc.cluster import graph
from lumen_hpc.config import config_file
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError


def test_a_further_training_is_the_same_model_with_another_seed():
    assert models.repeats(["nvila", "ft", "lumen"], 3) == ["ft@1", "lumen@1", "ft@2", "lumen@2"]
    assert models.repeats(["lumen"], 1) == []
    assert models.compared_model("lumen@2") is models.compared_model("lumen") is models.MODELS["lumen"]
    assert [models.training_number(name) for name in ("lumen", "lumen@1", "lumen@2")] == [0, 1, 2]
    with pytest.raises(KeyError):
        models.compared_model("unknown@1")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"trains_on": ("diagnostic", "differences"), "workload": models.Workload()}, r"trains on \['differences'\]"),
        ({"trains_on": ("diagnostic",)}, "mine needs trains_on and workload"),
        ({"workload": models.Workload()}, "mine needs trains_on and workload"),
    ],
)
def test_an_entry_that_would_train_on_less_than_it_says_is_refused(entry: dict, message: str):
    with pytest.raises(UserError, match=message):
        models.ComparedModel(name="mine", label="Mine", **entry)


def test_seeds_add_trainings_and_their_answers_and_nothing_else():
    def steps(*words):
        return {step.name: step for step in graph.steps(PIPELINE.stages, resolve(["stage=full", *words]).settings)}

    once, thrice = steps(), steps("seeds=3")
    assert thrice.keys() - once.keys() == {
        f"{stage}-{model}@{number}" for stage in ("train", "predict") for model in ("ft", "lumen") for number in (1, 2)
    }
    assert "train-lumen@1" in thrice["predict-lumen@1"].after and "train-lumen" not in thrice["predict-lumen@1"].after
    assert {"predict-lumen@1", "predict-ft@2"} <= set(thrice["evaluate"].after)


def test_more_seeds_make_no_finished_training_stale():
    before, after = (resolve(["stage=full", *words]).settings for words in ([], ["seeds=3"]))
    for stage in PIPELINE.stages:
        assert config_file.digest(before, stage.settings) == config_file.digest(after, stage.settings), stage.name
