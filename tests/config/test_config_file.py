"""A run's config.yaml repeats the run, and its digest sees what decides results."""

from __future__ import annotations

from pathlib import Path

from lumen_hpc.config import config_file
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Settings


def test_a_saved_config_repeats_the_run(tmp_path: Path):
    request = resolve(["stage=train", "profile=h100", "recipe=demo", "train.clip=0.5", "profile.account=us"])
    config_file.save(request, tmp_path / "config.yaml")
    again = resolve([f"config={tmp_path / 'config.yaml'}", "run=again"])
    assert again.settings == request.settings
    assert again.stage == "train"
    assert config_file.load(tmp_path / "config.yaml") == (request.settings, request.profile)


def test_the_digest_sees_what_decides_results_and_nothing_else():
    before, after = Settings(), Settings()
    after.train.token_budget += 1
    assert config_file.digest(before, ("train",)) == config_file.digest(after, ("train",))
    after.train.learning_rate *= 2
    assert config_file.digest(before, ("train",)) != config_file.digest(after, ("train",))
    assert config_file.digest(before, ("seed", "experts")) == config_file.digest(after, ("seed", "experts"))


def test_a_saved_config_repeats_profile_and_settings_as_they_were_resolved(tmp_path: Path):
    first = resolve(["stage=train", "profile=h100", "profile.resources.gpu.tasks=3", "train.clip=0.5"])
    config_file.save(first, tmp_path / "config.yaml")
    again = resolve([f"config={tmp_path / 'config.yaml'}", "run=again"])
    assert (again.stage, again.profile, again.settings) == (first.stage, first.profile, first.settings)


def test_a_shell_variable_of_a_setup_line_reaches_the_node(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(r"setup: ['for f in a b; do echo \${f} ${HOME}; done', 'echo \${seed}']" + "\n")
    request = resolve(["stage=prepare", f"profile={site}", f"runs={tmp_path}"])
    config_file.save(request, tmp_path / "config.yaml")
    setup = config_file.load_request(tmp_path / "config.yaml", tmp_path).profile.setup
    assert setup == request.profile.setup == ["for f in a b; do echo ${f} ${HOME}; done", "echo ${seed}"]
