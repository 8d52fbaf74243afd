"""The words of a command line."""

from __future__ import annotations

import re

import pytest

from lumen_hpc.config.request import read_words
from lumen_hpc.errors import UserError


@pytest.mark.parametrize(
    ("words", "takes"),
    [
        (["status", "dry_run=true"], "dry_run=true: status has no use for it; it takes run, runs, stage, watch, json"),
        (["logs", "json=true"], "json=true: logs has no use for it"),
        (["check", "watch=true"], "watch=true: check"),
        (["stage=full", "watch=true"], "watch=true: a submission"),
        (["cancel", "confirm=true"], "confirm=true: cancel"),
        (["compare", "run=a", "runs=a,b"], "run=a: compare has no use for it; it takes runs"),
        (["status", "train.steps=9"], "train.steps=9: status has no use for it"),
        (["logs", "data=mimic"], "data=mimic: logs has no use for it"),
        (["compare", "runs=a,b", "evaluate.confidence=0.9"], "evaluate.confidence=0.9: compare has no use for it"),
        (["cancel", "model=lumen"], "model=lumen: cancel has no use for it; it takes run, runs, stage, dry_run; "
                                    "stage=train-lumen or stage=predict-lumen is one model's step"),
        (["ask", "predict.max_new_tokens=9"], "predict.max_new_tokens=9: ask has no use for it"),
    ],
)  # fmt: skip
def test_what_a_verb_does_not_honour_is_refused(words: list[str], takes: str):
    with pytest.raises(UserError, match=re.escape(takes)):
        read_words(words)


def test_a_checkpoint_of_no_run_is_asked_with_settings_of_the_command():
    assert read_words(["ask", "weights=/x", "predict.max_new_tokens=9", "why?"])[1][1] == "predict.max_new_tokens=9"


@pytest.mark.parametrize("words", [["run=a", "run=b"], ["stage=train", "run=a", "stage=full"]])
def test_an_option_that_is_given_twice_is_refused(words: list[str]):
    with pytest.raises(UserError, match=r"(run|stage) is given twice, (a and b|train and full): give it once"):
        read_words(words)


def test_of_a_setting_that_is_given_twice_the_last_counts_and_it_is_said(capsys: pytest.CaptureFixture):
    assert read_words(["data=mimic", "data.source=phantom", "seed=1", "seed=1"])[1][-1] == "seed=1"
    assert capsys.readouterr().err == (
        "lumen: data.source is given more than once: data.source=phantom, the last, counts\n"
    )


@pytest.mark.parametrize("names", ["a,b", "[a,b]", "a,b,", "a, b"])
def test_runs_to_compare_are_named_as_a_list(names: str):
    assert read_words(["compare", f"runs={names}"])[0].compared_runs == ("a", "b")


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (["FEV1=70%, is it worse?"], "FEV1=70%, is it worse?"),
        (["size=big?"], "size=big?"),
        (["what", "has", "changed?"], "what has changed?"),
        (["image=my x.png", "why?", "-3 days?"], "why? -3 days?"),
    ],
)
def test_a_question_may_hold_an_equals_sign(words: list[str], question: str):
    assert read_words(["ask", *words])[0].question == question


@pytest.mark.parametrize("word", ["recipe=[demo,smoke]", "config=[a.yaml,b.yaml]"])
def test_a_list_of_recipes_is_no_sweep(word):
    with pytest.raises(UserError, match="takes one; a list sweeps a setting"):
        read_words(["stage=full", word])
