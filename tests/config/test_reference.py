"""The reference that `--help` prints."""

from __future__ import annotations

from lumen_hpc.config import reference
from lumen_hpc.config.request import OPTIONS


def test_every_setting_is_documented():
    rows = reference.documentation()
    undocumented = [key for key, _, text in rows if not text]
    assert undocumented == []
    assert {"train.learning_rate", "profile.account", "profile.resources.KIND.gpus", "dry_run"} <= {
        row[0] for row in rows
    }


def test_what_a_request_holds_beside_its_options_cannot_be_given():
    options = {"stage", "run", "runs", "recipe", "config", "dry_run", "scripts", "confirm", "watch", "json"}
    assert {*OPTIONS} == options | {"image", "reference", "days"}
    keys = [key for key, _, _ in reference.documentation()]
    assert keys[: len(OPTIONS)] == [*OPTIONS]
    assert keys[len(OPTIONS)] == "seed"
