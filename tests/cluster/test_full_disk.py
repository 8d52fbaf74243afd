"""The disk of the run's folder fills while tasks write: what is said, what is kept, and how it goes on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.slurm import Cluster
from tests.cluster.conftest import SHARDS, RunOnDisk, Site, assert_whole, submitted


@pytest.fixture
def on_small_disk(can_run_slurm: None, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run `filled` is a disk of its own, mounted before the nodes start: they see no later mounts."""
    runs = tmp_path_factory.mktemp("runs-on-disks")
    disk = runs / "filled"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)
    try:
        cluster = Cluster(tmp_path_factory.mktemp("full"), nodes=2).up()
        try:
            yield Site(checkout, cluster, runs)
        finally:
            cluster.down()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_fills_during_a_run_is_named_and_a_rerun_goes_on(
    on_small_disk: Site, undisturbed: RunOnDisk
) -> None:
    site = on_small_disk
    run = site.run("filled")
    hold = run.steer("hold-squares-5")
    site.submit("filled")
    # Each task writes its shards in turn (0, 4, 8; 1, 5, 9; …): squares-9 comes after squares-5.
    whole = {f"squares-{shard}" for shard in range(SHARDS)} - {"squares-5", "squares-9"}
    site.wait(lambda: whole <= set(run.done()), 180, "every other square to be done")
    site.wait(lambda: list(run.folder.glob("squares/*.tmp")), 60, "squares-5 to be half written")
    before, outputs = run.done(), run.outputs()
    filler = run.folder / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while stream.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
    hold.unlink()
    site.wait_until_left("filled")

    shown = site.launch("status", "run=filled", code=1)
    assert f"No space left on the file system {run.folder}" in shown, shown
    assert "finished shards and older checkpoints are safe" in shown
    assert outputs.items() <= run.outputs().items() and set(before) <= set(run.done()) and run.leftovers() == []
    output = site.launch("stage=full", "run=filled", code=2)
    assert f"{run.folder}: No space left on device" in output and "Traceback" not in output
    assert site.jobs("filled") == []

    filler.unlink()
    begun = run.begun()
    site.submit("filled")
    site.wait_until_left("filled")
    assert_whole(run, undisturbed)
    assert not set(before) & set(run.begun() - begun), "what was done before the disk was full"
    assert json.loads(site.launch("status", "run=filled", "json=true"))["steps"][-1]["state"] == "done"
    assert submitted(run)
