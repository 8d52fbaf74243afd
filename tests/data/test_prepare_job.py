"""Stage prepare on phantoms: other phantoms in the same run are drawn anew, and every change reaches later stages."""

from __future__ import annotations

from pathlib import Path

from jobs import prepare as job
from lumen_hpc.cluster.stage import Run, Shard, Step, Task
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Settings


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
