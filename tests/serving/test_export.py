"""The flat layout: read back byte for byte, answered from alike, and free of paths and training texts."""

from __future__ import annotations

import json

import pytest
import torch

from lumen_hpc import nvila
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.config_files import read_config
from lumen_hpc.serving.export import export, require_clean


@pytest.fixture
def flat(folder, tmp_path):
    export(folder, tmp_path / "flat", "# A card\n")
    return tmp_path / "flat"


def test_weights_and_tokenizer_read_back_byte_equal(folder, flat, tmp_path):
    nvila.save(nvila.load(folder), tmp_path / "before")
    nvila.save(nvila.load(flat), tmp_path / "after")
    names = [path.relative_to(tmp_path / "before") for path in (tmp_path / "before").rglob("*") if path.is_file()]
    compared = [name for name in names if name.name not in ("config.json", "complete.json")]
    assert sum(name.suffix == ".safetensors" for name in compared) == 3
    for name in compared:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes(), name


def test_the_configuration_means_the_same(folder, flat):
    one, other = read_config(folder), read_config(flat)
    for key in ("aspect", "s2", "scales", "s2_output", "tiles", "select_layer", "projector", "mm_hidden_size"):
        assert getattr(one, key) == getattr(other, key), key
    for before, after in ((one.llm, other.llm), (one.vision_tower, other.vision_tower)):
        assert {key: after.get(key) for key in before if key != "_name_or_path"} == {
            key: value for key, value in before.items() if key != "_name_or_path"
        }


def test_names_and_shapes_are_those_that_sglang_loads(folder, flat):
    index = json.loads((flat / "model.safetensors.index.json").read_text())
    names = set(index["weight_map"])
    assert {name.split(".")[0] for name in names} == {"llm", "mm_projector", "vision_tower"}
    assert {"llm.model.embed_tokens.weight", "mm_projector.layers.1.weight", "mm_projector.layers.2.weight"} <= names
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
    total = sum(p.numel() * p.element_size() for p in nvila.load(folder).parameters())
    assert index["metadata"]["total_size"] == total


def test_loss_from_the_flat_folder_is_the_same(folder, flat, records):
    taught = [r | {"conversations": [*r["conversations"], {"from": "gpt", "value": "Nothing."}]} for r in records]
    one, other = nvila.load(folder), nvila.load(flat)
    with torch.no_grad():
        losses = [model(model.preprocess(taught, inline=True)).loss for model in (one, other)]
    assert torch.equal(*losses)


def test_an_existing_folder_and_a_flat_source_are_refused(folder, flat, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        export(folder, flat, "")
    with pytest.raises(UserError, match="no llm/ inside"):
        export(flat, tmp_path / "other", "")


def test_paths_and_training_texts_are_found(flat):
    files = sorted(flat.iterdir())
    require_clean(files, ["A sentence that only the training data has.", "Yes."])
    (flat / "README.md").write_text("Trained from /home/someone/runs/one.")
    with pytest.raises(UserError, match=r"README\.md holds a path of this machine: /home/someone/runs/one"):
        require_clean(files, [])
    (flat / "README.md").write_text("It says: A sentence that only the training data has. So.")
    with pytest.raises(UserError, match=r"README\.md holds a text of a training record \(43 characters\)"):
        require_clean(files, ["A sentence that only the training data has."])


@pytest.mark.parametrize("ascii", [True, False])
def test_a_training_text_is_found_as_json_writes_it(flat, ascii):
    prompt = 'main image: <image>\n"Größe" of the heart, compared to the reference?'
    (flat / "generation_config.json").write_text(json.dumps({"stop": prompt}, ensure_ascii=ascii))
    with pytest.raises(UserError, match=r"generation_config\.json holds a text of a training record"):
        require_clean(sorted(flat.iterdir()), [prompt])


@pytest.mark.parametrize("change", [str.upper, lambda text: text.replace(" ", "\n"), lambda text: f"> {text}  \n"])
def test_a_training_text_is_found_in_another_case_and_over_several_lines(flat, change):
    sentence = "A sentence that only the training data has."
    (flat / "README.md").write_text(change(sentence))
    with pytest.raises(UserError, match=r"README\.md holds a text of a training record"):
        require_clean(sorted(flat.iterdir()), [sentence])


def test_an_adapter_beside_the_merged_weights_does_not_travel(folders, tmp_path):
    import shutil

    source = tmp_path / "final"
    shutil.copytree(folders["resize"], source)
    (source / "adapter").mkdir()
    (source / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/someone/base"}')
    files = export(source, tmp_path / "flat", "")
    assert not any("adapter" in path.name for path in files)
    require_clean(files, [])


@pytest.mark.parametrize("kind", ["file", "link", "broken link", "folder"])
def test_nothing_that_is_there_is_written_over(folders, tmp_path, kind):
    target = tmp_path / "flat"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    {
        "file": target.touch,
        "link": lambda: target.symlink_to("elsewhere"),
        "broken link": lambda: target.symlink_to("nowhere"),
        "folder": target.mkdir,
    }[kind]()
    with pytest.raises(UserError, match="exists already; remove it or choose another folder"):
        export(folders["resize"], target, "")
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_what_a_killed_export_left_is_written_again(folders, tmp_path):
    (tmp_path / "flat.partial").mkdir()
    (tmp_path / "flat.partial" / "junk").touch()
    assert not any(path.name == "junk" for path in export(folders["resize"], tmp_path / "flat", ""))


def test_cut_weights_are_named(folders, tmp_path):
    import shutil

    source = tmp_path / "final"
    shutil.copytree(folders["resize"], source)
    (source / "complete.json").unlink(missing_ok=True)
    [file] = (source / "llm").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"llm/model\.safetensors is not a complete safetensors file"):
        export(source, tmp_path / "flat", "")
    assert not (tmp_path / "flat").exists()


def test_an_address_of_a_file_is_a_path_and_a_web_address_is_none(flat):
    (flat / "README.md").write_text("See https://example.org/home/someone and docs/serving.md.")
    require_clean(sorted(flat.iterdir()), [])
    (flat / "README.md").write_text("file:///home/someone/runs/one")
    with pytest.raises(UserError, match="holds a path of this machine"):
        require_clean(sorted(flat.iterdir()), [])


def test_paths_of_the_training_machine_do_not_travel(folders, tmp_path):
    import shutil

    source = tmp_path / "trained"
    shutil.copytree(folders["resize"], source)
    (source / "complete.json").unlink()
    root = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(root | {"resume_path": "/home/someone/base"}))
    require_clean(export(source, tmp_path / "flat", ""), [])
