"""What a stage and its run are: stage.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumen_hpc.cluster.stage import Run
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Settings


@pytest.mark.parametrize(
    ("profile", "environment", "words"),
    [
        ("local", "", "run=first"),
        ("mysite", "", "run=first runs='{runs}'"),
        ("mysite", "mysite", "run=first"),
        ("local", "mysite", "run=first runs='{runs}'"),
        ("{runs}/site.yaml", "site.yaml", "run=first"),
    ],
)
def test_the_words_that_are_printed_for_a_run_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, environment: str, words: str
) -> None:
    runs = tmp_path / "my runs"
    runs.mkdir()
    monkeypatch.chdir(runs)
    monkeypatch.setenv("LUMEN_PROFILE", environment)
    run = Run(runs / "first", Settings(), Profile(name=profile.format(runs=runs), runs=str(runs)))
    assert run.arguments == words.format(runs=runs)
    assert Run(tmp_path / "first", Settings(), run.profile).arguments == f"run=first runs={tmp_path}"
