"""What is set aside when a training of other settings begins."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import safetensors.torch

from lumen_hpc import nvila
from lumen_hpc.config.schema import Train
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.training.folder import RESULTS, fingerprint_of, finished_steps, set_aside


def _kill_after(renames, patched):
    """Interrupts this process when it renames once more than so many times."""
    real, left = Path.rename, [renames]

    def rename(path, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(path, target)

    patched.setattr(Path, "rename", rename)


@pytest.mark.parametrize("renames", range(len(RESULTS)))
def test_a_start_that_is_killed_while_it_sets_aside_is_gone_on_with(tmp_path, monkeypatch, renames):
    for name in RESULTS:
        (tmp_path / name).write_text("theirs")
    (tmp_path / "training.json").write_text('{"seed": 0}')
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        _kill_after(renames, patched)
        set_aside(tmp_path, {"seed": 1})
    set_aside(tmp_path, {"seed": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "training.json"]
    assert json.loads((tmp_path / "training.json").read_text()) == {"seed": 1}
    assert sorted(path.name for path in tmp_path.glob("earlier/*/*")) == sorted(RESULTS)


def test_an_earlier_training_that_was_removed_leaves_its_number_free(tmp_path):
    (tmp_path / "earlier" / "001").mkdir(parents=True)
    (tmp_path / "training.json").write_text('{"seed": 0}')
    set_aside(tmp_path, {"seed": 1})
    assert (tmp_path / "earlier" / "002" / "training.json").is_file()


@pytest.mark.parametrize("renames", [*range(5), len(RESULTS)])
def test_a_training_that_was_set_aside_goes_on_with_its_settings_though_a_start_is_killed(
    tmp_path, monkeypatch, renames
):
    ours = {"seed": 0, "train.tune": ["projector", "llm"], "train.adapter": {"targets": ["q_proj", "fc1"]}}
    in_another_order = {"seed": 0, "train.tune": ["llm", "projector"], "train.adapter": {"targets": ["fc1", "q_proj"]}}
    set_aside(tmp_path, ours)
    for name in ("checkpoints", "metrics.jsonl", "final"):
        (tmp_path / name).write_text("ours")
    set_aside(tmp_path, {"seed": 1})
    (tmp_path / "record_index.npz").write_text("theirs")
    with monkeypatch.context() as patched, nullcontext() if renames > 5 else pytest.raises(KeyboardInterrupt):
        _kill_after(renames, patched)
        set_aside(tmp_path, in_another_order)
    set_aside(tmp_path, in_another_order)
    assert {path.name for path in tmp_path.iterdir()} == {
        "training.json", "checkpoints", "metrics.jsonl", "final", "earlier"
    }  # fmt: skip
    assert [path.read_text() for path in tmp_path.glob("earlier/*/record_index.npz")] == ["theirs"]


def test_what_is_in_the_folder_is_not_replaced_by_what_was_set_aside(tmp_path):
    set_aside(tmp_path, {"seed": 0})
    (tmp_path / "metrics.jsonl").write_text("old")
    set_aside(tmp_path, {"seed": 1})
    (tmp_path / "metrics.jsonl").write_text("new")
    (tmp_path / "training.json").unlink()  # as a message advises where it is broken
    set_aside(tmp_path, {"seed": 0})
    assert (tmp_path / "metrics.jsonl").read_text() == "new"


@pytest.mark.parametrize("content", ["", '{"seed": 1', "[]", "null"])
def test_a_broken_fingerprint_is_named_and_sets_nothing_aside(tmp_path, content):
    (tmp_path / "training.json").write_text(content)
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"training\.json holds no JSON object .* remove it"):
        set_aside(tmp_path, {"seed": 1})
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("content", ["{}", "[]", '{"fingerprint": {}}', '{"step', '{"fingerprint": {}, "step": null}'])
def test_a_summary_that_lacks_something_is_of_no_finished_training(tmp_path, content):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "complete.json").touch()
    (tmp_path / "finished.json").write_text(content)
    assert finished_steps(tmp_path, {}) == 0
    (tmp_path / "finished.json").write_text('{"fingerprint": {}, "step": 4}')
    assert finished_steps(tmp_path, {}) == 4
    assert finished_steps(tmp_path, {"seed": 1}) == 0
    (tmp_path / "final" / "complete.json").unlink()
    assert finished_steps(tmp_path, {}) == 0


def other_last_bias(file: bytes) -> bytes:
    """A safetensors file of the same size with other values in one tensor, as after a training of a part."""
    tensors = safetensors.torch.load(file)
    name = max(name for name in tensors if name.endswith("v_proj.bias"))
    return safetensors.torch.save(tensors | {name: tensors[name] + 1}, metadata={"format": "pt"})


def test_the_fingerprint_is_of_what_determines_the_result_alone(tmp_path):
    base = nvila.save(make_tiny(["is there edema?"]), tmp_path / "base")
    copy = shutil.copytree(base, tmp_path / "copy")
    fingerprint = fingerprint_of(Train(), "hash", base, 0)
    harmless = Train(base=str(copy), workers=9, checkpoint_every=7, loss_limit=0.0)
    assert fingerprint_of(harmless, "hash", copy, 0) == fingerprint
    others = [
        fingerprint_of(Train(learning_rate=1.0), "hash", base, 0),
        fingerprint_of(Train(), "other", base, 0),
        fingerprint_of(Train(), "hash", base, 1),
    ]
    for name, change in (("llm/config.json", lambda text: text + b" "), ("llm/model.safetensors", other_last_bias)):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(change(content))
        others.append(fingerprint_of(Train(), "hash", copy, 0))
        (copy / name).write_bytes(content)
    (copy / "config.json").write_bytes((copy / "config.json").read_bytes().replace(b"\n", b" ", 1))
    others.append(fingerprint_of(Train(), "hash", copy, 0))  # of the same size
    assert fingerprint not in others
