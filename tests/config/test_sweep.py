"""A list in a setting that takes one value makes a run of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumen_hpc.config import config_file
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.sweep import points
from lumen_hpc.errors import UserError


def test_every_combination_is_a_run_with_a_name(tmp_path: Path) -> None:
    words = ["stage=full", "run=try", f"runs={tmp_path}", "train.learning_rate=[1e-5,2e-5]", "seed=[0,1]"]
    found = dict(points(words))
    assert next(iter(found)) == "try-learning_rate-1e-5-seed-0" and len(found) == 4
    settings = {name: resolve(words).settings for name, words in found.items()}
    assert {(s.train.learning_rate, s.seed) for s in settings.values()} == {
        (a, b) for a in (1e-5, 2e-5) for b in (0, 1)
    }
    assert all(resolve(words).run == name for name, words in found.items())


def test_a_value_of_a_sweep_is_what_was_written(tmp_path: Path) -> None:
    words = ["stage=full", "run=try", f"runs={tmp_path}", "evaluate.images=[null,true]"]
    found = {name: resolve(words).settings.evaluate.images for name, words in points(words)}
    assert found == {"try-images-null": None, "try-images-true": True}


def test_two_lists_for_keys_of_one_name_are_told_apart(tmp_path: Path) -> None:
    words = ["stage=full", "run=try", f"runs={tmp_path}", "experts.shards=[1,2]", "rewrite.shards=[3]"]
    assert [name for name, _ in points(words)] == [
        "try-experts.shards-1-rewrite.shards-3", "try-experts.shards-2-rewrite.shards-3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "word",
    ["predict.models=[ft,lumen]", "train.betas=[0.9,0.95]", "train.mixture={}", "train.clip=1.0",
     "profile.modules=[a,b]", "serve.images=[/a,/b]", "nonsense=[1,2]"],
)  # fmt: skip
def test_what_is_a_list_by_nature_sweeps_nothing(word: str) -> None:
    assert points(["stage=full", word]) == []


def test_a_sweep_of_an_existing_run_has_its_settings(tmp_path: Path) -> None:
    words = ["stage=full", "run=first", f"runs={tmp_path}"]
    first = resolve([*words, "train.steps=7", "predict.models=[lumen]", "evaluate.images=false"])
    first.folder.mkdir()
    config_file.save(first, first.folder / "config.yaml")
    for _, point in points([*words, "train.clip=[1.5,2.5]"]):
        found = resolve(point)
        assert found.recorded_settings is None, "a new run"
        assert (found.settings.train.steps, found.settings.predict.models) == (7, ["lumen"])
        assert found.settings.train.clip in (1.5, 2.5) and found.settings.evaluate.images is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "seed=[0,1]"], "seed: check takes one value"),
        (["seed=[1,1]"], "a value comes twice"),
        (["train.learning_rate=[1e-5,0.00001]"], "a value comes twice"),
        (["train.base=[ü,ö]"], "two runs of this sweep would have the name demo-base-_; submit one by itself"),
        (["train.base=[a/b,a_b]"], "two runs of this sweep would have the name demo-base-a_b"),
        (["seed=[]"], "takes a list of values"),
        (["train.learning_rate=[" + ",".join(f"{k}e-6" for k in range(1, 60)) + "]"], "59 runs, more than 50"),
    ],
)
def test_what_is_no_sweep_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        points([*([] if words[0] == "check" else ["stage=full"]), *words])


def test_values_that_fit_are_swept_though_the_default_would_not() -> None:
    words = ["stage=full", "recipe=lumen", "train.adapter.kind=lora", "train.adapter.base_bits=4", "train.zero=[1,2]"]
    assert [resolve(point).settings.train.zero for _, point in points(words)] == [1, 2]
