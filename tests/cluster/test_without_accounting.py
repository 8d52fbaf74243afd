"""A site without slurmdbd, and with arrays of at most three: no sacct to ask, and the live MaxArraySize to respect."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.slurm import Cluster
from tests.cluster.conftest import RunOnDisk, Site, assert_whole


@pytest.fixture(scope="module")
def bare_site(can_run_slurm: None, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    cluster = Cluster(tmp_path_factory.mktemp("bare"), nodes=2, accounting=False, max_array_size=3).up()
    yield Site(checkout, cluster, tmp_path_factory.mktemp("bare-runs"))
    cluster.down()


def test_a_killed_tasks_work_is_done_and_arrays_are_split(bare_site: Site, undisturbed: RunOnDisk) -> None:
    assert bare_site.cluster.run("sacct", check=False).returncode != 0
    run = bare_site.run("bare")
    hold = run.steer("hold-squares-5")
    bare_site.submit("bare")
    bare_site.wait(lambda: "squares-5" in run.begun(), 180, "squares-5 to begin")
    pid = next(pid for what, _, pid in run.reported("begin") if what == "squares-5")
    assert {int(id_.split("_")[1]) for id_, *_ in bare_site.jobs("bare") if "_" in id_} <= {0, 1, 2}
    assert "running" in bare_site.launch("status", "run=bare")
    os.kill(pid, signal.SIGKILL)
    hold.unlink()
    bare_site.wait_until_left("bare")
    assert_whole(run, undisturbed)
    bare_site.launch("status", "run=bare")
