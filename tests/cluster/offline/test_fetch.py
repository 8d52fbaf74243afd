"""Pre-staging weights, with the hub replaced where the network begins."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from rich.console import Console

import launch
from lumen_hpc.cluster import fetch
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Settings
from lumen_hpc.errors import UserError
from lumen_hpc.weights import REVISIONS


@pytest.fixture
def settings() -> Settings:
    """The paper's, but for the experts, whose fetching is their own (tests/experts)."""
    return resolve(["stage=fetch", "recipe=lumen", "experts.model=phantom"]).settings


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A hub whose every model is a config.json; lists what was downloaded, as (name, revision)."""
    requests: list[tuple[str, str]] = []

    def download(name: str, revision: str, local_dir: Path) -> None:
        requests.append((name, revision))
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / "config.json").write_text(name)

    info = SimpleNamespace(model_info=lambda name, revision, timeout: SimpleNamespace(sha=revision or "a1"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return requests


def run(settings: Settings, cache: Path) -> tuple[int, str]:
    out = io.StringIO()
    return fetch.fetch(settings, cache, Console(file=out, width=300)), out.getvalue()


def test_what_was_fetched_is_noted_and_not_fetched_again(settings, hub, tmp_path):
    code, output = run(settings, tmp_path)
    names = [name for name, _ in hub]
    assert code == 0 and names[0] == "Efficient-Large-Model/NVILA-8B" and len(names) == 4
    assert all(not name.endswith("-text") for name in names), "the text Llama is derived from the official one"
    assert "licence" in output and "every weight" in output
    assert set(json.loads((tmp_path / fetch.NOTE).read_text())) == set(names)
    code, output = run(settings, tmp_path)
    assert code == 0 and len(hub) == 4 and output.count("(revision ") == 4 and "pins" not in output


def test_a_model_comes_in_its_pinned_revision_whatever_the_hub_calls_the_newest(settings, hub, tmp_path):
    run(settings, tmp_path)
    pinned = {name: revision for name, revision in hub if revision != "a1"}
    assert pinned == REVISIONS and all(re.fullmatch("[0-9a-f]{40}", revision) for revision in pinned.values())
    assert [name for name, revision in hub if revision == "a1"] == ["Efficient-Large-Model/NVILA-8B"]
    notes = json.loads((tmp_path / fetch.NOTE).read_text())
    assert {name: notes[name]["revision"] for name in REVISIONS} == REVISIONS


def test_a_revision_that_was_fetched_before_it_was_pinned_is_named(settings, hub, tmp_path):
    run(settings, tmp_path)
    notes = json.loads((tmp_path / fetch.NOTE).read_text())
    notes["Qwen/Qwen2.5-32B-Instruct"]["revision"] = "b2"
    (tmp_path / fetch.NOTE).write_text(json.dumps(notes))
    code, output = run(settings, tmp_path)
    assert code == 0 and f"pins revision {REVISIONS['Qwen/Qwen2.5-32B-Instruct']}" in output


def test_a_file_that_differs_from_the_first_fetch_is_refused(settings, hub, tmp_path):
    run(settings, tmp_path)
    notes = json.loads((tmp_path / fetch.NOTE).read_text())
    notes["Efficient-Large-Model/NVILA-8B"]["files"]["config.json"] = "0" * 64
    (tmp_path / fetch.NOTE).write_text(json.dumps(notes))
    (tmp_path / "NVILA-8B" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json differ"):
        run(settings, tmp_path)


def test_an_offline_machine_says_what_to_copy_where_and_takes_what_was_copied(settings, hub, tmp_path, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", offline)
    code, output = run(settings, tmp_path)
    assert hub == [], "a download tries again and again, for half a minute a model"
    assert code == 1 and f"copy by hand: Efficient-Large-Model/NVILA-8B (every file of it) to {tmp_path}" in output
    for line in output.splitlines():
        if line.startswith("copy by hand"):
            folder = Path(line.rsplit(" to ", 1)[1])
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
    code, output = run(settings, tmp_path)
    assert code == 0 and output.count("copied by hand: its revision is unknown, its files are recorded now") == 4


def test_the_demo_names_no_weights(hub, tmp_path):
    code, output = run(resolve(["stage=fetch", "recipe=demo"]).settings, tmp_path)
    assert code == 0 and "no weights" in output and hub == []


def test_a_dry_run_asks_nobody_and_writes_nothing(
    tmp_path: Path, hub: list[tuple[str, str]], capsys: pytest.CaptureFixture
):
    words = ["stage=fetch", "recipe=lumen", "dry_run=true", f"profile.cache={tmp_path / 'cache'}"]
    assert launch.main(words) == 0
    out = capsys.readouterr().out
    assert f"would be fetched to {tmp_path}/cache/NVILA-8B (weights are for non-commercial use" in out
    assert "experts: what of densenet121-res224-all, " in out
    assert hub == [] and list(tmp_path.iterdir()) == []


def test_settings_without_weights_say_so_in_a_dry_run_too(capsys: pytest.CaptureFixture):
    assert launch.main(["stage=fetch", "recipe=demo", "profile=local", "dry_run=true"]) == 0
    assert "these settings name no weights" in capsys.readouterr().out


def test_a_cache_whose_variable_is_not_set_is_not_made(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_SUCH", raising=False)
    assert launch.main(["stage=fetch", "recipe=lumen", "profile=local", "profile.cache=$NO_SUCH/weights"]) == 2
    assert "$NO_SUCH is not set in this shell" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_fetch_is_no_part_of_a_run(capsys: pytest.CaptureFixture):
    assert launch.main(["check", "stage=fetch", "profile=local"]) == 2
    assert "stage=fetch is no part of a run" in capsys.readouterr().err
    assert launch.main(["stage=fecth", "profile=local"]) == 2
    assert "did you mean fetch?" in capsys.readouterr().err
