"""Values of several sources as one."""

from __future__ import annotations

from pathlib import Path

from lumen_hpc.config.resolve import resolve


def test_an_empty_mapping_takes_the_place_of_one(tmp_path: Path):
    assert resolve(["stage=full", "recipe=demo", "train.mixture={}"]).settings.train.mixture == {}
    site = tmp_path / "site.yaml"
    site.write_text("extends: slurm\nenvironment: {}\nresources: {}\ndefaults: {train: {mixture: {}}}\n")
    request = resolve(["stage=full", "recipe=demo", f"profile={site}"])
    assert (request.profile.environment, request.settings.train.mixture) == ({}, {})
    assert request.profile.resources["judge"].gpus == 8, "kinds of resources are not emptied"
    request = resolve(["stage=full", "profile=slurm", "profile.environment={}", "profile.environment.A=b"])
    assert request.profile.environment == {"A": "b"}
