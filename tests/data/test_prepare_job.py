"""Stage prepare on phantoms: other phantoms in the same run are drawn anew, and every change reaches later stages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jobs import prepare as job
from lumen_hpc.cluster.stage import Run, Shard, Step, Task
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Settings
from tests.data.small_dataset import Dataset

ROOT = Path(__file__).parents[2]


def rows(tmp_path: Path, seed: int = 0, size: int = 64) -> list[dict]:
    settings = Settings(seed=seed)
    settings.data.phantom.patients, settings.data.phantom.test_fraction, settings.data.phantom.size = 6, 0.4, size
    task = Task(Run(tmp_path, settings, Profile()), Step(job.STAGE))
    return list(job.work(task)(Shard(0, 1)))


def test_changed_phantoms_run_again_and_change_what_later_stages_see(tmp_path: Path) -> None:
    first = rows(tmp_path)
    assert rows(tmp_path) == first
    larger = rows(tmp_path, size=96)
    assert larger != first, "pictures differ even where the tables do not"
    assert rows(tmp_path, seed=1) != larger
    assert rows(tmp_path) == first


def test_a_run_on_this_machine_tells_on_the_console_what_was_read(tmp_path: Path) -> None:
    data = Dataset(tmp_path).write().data
    words = [f"data.mimic_cxr={data.mimic_cxr}", f"data.diff_vqa={data.diff_vqa}", f"runs={tmp_path / 'runs'}", "run=a"]
    command = [sys.executable, ROOT / "launch.py", "stage=prepare", "profile=local", "data=mimic", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (
        "  11 questions read: 8 kept, 3 left out, 0 rejected\n  left out: 3 another study of a test patient\n"
        "  7 images: 7 jpg, the median 8 x 8 px\n"
    ) in done.stdout
    assert "warning" not in done.stdout
    assert "submitit" not in done.stdout
    for folder in (data.mimic_cxr, data.diff_vqa):
        for table in Path(folder).glob("*.csv*"):
            os.utime(table, (1, 1))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "questions read" not in again.stdout, "the same tables at another time"


def test_after_bad_images_it_says_how_repaired_ones_are_read(tmp_path: Path, capsys) -> None:
    dataset = Dataset(tmp_path).write()
    settings = Settings(data=dataset.data)
    settings.prepare.on_bad, settings.prepare.max_bad = "skip", 0.5
    task = Task(Run(tmp_path / "run", settings, Profile()), Step(job.STAGE))
    for broken in (False, True):
        if broken:
            dataset.image(50000011).write_bytes(b"")
        list(job.work(task)(Shard(0, 1)))
        assert (f"remove {task.folder} and run the stage again" in capsys.readouterr().out) is broken


@pytest.mark.parametrize("images", ["read", "header", "exist"])
def test_a_replaced_image_changes_what_later_stages_see(tmp_path: Path, images: str) -> None:
    dataset = Dataset(tmp_path).write()
    settings = Settings(data=dataset.data)
    settings.prepare.images = images
    task = Task(Run(tmp_path / "run", settings, Profile()), Step(job.STAGE))
    before = list(job.work(task)(Shard(0, 1)))
    assert list(job.work(task)(Shard(0, 1))) == before
    Image.effect_noise((8, 8), 50).save(dataset.image(50000011))
    assert list(job.work(task)(Shard(0, 1))) != before, "the studies and questions are the same"
