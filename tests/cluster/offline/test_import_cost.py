"""The packages' place on a shared file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumen_hpc.cluster import import_cost
from lumen_hpc.config.profile import Container, Profile, Resources


@pytest.fixture
def packages(tmp_path) -> Path:
    for number in range(5):
        (tmp_path / "packages" / f"module{number}.py").parent.mkdir(exist_ok=True)
        (tmp_path / "packages" / f"module{number}.py").write_text("")
    return tmp_path / "packages"


def mounted(tmp_path: Path, kind: str) -> Path:
    table = tmp_path / "mounts"
    table.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/home {tmp_path} {kind} rw 0 0\nproc /proc proc rw 0 0\n")
    return table


def test_a_slow_shared_file_system_is_warned_about_for_all_ranks(packages, tmp_path, monkeypatch):
    profile = Profile()
    profile.resources["train"] = Resources(nodes=16, gpus=4)
    clock = iter([0.0, 5 * 0.002])
    monkeypatch.setattr(import_cost.time, "perf_counter", lambda: next(clock))
    (found,) = import_cost.check(profile, packages, mounted(tmp_path, "lustre"))
    assert found.level == "warn" and "640,000 files" in found.message and "2.00 ms" in found.message
    assert "docs/sites.md" in found.fix


def test_a_quick_one_is_fine_and_a_local_one_or_a_container_is_not_measured(packages, tmp_path):
    profile = Profile()
    profile.resources["train"] = Resources(nodes=1, gpus=1)
    (found,) = import_cost.check(profile, packages, mounted(tmp_path, "nfs4"))
    assert found.level == "ok"
    assert not list(import_cost.check(profile, packages, mounted(tmp_path, "xfs")))
    profile.container = Container(kind="apptainer", image="x.sif")
    assert not list(import_cost.check(profile, packages, mounted(tmp_path, "nfs4")))


def test_the_longest_mount_point_counts(tmp_path):
    assert import_cost.file_system(tmp_path, mounted(tmp_path, "beegfs")) == "beegfs"
    assert import_cost.file_system(Path("/elsewhere"), mounted(tmp_path, "beegfs")) == "ext4"
    assert import_cost.file_system(tmp_path, tmp_path / "none") == ""
