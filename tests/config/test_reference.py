"""The reference that `--help` prints."""

from __future__ import annotations

from lumen_hpc.config import reference


def test_every_setting_is_documented():
    rows = reference.documentation()
    undocumented = [key for key, _, text in rows if not text]
    assert undocumented == []
    assert {"train.learning_rate", "profile.account", "profile.resources.KIND.gpus", "dry_run"} <= {
        row[0] for row in rows
    }
