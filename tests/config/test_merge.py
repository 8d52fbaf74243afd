"""Settings under their old names."""

from __future__ import annotations

from pathlib import Path

from lumen_hpc.config import config_file
from lumen_hpc.config.resolve import resolve


def test_a_renamed_setting_is_taken_under_its_old_name_with_a_warning(capsys):
    request = resolve(["stage=full", "experts.told=[pathologies]", "experts.words=[.1,.2,.3]"])
    assert request.settings.experts.in_prompt == ["pathologies"] and request.settings.experts.thresholds == [
        0.1,
        0.2,
        0.3,
    ]
    assert "command line: experts.told is called experts.in_prompt now" in capsys.readouterr().err


def test_a_run_with_a_removed_setting_goes_on_with_a_warning(tmp_path: Path, capsys):
    request = resolve(["stage=full", "recipe=demo", "run=old", f"runs={tmp_path}", "predict.compiled=true"])
    assert not [key for key in request.given if "compiled" in key]
    path = tmp_path / "old" / "config.yaml"
    config_file.save(request, path)
    path.write_text(path.read_text().replace("    batch_tokens:", "    compiled: false\n    batch_tokens:", 1))
    assert "compiled: false\n    batch_tokens" in path.read_text()
    resolve(["stage=full", "run=old", f"runs={tmp_path}"])
    config_file.load(path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "lumen: command line: predict.compiled is removed and has no effect"
    assert lines[-1] == f"lumen: {path}: predict.compiled is removed and has no effect"


def test_an_empty_mapping_takes_the_place_of_one(tmp_path: Path):
    assert resolve(["stage=full", "recipe=demo", "train.mixture={}"]).settings.train.mixture == {}
    site = tmp_path / "site.yaml"
    site.write_text("extends: slurm\nenvironment: {}\nresources: {}\ndefaults: {train: {mixture: {}}}\n")
    request = resolve(["stage=full", "recipe=demo", f"profile={site}"])
    assert (request.profile.environment, request.settings.train.mixture) == ({}, {})
    assert request.profile.resources["judge"].gpus == 8, "kinds of resources are not emptied"
    request = resolve(["stage=full", "profile=slurm", "profile.environment={}", "profile.environment.A=b"])
    assert request.profile.environment == {"A": "b"}
