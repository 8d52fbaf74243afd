"""What a second, ordinary user of the cluster sees of a run, and cannot do to it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lumen_hpc.config.request import VERB_SETTINGS
from sandbox import neighbour
from sandbox.checkout import make
from sandbox.slurm import Cluster
from tests.cluster.conftest import SHARDS, Site

ON_HOLD = "profile.additional={hold: 'true'}"
"""No job starts: the queue alone is at stake."""


@dataclass
class Neighbour:
    """The second user at the same command line."""

    site: Site

    def launch(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "launch.py", *words, "profile=test", f"runs={self.site.runs}"]
        command += [f"experts.shards={SHARDS}"] if not set(VERB_SETTINGS) & set(words) else []
        done = neighbour.run(*command, folder=self.site.checkout, environment=self.site.cluster.environment)
        assert done.returncode == code, f"{' '.join(words)} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def sees(self, *command: str) -> str:
        return neighbour.run(*command, folder=Path("/"), environment=self.site.cluster.environment).stdout


@pytest.fixture(scope="module")
def shared(can_run_slurm: None) -> Iterator[Site]:
    """A cluster, a checkout and runs in folders that every user may enter; no accounting, so that all may submit."""
    with neighbour.account(), tempfile.TemporaryDirectory(prefix="lumen-users-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "runs").mkdir()
        (folder / "runs").chmod(0o1777)
        cluster = Cluster(folder / "slurm", accounting=False).up()
        try:
            yield Site(make(folder / "checkout", jobs=Path(__file__).parent / "chain"), cluster, folder / "runs")
        finally:
            cluster.down()


@pytest.fixture
def second(shared: Site) -> Iterator[Neighbour]:
    yield Neighbour(shared)
    if left := shared.cluster.queue():
        shared.cluster.run("scancel", *{id_.split("_")[0] for id_, *_ in left}, check=False)


def ids(site: Site, run: str) -> list[str]:
    return sorted(id_ for id_, *_ in site.jobs(run))


def test_a_private_run_is_one_line_that_names_its_owner(shared: Site, second: Neighbour) -> None:
    shared.submit("mine", ON_HOLD)
    before = ids(shared, "mine")
    for words in (["status"], ["logs"], ["cancel"], ["stage=full", ON_HOLD]):
        output = second.launch(*words, "run=mine", code=2)
        assert "belongs to root, and you may not read it" in output
        assert len(output.strip().splitlines()) == 1
    (shared.runs / "mine").chmod(0o700)
    assert f"{shared.runs / 'mine'}: belongs to root" in second.launch("status", "run=mine", code=2)
    shared.runs.chmod(0o700)
    try:
        assert f"{shared.runs}: belongs to root" in second.launch("status", "run=mine", code=2)
    finally:
        shared.runs.chmod(0o1777)
    assert ids(shared, "mine") == before


def test_a_run_that_was_opened_to_all_is_neither_submitted_twice_nor_cancelled(shared: Site, second: Neighbour) -> None:
    shared.submit("opened", ON_HOLD)
    before = ids(shared, "opened")
    subprocess.run(["chmod", "-R", "a+rwX", shared.runs / "opened"], check=True)
    status = json.loads(second.launch("status", "run=opened", "json=true"))
    assert status["owner"] == "root" and status["steps"][0]["queued"] == 1
    assert "the jobs of this run are root's" in second.launch("status", "run=opened")
    output = second.launch("stage=full", "run=opened", ON_HOLD, code=2)
    assert "root has jobs" in output and "only their owner" in output
    output = second.launch("cancel", "run=opened", code=1)
    assert "cancelled 0 job(s)" in output and "not cancelled, still in the queue" in output
    assert ids(shared, "opened") == before


HIDDEN = [ON_HOLD, *(f"profile.resources.{kind}.partition=private" for kind in ("cpu", "gpu", "judge", "train"))]


def test_a_hidden_partition_is_seen_by_an_ordinary_user(shared: Site, second: Neighbour) -> None:
    second.launch("stage=full", "run=hidden", *HIDDEN)
    before = ids(shared, "hidden")
    assert before and second.sees("squeue", "-h") == "" and "private" not in second.sees("sinfo", "-h"), "not hidden"
    status = json.loads(second.launch("status", "run=hidden", "json=true"))
    assert status["steps"][0]["queued"] == 1
    assert "nothing to submit" in second.launch("stage=full", "run=hidden", *HIDDEN)
    assert ids(shared, "hidden") == before
    checked = second.launch("check", "run=hidden", *HIDDEN)
    assert "partition private" in checked
    jobs = {id_.split("_")[0] for id_ in before}
    assert f"cancelled {len(jobs)} job(s)" in second.launch("cancel", "run=hidden")
    shared.wait(lambda: not shared.jobs("hidden"), 120, "the jobs of run hidden to go")
