"""Attacks on staged weights: a file replaced, added or removed after stage=fetch recorded them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from jobs import predict, train
from lumen_hpc import weights
from lumen_hpc.cluster import fetch
from lumen_hpc.cluster.engines import with_local_model
from lumen_hpc.cluster.stage import Run, Shard, Step, Task
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import EngineSettings, Experts, Settings
from lumen_hpc.errors import UserError
from lumen_hpc.experts import xrv_weights
from lumen_hpc.files import sha256, write_json
from lumen_hpc.weights import NOTE, note, verify

NAME = "org/model"


@pytest.fixture
def model(tmp_path) -> Path:
    """A staged model of two files, as recorded."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    write_json(tmp_path / NOTE, {NAME: {"revision": "a1", **note(folder)}})
    return folder


def test_what_was_fetched_is_verified_without_reading_it_again(model, monkeypatch):
    monkeypatch.setattr(weights, "sha256", lambda path: pytest.fail(f"{path} was read"))
    assert verify(model, model.parent) == model


def test_a_copy_with_other_times_is_hashed_and_accepted(model):
    os.utime(model / "model.safetensors", (1, 1))
    verify(model, model.parent)


def replaced(folder: Path) -> None:
    written = (folder / "model.safetensors").stat().st_mtime_ns
    (folder / "model.safetensors").write_bytes(b"WEIGHTS" * 1000)
    os.utime(folder / "model.safetensors", ns=(written, written + 10_000_000))  # a file system's clock moves in steps


def added(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def removed(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("attack", "reason"),
    [(replaced, "has another SHA-256"), (added, "index.json was not fetched"), (removed, "config.json is missing")],
)
def test_changed_weights_are_not_loaded(model, attack, reason):
    attack(model)
    with pytest.raises(UserError, match=reason):
        verify(model, model.parent)
    run = Run(model.parent / "run", Settings(), Profile(cache=str(model.parent)))
    with pytest.raises(UserError, match=reason):
        with_local_model(EngineSettings(kind="vllm", model=NAME), Task(run=run, step=Step(None)))


def test_the_stages_that_load_nvila_verify_it_first(model, tmp_path):
    replaced(model)
    settings = Settings()
    settings.train.base = NAME
    run = Run(tmp_path / "run", settings, Profile(cache=str(model.parent)))
    (run.folder / "instruct").mkdir(parents=True)
    (run.folder / "instruct" / "lumen-test.jsonl").write_text("")
    with pytest.raises(UserError, match="has another SHA-256"):
        predict.work(Task(run=run, step=Step(predict.STAGE, "nvila")))
    with pytest.raises(UserError, match="has another SHA-256"):
        next(train.work(Task(run=run, step=Step(train.STAGE, "ft")))(Shard(0, 1)))


def test_weights_that_were_copied_by_hand_are_recorded_by_fetch(tmp_path, monkeypatch):
    import huggingface_hub

    def offline():
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "HfApi", offline)
    settings = Settings()
    settings.train.base = NAME
    settings.experts.model = "phantom"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert fetch.fetch(settings, tmp_path, Console(file=io.StringIO())) == 0
    assert json.loads((tmp_path / NOTE).read_text())[NAME]["revision"] == "unknown"
    added(tmp_path / "model")
    with pytest.raises(UserError, match="was not fetched"):
        verify(tmp_path / "model", tmp_path)


def test_a_folder_of_the_users_own_is_not_held_to_the_record(model, tmp_path):
    own = tmp_path / "elsewhere" / "model"
    own.mkdir(parents=True)
    assert verify(own, model.parent) == own


EXPERT = "densenet121-res224-all"


@pytest.fixture
def expert(tmp_path) -> Path:
    """The file of an expert whose hash is published, with other content: an attacker's, or a torn download's."""
    file = tmp_path / xrv_weights.url(EXPERT).rsplit("/", 1)[-1]
    file.write_bytes(b"another pickle")
    return file


def test_an_expert_is_not_loaded_unless_its_hash_is_the_published_one(expert, monkeypatch):
    """Though `fetched.json`, which whoever exchanged the file can write too, records it."""
    write_json(expert.parent / xrv_weights.HASHES_FILE, {expert.name: sha256(expert)})
    with pytest.raises(UserError, match="is not the published file, whose SHA-256 is 56524913"):
        xrv_weights.path(EXPERT, expert.parent, trust=False)
    assert xrv_weights.path(EXPERT, expert.parent, trust=True) == expert
    monkeypatch.setitem(xrv_weights.PUBLISHED, expert.name, sha256(expert))
    (expert.parent / xrv_weights.HASHES_FILE).unlink()
    assert xrv_weights.path(EXPERT, expert.parent, trust=False) == expert


@pytest.mark.parametrize("origin", ["download", "copy"])
def test_another_file_in_the_place_of_a_published_one_is_put_aside_by_fetch(expert, monkeypatch, origin):
    import torchxrayvision

    if origin == "download":
        content = expert.read_bytes()
        expert.unlink()
        monkeypatch.setattr(torchxrayvision.utils, "download", lambda url, path: Path(path).write_bytes(content))
    settings, messages = Experts(extra=[], pathologies=[EXPERT]), []
    assert xrv_weights.fetch(settings, expert.parent, messages.append) == [f"{xrv_weights.url(EXPERT)} to {expert}"]
    assert not expert.exists() and expert.with_name(f"{expert.name}.unknown").exists()
    assert not (expert.parent / xrv_weights.HASHES_FILE).exists() and "has another SHA-256" in messages[-1]


def test_a_published_file_that_was_copied_by_hand_needs_no_trust(expert, monkeypatch):
    monkeypatch.setitem(xrv_weights.PUBLISHED, expert.name, sha256(expert))
    assert xrv_weights.fetch(Experts(extra=[], pathologies=[EXPERT]), expert.parent, pytest.fail) == []
    assert json.loads((expert.parent / xrv_weights.HASHES_FILE).read_text()) == {expert.name: sha256(expert)}


def test_what_is_published_are_files_of_the_library():
    import torchxrayvision

    files = {entry["weights_url"].rsplit("/", 1)[-1] for entry in torchxrayvision.models.model_urls.values()}
    assert set(xrv_weights.PUBLISHED) < files
    assert len({*xrv_weights.PUBLISHED.values()}) == len(xrv_weights.PUBLISHED) == 4
