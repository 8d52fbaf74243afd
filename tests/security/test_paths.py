"""Attacks through names in files: identifiers and links that lead out of the folders of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lumen_hpc import analysis
from lumen_hpc.cluster import preflight
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.tensors import INDEX
from tests.data.small_dataset import METADATA, STUDIES, Dataset

NAMES = ["../../../secret", "/etc/passwd", "a/b", "..", ".", "a\\b", "a b", "a\x1b[2J", "", "x" * 65]


@pytest.mark.parametrize("name", NAMES)
def test_a_dicom_id_that_is_not_a_plain_name_is_rejected(tmp_path, name):
    dataset = Dataset(tmp_path)
    dataset.tables[METADATA][1][0] = name
    with pytest.raises(UserError, match=r"row 1 \(line 2\)") as caught:
        dataset.write().run()
    assert "secret" not in str(caught.value) and "passwd" not in str(caught.value)


def test_a_dicom_id_of_the_dataset_becomes_a_path(tmp_path):
    dataset = Dataset(tmp_path)
    dataset.tables[METADATA][1][0] = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"
    with pytest.raises(UserError, match=r"image missing: \S+/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014\.jpg"):
        dataset.write().run()


def test_an_image_that_is_a_link_out_of_its_tree_is_refused(tmp_path):
    dataset = Dataset(tmp_path / "data").write()
    study = STUDIES[0][1]
    image = dataset.image(study)
    outside, annex = tmp_path / "outside.jpg", tmp_path / "data" / "mimic-cxr-jpg" / ".git" / "annex"
    image.rename(outside)
    image.symlink_to(outside)
    with pytest.raises(UserError, match="leads out of"):
        dataset.run(images="exist")
    annex.mkdir(parents=True)
    for folder in (image.parent, annex):
        image.unlink()
        outside = outside.rename(folder / "inside.jpg")
        image.symlink_to(outside)
        assert dataset.run(images="exist")["rejected"]["rows_by_kind"] == {}


@pytest.mark.parametrize("name", ["run[12]", "run*", "run?", "it's"])
def test_a_runs_frames_are_read_from_its_own_files_whatever_its_folder_is_called(tmp_path, name):
    """`run[12]` also matches its neighbour `run1`."""
    for folder in ("run1", "runx", name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(json.dumps({"of": folder}) + "\n")
    assert list(analysis._read([tmp_path / name / "rows.jsonl"], {"of": "VARCHAR"})["of"]) == [name]


@pytest.fixture
def gate(tmp_path):
    """(findings of the gate for settings, folder that may hold restricted data, folder that may not)."""
    allowed, elsewhere = tmp_path / "allowed", tmp_path / "elsewhere"
    for folder in (allowed, elsewhere):
        (folder / "mimic" / "files").mkdir(parents=True)

    def findings(**data: Path) -> list[str]:
        words = [f"data.{key}={value}" for key, value in data.items()]
        request = resolve(
            ["stage=full", "data=mimic", f"runs={allowed}", f"profile.data_use.folders=[{allowed}]", *words]
        )
        return [result.message for result in preflight.data_use(request.settings, request.profile, request.folder)]

    return findings, allowed, elsewhere


@pytest.mark.parametrize("key", ["mimic_cxr", "mimic_cxr_dicom", "diff_vqa", "mimic_iv"])
def test_every_data_folder_is_held_to_the_allowed_folders(gate, key):
    findings, allowed, elsewhere = gate
    assert findings(**{key: allowed / "mimic"}) == []
    (message,) = findings(**{key: elsewhere / "mimic"})
    assert str(elsewhere) in message
    (message,) = findings(**{key: allowed / ".." / "elsewhere" / "mimic"})
    assert str(elsewhere) in message


def test_a_link_inside_a_data_folder_is_followed_by_the_gate(gate):
    findings, allowed, elsewhere = gate
    (allowed / "mimic" / "files" / "p10").symlink_to(elsewhere)
    (message,) = findings(mimic_cxr=allowed / "mimic")
    assert f"leads to {elsewhere}" in message


def test_a_weights_index_cannot_name_files_elsewhere(tmp_path):
    from lumen_hpc import nvila
    from lumen_hpc.nvila.tiny import make_tiny

    nvila.save(make_tiny(["is there edema?"]), tmp_path / "model")
    (tmp_path / "model" / "complete.json").unlink()
    part = next((tmp_path / "model" / "llm").parent.rglob("*.safetensors")).parent
    (part / INDEX).write_text(json.dumps({"weight_map": {"a": "../../outside.safetensors"}}))
    with pytest.raises(UserError, match="does not lie beside it"):
        nvila.load(tmp_path / "model")
