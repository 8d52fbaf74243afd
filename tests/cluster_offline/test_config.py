from __future__ import annotations

from pathlib import Path

import pytest

from lumen_hpc import config
from lumen_hpc.errors import UserError
from lumen_hpc.settings import Config


@pytest.fixture(autouse=True)
def no_profile_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUMEN_PROFILE", raising=False)


def test_without_a_profile_it_is_the_demo_here():
    request = config.resolve(["stage=full"])
    assert (request.profile.name, request.recipe, request.profile.executor) == ("local", "demo", "local")
    assert request.settings.data.source == "phantom"


def test_the_command_line_wins_over_profile_recipe_and_default(tmp_path: Path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: slurm\ndefaults: {train: {clip: 2.0, weight_decay: 0.5}}\n")
    recipe = tmp_path / "short.yaml"
    recipe.write_text("train: {clip: 1.0, global_batch: 8}\n")
    request = config.resolve(["stage=train", f"profile={profile}", f"recipe={recipe}", "train.weight_decay=0.1"])
    train = request.settings.train
    assert (train.weight_decay, train.clip, train.global_batch, train.epochs) == (0.1, 2.0, 8, 1.0)


def test_a_profile_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUMEN_PROFILE", "h100")
    assert config.resolve(["stage=full"]).profile.resources["train"].gpus == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.learning_rte=1"], ["command line", "train.learning_rte", "train.learning_rate"]),
        (["train.zero=x"], ["train.zero", "'x'"]),
        (["train.zero=7"], ["train.zero=7", "0, 1, 2, 3"]),
        (["data=mimik"], ["data.source=mimik", "did you mean mimic?"]),
        (["train.global_batch=-1"], ["train.global_batch=-1", "negative"]),
        (["profile=nowhere"], ["nowhere", "h100"]),
        (["profile.acount=x"], ["acount", "account"]),
        (["profile.resources.gpus.gpus=1"], ["resources.gpus", "gpu"]),
        (["recipe=nothing"], ["nothing", "demo, lumen"]),
        (["statsu"], ["statsu", "did you mean status?"]),
        (["dry_run=perhaps"], ["dry_run=perhaps", "true or false"]),
        (["config=absent.yaml"], ["absent.yaml"]),
        (["run=a/b"], ["run=a/b"]),
    ],
)
def test_a_wrong_word_is_named_with_what_would_do(words: list[str], said: list[str]):
    with pytest.raises(UserError) as caught:
        config.resolve(["stage=full", *words])
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_profile_that_extends_itself_is_refused(tmp_path: Path):
    profile = tmp_path / "round.yaml"
    profile.write_text(f"extends: {profile}\n")
    with pytest.raises(UserError, match="circle"):
        config.resolve([f"profile={profile}"])


def test_a_saved_config_repeats_the_run(tmp_path: Path):
    request = config.resolve(["stage=train", "profile=h100", "recipe=demo", "train.clip=0.5", "profile.account=us"])
    config.save(request, tmp_path / "config.yaml")
    again = config.resolve([f"config={tmp_path / 'config.yaml'}"])
    assert again.settings == request.settings
    assert again.stage == "train"
    assert config.load(tmp_path / "config.yaml") == (request.settings, request.profile)


def test_the_digest_sees_what_decides_results_and_nothing_else():
    before, after = Config(), Config()
    after.train.token_budget += 1
    assert config.digest(before, ("train",)) == config.digest(after, ("train",))
    after.train.learning_rate *= 2
    assert config.digest(before, ("train",)) != config.digest(after, ("train",))
    assert config.digest(before, ("seed", "experts")) == config.digest(after, ("seed", "experts"))


def test_every_setting_is_documented():
    rows = config.documentation()
    undocumented = [key for key, _, text in rows if not text]
    assert undocumented == []
    assert {"train.learning_rate", "profile.account", "profile.resources.KIND.gpus", "dry_run"} <= {
        row[0] for row in rows
    }


def test_a_saved_config_repeats_profile_and_settings_as_they_were_resolved(tmp_path: Path):
    first = config.resolve(["stage=train", "profile=h100", "profile.resources.gpu.tasks=3", "train.clip=0.5"])
    config.save(first, tmp_path / "config.yaml")
    again = config.resolve([f"config={tmp_path / 'config.yaml'}"])
    assert (again.stage, again.profile, again.settings) == (first.stage, first.profile, first.settings)
