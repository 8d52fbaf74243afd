"""A run goes on with the settings of its earlier command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumen_hpc.cluster import submit
from lumen_hpc.config import config_file, run_record
from lumen_hpc.config.request import Request
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return ["stage=full", "run=first", f"runs={tmp_path / 'runs'}"]


def submitted(words: list[str]) -> Request:
    request = resolve(words)
    request.folder.mkdir(parents=True, exist_ok=True)
    config_file.save(request, request.folder / "config.yaml")
    return request


def test_a_run_goes_on_without_its_earlier_words(words: list[str]) -> None:
    first = submitted([*words, "train.steps=9", "train.mixture.difference=1", "predict.models=[lumen]"])
    again = resolve(words)
    assert (again.settings, again.profile) == (first.settings, first.profile)
    assert again.recorded_settings is not None
    assert run_record.differences(again.recorded_settings, again.recorded_settings) == []


def test_what_is_given_anew_comes_on_top_and_is_remembered_too(words: list[str]) -> None:
    submitted([*words, "train.steps=9", "train.clip=2.0"])
    submitted([*words, "train.clip=3.0"])
    train = resolve(words).settings.train
    assert (train.steps, train.clip) == (9, 3.0)


def test_a_run_goes_on_with_its_own_recipe_and_profile(words: list[str]) -> None:
    submitted([*words, "profile=h100", "recipe=demo", "profile.account=us", "train.steps=9"])
    again = resolve(words)
    assert (again.profile.name, again.recipe, again.settings.train.steps) == ("h100", "demo", 9)
    assert again.profile.account == "", "how one submission runs is not what the run is"
    assert resolve([*words, "profile=perlmutter"]).settings.train.steps == 9


def test_an_edited_recipe_is_a_difference_not_ignored(words: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train: {clip: 1.0}\n")
    submitted([*words, f"recipe={recipe}", "train.steps=9"])
    recipe.write_text("train: {clip: 4.0}\n")
    again = resolve(words)
    assert again.recorded_settings is not None
    found = run_record.differences(again.recorded_settings, config_file.as_dict(again.settings))
    assert found == [("train.clip", 1.0, 4.0)]
    recipe.unlink()
    assert resolve(words).settings.train.clip == 1.0, "a recipe that is gone: the run's own record"


def test_relative_paths_stay_what_they_were(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    submitted([*words, "recipe=lumen", "data.mimic_cxr=cxr"])
    monkeypatch.chdir("/")
    assert resolve(words).settings.data.mimic_cxr == str(tmp_path / "cxr")


def test_a_servers_own_settings_are_not_kept(words: list[str]) -> None:
    submitted([*words, "serve.port=8001", "model=ft"])
    assert resolve(words).settings.serve.model == "lumen"


def test_a_dollar_in_a_value_is_no_reference_in_the_next_command(words: list[str]) -> None:
    first = submitted([*words, "data.diff_vqa='/a/${SCRATCH}'", r"data.mimic_iv='/b/\${name}'"])
    assert first.settings.data.diff_vqa == "/a/${SCRATCH}" and first.settings.data.mimic_iv == "/b/${name}"
    assert resolve(words).settings == first.settings


def test_a_file_of_an_older_version_keeps_all_that_its_recipe_does_not_say(words: list[str]) -> None:
    first = submitted([*words, "train.steps=9"])
    path = first.folder / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("given:", "unknown:"))
    assert resolve(words).settings == first.settings


def test_a_repeated_config_is_remembered_by_its_new_run(words: list[str], tmp_path: Path) -> None:
    first = submitted([*words, "train.steps=9"])
    other = [f"runs={tmp_path / 'runs'}", "run=second"]
    submitted([f"config={first.folder / 'config.yaml'}", *other])
    again = resolve(["stage=full", *other])
    assert (again.settings, again.profile) == (first.settings, first.profile)


def test_a_config_without_a_name_is_refused_with_both_choices(words: list[str]) -> None:
    first = submitted(words)
    with pytest.raises(UserError, match=r"run=NEW repeats .* run=first without config= goes on"):
        resolve([f"config={first.folder / 'config.yaml'}"])


def test_sections_that_come_and_go_are_differences() -> None:
    before = {"judge": {"second": None}, "train": {"mixture": {"diagnostic": 1, "difference": 2}}}
    after = {"judge": {"second": {"kind": "vllm"}}, "train": {"mixture": {"diagnostic": 1}}}
    assert run_record.differences(before, after) == [
        ("train.mixture", {"diagnostic": 1, "difference": 2}, {"diagnostic": 1}),
        ("judge.second", None, {"kind": "vllm"}),
    ]
    assert run_record.differences({"train": {"old": 1}}, {"train": {"new": 2}}) == [], "keys of another version"


def test_a_corrupt_file_is_named(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("settings: [\n")
    with pytest.raises(UserError, match=r"config\.yaml: not a config\.yaml of a run"):
        resolve(words)


def test_a_place_where_no_run_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for place, name, reason in (
        ("file", "first", "file/first: Not a directory"),
        ("circle", "first", "circle/first: Too many levels of symbolic links"),
        (".", "x" * 300, "File name too long"),
    ):
        for verb in ("stage=full", "check"):
            with pytest.raises(UserError, match=f"{reason}; choose another run=NAME or runs=FOLDER"):
                resolve([verb, f"run={name}", f"runs={tmp_path / place}"])
        request = resolve(["status", f"run={name}", f"runs={tmp_path / place}"])
        with pytest.raises(UserError, match=reason):
            submit.open_run(request)


def test_a_run_that_was_asked_for_whole_is_repeated_whole(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit.snapshot, "record_provenance", lambda *_: None)
    for stage in ("full", "train", "export"):
        request = resolve([f"stage={stage}", *words[1:]])
        folder = request.folder / "submissions" / stage
        folder.mkdir(parents=True)
        config_file.save(request, folder / "config.yaml")
        submit.record(request, submit.open_run(request), submit.Submission(folder, request.folder))
    again = resolve([f"config={request.folder / 'config.yaml'}", "run=second", words[2]])
    assert (again.stage, again.run) == ("full", "second")


def test_a_mapping_that_was_emptied_stays_so(words: list[str]) -> None:
    first = submitted([*words, "train.mixture={}", "train.global_batch=64"])
    assert (first.settings.train.mixture, resolve(words).settings.train.mixture) == ({}, {})
    submitted([*words, "train.mixture={}", "train.mixture.difference=3"])
    submitted([*words, "train.mixture.prediction=4", "train.clip=2.0"])
    assert resolve(words).settings.train.mixture == {"difference": 3, "prediction": 4}


def test_a_run_that_lost_its_config_goes_on_as_it_was_last_submitted(words: list[str]) -> None:
    for number in (1, 2):
        request = resolve([*words, f"train.steps={number}"])
        folder = request.folder / "submissions" / f"{number:04d}"
        folder.mkdir(parents=True)
        config_file.save(request, folder / "config.yaml")
    again = resolve(words)
    assert (
        again.recorded_settings is not None
        and again.recorded_settings["train"]["steps"] == again.settings.train.steps == 2
    )
