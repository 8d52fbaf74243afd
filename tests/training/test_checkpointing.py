"""Checkpoints that are whole or not there."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import random
import shutil
import threading

import numpy as np
import pytest
import torch

from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.training import checkpointing
from lumen_hpc.training.checkpointing import Checkpoints, newest_checkpoint
from lumen_hpc.training.folder import MARKER

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def kept(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", Ranks(), keep=2)


def save(checkpoints, step, weights=None):
    """Stages one tensor in place of DeepSpeed's files."""

    def stage(folder):
        (folder / "deepspeed").mkdir()
        value = torch.full((1000,), float(step)) if weights is None else weights
        checkpoints.writer.save({"weights": value}, str(folder / "deepspeed" / "weights.pt"))

    return checkpoints.save(step, {"samples": 8 * step}, stage)


def read(checkpoint):
    return torch.load(checkpoint.folder / "deepspeed" / "weights.pt")["weights"]


def test_the_newest_whole_checkpoint_is_found_and_old_ones_are_pruned(kept, tmp_path):
    for step in (3, 6, 9):
        save(kept, step)
    kept.finish()
    found = kept.latest()
    assert (found.step, found.state, float(read(found)[0])) == (9, {"samples": 72}, 9.0)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000006", "step-000009"]


def corrupt(folder, how):
    file = folder / "deepspeed" / "weights.pt"
    if how == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "one bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "file missing":
        file.unlink()
    elif how == "a folder for a file":
        file.unlink()
        file.mkdir()
    elif how == "no marker":
        (folder / MARKER).unlink()
    elif how == "a folder for the marker":
        (folder / MARKER).unlink()
        (folder / MARKER).mkdir()
    elif how == "another step":  # '6' and '2' are one bit apart
        (folder / MARKER).write_text((folder / MARKER).read_text().replace('"step": 6', '"step": 2'))
    else:
        (folder / MARKER).write_text({"no object": "[1]", "broken marker": '{"step": 6'}[how])


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut short", "weights.pt has"),
        ("one bit", "SHA-256 differs"),
        ("file missing", "weights.pt is missing"),
        ("a folder for a file", "weights.pt has"),
        ("no marker", "it is incomplete"),
        ("a folder for the marker", "marker cannot be read"),
        ("broken marker", "marker cannot be read"),
        ("no object", "marker cannot be read"),
        ("another step", "marker was changed"),
    ],
)
def test_a_corrupt_one_is_skipped_with_the_reason_and_can_be_written_again(kept, tmp_path, caplog, how, reason):
    save(kept, 3)
    save(kept, 6)
    kept.finish()
    corrupt(tmp_path / "checkpoints" / "step-000006", how)
    with caplog.at_level(logging.WARNING):
        assert kept.latest().step == 3
    assert reason in caplog.text and "step-000006" in caplog.text
    save(kept, 6)
    kept.finish()
    assert kept.latest().step == 6


def test_a_checkpoint_with_a_bad_block_is_skipped(kept, caplog, monkeypatch):
    for step in (3, 6):
        save(kept, step)
    kept.finish()
    real = checkpointing.sha256

    def sha256(path):
        if "step-000006" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(checkpointing, "sha256", sha256)
    assert kept.latest().step == 3
    assert "cannot be read ([Errno 5] Input/output error)" in caplog.text


def test_a_file_with_the_name_of_a_checkpoint_is_none(kept, tmp_path):
    save(kept, 3)
    kept.finish()
    for name in ("step-000009", ".step-000009"):
        (tmp_path / "checkpoints" / name).touch()
    again = Checkpoints(tmp_path / "checkpoints", Ranks(), keep=2)
    assert again.latest().step == 3


@pytest.mark.parametrize("how", ["chmod", "chown", "link"])
def test_files_that_others_may_have_written_stop_the_start_instead_of_beginning_again(kept, tmp_path, how):
    if how == "chown" and os.getuid():
        pytest.skip("only root can give a file away")
    save(kept, 3)
    kept.finish()
    file = tmp_path / "checkpoints" / "step-000003" / "deepspeed" / "weights.pt"
    if how == "chmod":
        file.chmod(0o666)
    elif how == "chown":
        os.chown(file, 12345, -1)
    else:
        file.symlink_to(file.rename(tmp_path / "elsewhere.pt"))
    with pytest.raises(UserError, match=r"step-000003 is not read: weights.pt .*fix: .*chmod"):
        kept.latest()


def test_training_goes_on_while_it_writes_and_what_is_written_is_the_moment_of_saving(kept, tmp_path, monkeypatch):
    may_write = threading.Event()
    real = torch.save

    def slow(*args, **kwargs):
        assert may_write.wait(30)
        real(*args, **kwargs)

    monkeypatch.setattr(checkpointing.torch, "save", slow)
    weights = torch.ones(10)
    save(kept, 3, weights)
    weights.add_(1)  # the next step, while the files are not even begun
    assert not (tmp_path / "checkpoints" / "step-000003").exists()
    may_write.set()
    kept.finish()
    assert torch.equal(read(kept.latest()), torch.ones(10))


@pytest.mark.parametrize("room", [0, 1000])
def test_a_write_that_fails_is_told_with_the_last_good_one_and_leaves_nothing(kept, tmp_path, monkeypatch, room):
    save(kept, 3)
    kept.finish()

    class FullDisk(io.BytesIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    real = checkpointing._HashingFile.__init__

    def init(self, path):
        real(self, path)
        self._file = FullDisk()

    monkeypatch.setattr(checkpointing._HashingFile, "__init__", init)
    save(kept, 6)
    with pytest.raises(UserError, match=r"No space left on device.*step-000003"):
        kept.finish()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]


def test_what_a_killed_writer_left_is_swept(kept, tmp_path):
    left = tmp_path / "checkpoints" / ".step-000009"
    left.mkdir()
    (left / "half").write_text("")
    again = Checkpoints(tmp_path / "checkpoints", Ranks(), keep=2)
    assert again.latest() is None and not left.exists()


def test_what_a_killed_rank_began_to_remove_is_removed_by_the_next_save(kept, tmp_path):
    for step in (3, 6):
        save(kept, step)
    kept.finish()
    (tmp_path / "checkpoints" / "step-000003" / MARKER).unlink()
    save(kept, 9)
    kept.finish()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000006", "step-000009"]


def test_a_removal_that_is_killed_is_completed_by_the_next_start(kept, tmp_path, monkeypatch):
    for step in (3, 6):
        save(kept, step)
    kept.finish()
    real = shutil.rmtree

    def killed(path, *args, **kwargs):
        if path.name.endswith("step-000003"):
            (path / "deepspeed" / "weights.pt").unlink()
            raise SystemExit
        real(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        save(kept, 9)
        kept._thread.join()
    again = Checkpoints(tmp_path / "checkpoints", Ranks(), keep=2)
    assert again.latest().step == 9
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000006", "step-000009"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_later_checkpoint_that_was_skipped_does_not_replace_a_good_one(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path / "checkpoints", Ranks(), keep=keep)
    for step in (6, 9):
        save(checkpoints, step)
        checkpoints.finish()
        shutil.copytree(tmp_path / "checkpoints" / f"step-{step:06d}", tmp_path / f"{step}", dirs_exist_ok=True)
    shutil.copytree(tmp_path / "6", tmp_path / "checkpoints" / "step-000006", dirs_exist_ok=True)
    corrupt(tmp_path / "checkpoints" / "step-000009", "one bit")
    again = Checkpoints(tmp_path / "checkpoints", Ranks(), keep=keep)
    assert again.latest().step == 6
    save(again, 7)  # a stop between two regular checkpoints
    again.finish()
    assert again.latest().step == 7


def test_random_generators_go_on_where_they_were(kept):
    save(kept, 3)
    drawn = random.random(), np.random.random(), float(torch.rand(()))
    kept.finish()
    kept.rng(kept.latest())
    assert (random.random(), np.random.random(), float(torch.rand(()))) == drawn


def test_rotation_leaves_every_folder_that_is_not_step_and_digits(kept, tmp_path):
    folder = tmp_path / "checkpoints"
    save(kept, 3)
    kept.finish()
    own = folder / "step-000003-backup"
    shutil.copytree(folder / "step-000003", own)
    for step in (6, 9, 12):
        save(kept, step)
    kept.finish()
    assert (own / MARKER).is_file() and not (folder / "step-000003").exists()
    assert kept.latest().step == 12 and newest_checkpoint(folder).name == "step-000012"


def test_a_checkpoint_of_which_a_rank_could_not_write_its_part_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path, Ranks(world_size=2), keep=2)
    staging = tmp_path / ".step-000003"
    staging.mkdir()
    for rank, part in enumerate(({"a": [1, "digest"]}, {})):
        (staging / f"rank-{rank:05d}.json").write_text(json.dumps(part))
    checkpoints._complete(staging, {})
    assert newest_checkpoint(tmp_path) is None and not (staging / MARKER).exists()


def test_a_rank_that_fails_soon_stops_waiting_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "GRACE_S", 0.0)
    checkpoints = Checkpoints(tmp_path, Ranks(world_size=2), keep=2)
    save(checkpoints, 3)
    checkpoints.abandon()
    with pytest.raises(UserError, match="rank-00001 did not write their part in time"):
        checkpoints.finish()


def test_the_newest_checkpoint_is_that_of_the_largest_step(tmp_path):
    for step in ("999999", "1000000"):
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / MARKER).touch()
    assert newest_checkpoint(tmp_path).name == "step-1000000"
