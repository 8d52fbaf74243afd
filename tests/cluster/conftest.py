"""The real cluster of these tests, and a checkout whose jobs/ is a small chain of stages that control files steer.

Where no cluster can run, the tests are skipped with the reason; LUMEN_REQUIRE_SLURM=1 (.ci/run) makes that a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lumen_hpc.config.request import VERB_SETTINGS
from sandbox.checkout import make
from sandbox.slurm import Cluster, ClusterError, why_not

SHARDS = 12
PATIENCE = 3
"""Times the seconds that a quiet machine needs, before a wait fails: two cores may be slow, and do other things."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        here = Path(__file__).parent
        if here in item.path.parents and here / "offline" not in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def can_run_slurm() -> None:
    if reason := why_not():
        if os.environ.get("LUMEN_REQUIRE_SLURM") == "1":
            pytest.fail(f"LUMEN_REQUIRE_SLURM=1, but {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(can_run_slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, with accounting."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm")).up()
    yield cluster
    cluster.down()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose jobs/ is tests/cluster/chain, with a profile for the test cluster."""
    return make(tmp_path_factory.mktemp("checkout"), jobs=Path(__file__).parent / "chain")


@dataclass
class Site:
    """What a user has on a login node: a checkout, a cluster, and the command line."""

    checkout: Path
    cluster: Cluster
    runs: Path
    prefix: tuple[str, ...] = ()
    """Words before the command, as `srun` when started from within an allocation."""

    def launch(self, *words: str, code: int = 0) -> str:
        """`python launch.py …`; the test fails unless it exits with `code`. Returns what it printed."""
        command = [*self.prefix, sys.executable, "launch.py", *words, "profile=test", f"runs={self.runs}"]
        if not set(VERB_SETTINGS) & set(words):
            command.append(f"experts.shards={SHARDS}")
        done = subprocess.run(
            command, cwd=self.checkout, env=self.cluster.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, f"{' '.join(words)} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, run: str, *words: str, stage: str = "full") -> str:
        return self.launch(f"stage={stage}", f"run={run}", *words)

    def run(self, name: str) -> RunOnDisk:
        return RunOnDisk(self.runs / name, self.runs / f"control-{name}")

    def wait(self, reached: Callable[[], object], seconds: float, what: str) -> None:
        """Waits for what a quiet machine reaches within `seconds`."""
        self.cluster.wait(reached, PATIENCE * seconds, what)

    def jobs(self, run: str) -> list[tuple[str, str, str, str]]:
        """The run's jobs in the queue: (id, name, state, reason)."""
        return [job for job in self.cluster.queue() if job[1].startswith(f"{run}.")]

    def wait_until_left(self, run: str, seconds: float = 180) -> None:
        """Wait until no job of the run is left in the queue, running or waiting.

        180 seconds, PATIENCE times, end before pytest's limit for a test, which would not say which jobs are left.
        """
        try:
            self.wait(lambda: not self.jobs(run), seconds, f"the jobs of run {run} to end")
        except ClusterError as error:
            raise ClusterError(f"still there: {self.jobs(run)}\n{error}") from None

    def running(self, run: str, step: str) -> list[str]:
        """Ids of the step's running tasks."""
        return [id_ for id_, name, state, _ in self.jobs(run) if name == f"{run}.{step}" and state == "RUNNING"]

    def accounted(self, run: RunOnDisk, jobs: Iterable[str], *fields: str) -> list[list[str]]:
        """These fields of jobs that have left the queue, a row a task, once all of them are on record as ended.

        Accounting gets to know of tasks in no order: those that were cancelled before one that began. An array's tasks
        that never began may have one row or none.
        """
        ids, rows = set(jobs), []
        begun = {task for task in run.tasks_begun() if task.split("_")[0] in ids}

        def ended() -> bool:
            words = ("sacct", "-n", "-P", "-X", "-j", ",".join(ids), "-o", ",".join(("JobID", "State", "End", *fields)))
            rows[:] = [line.split("|") for line in self.cluster.run(*words).stdout.splitlines()]
            found = {id_ for id_, *_ in rows}
            on_record = begun <= found and ids <= {id_.split("_")[0] for id_ in found}
            return on_record and all(
                end != "Unknown" and state not in ("PENDING", "RUNNING") for _, state, end, *_ in rows
            )

        self.wait(ended, 120, "accounting, which follows a loaded cluster late")
        return [row[3:] for row in rows]


@dataclass
class RunOnDisk:
    """A run's folder, and the folder from which the test steers its stages."""

    folder: Path
    control: Path

    def steer(self, name: str, text: str = "") -> Path:
        """Write a control file (tests/cluster/chain/witness.py)."""
        self.control.mkdir(parents=True, exist_ok=True)
        file = self.control / name
        file.write_text(text)
        return file

    def reported(self, event: str, what: str = "") -> list[tuple[str, str, int]]:
        """(stage-shard, node, pid) of every begin or end so far, in order."""
        if not (self.control / "computed.txt").exists():
            return []
        lines = [line.split() for line in (self.control / "computed.txt").read_text().splitlines()]
        found = [(f"{stage}-{shard}", node, int(pid)) for seen, stage, shard, node, pid in lines if seen == event]
        return [entry for entry in found if entry[0].startswith(what)]

    def ends(self) -> Counter[str]:
        """How often each shard was computed to its end."""
        return Counter(what for what, _, _ in self.reported("end"))

    def begun(self) -> Counter[str]:
        return Counter(what for what, _, _ in self.reported("begin"))

    def outputs(self) -> dict[str, bytes]:
        """Every shard's bytes by path."""
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.glob("*/shard-*.jsonl")}

    def done(self) -> Counter[str]:
        """How often each shard got into its manifest."""
        return Counter(
            f"{path.parent.name}-{json.loads(line)['shard']}"
            for path in self.folder.glob("*/manifest.jsonl")
            for line in path.read_text().splitlines()
        )

    def events(self, step: str) -> list[str]:
        """What became of the step's attempts: began, done, failed, interrupted, stuck."""
        path = self.folder / step / "attempts.jsonl"
        return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []

    def tasks_begun(self) -> set[str]:
        """Slurm's ids of the tasks that had work, as 7 or 7_1."""
        rows = [json.loads(line) for path in self.folder.glob("*/attempts.jsonl") for line in path.open()]
        return {row["job"] for row in rows if row["event"] == "began"}

    def leftovers(self) -> list[Path]:
        """Half-written files."""
        return list(self.folder.rglob("*.tmp"))


def submitted(run: RunOnDisk) -> list[dict]:
    """Every job of the run's submissions."""
    return [job for plan in run.folder.glob("submissions/*/plan.json") for job in json.loads(plan.read_text())["jobs"]]


ALL = {"numbers-0", "total-0", *(f"{step}-{k}" for step in ("squares", "checks") for k in range(SHARDS))}


@pytest.fixture(scope="session")
def site(checkout: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(checkout, cluster, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def undisturbed(site: Site) -> RunOnDisk:
    """A run in which nothing goes wrong: what every other run must equal byte for byte."""
    site.submit("undisturbed")
    site.wait_until_left("undisturbed")
    return site.run("undisturbed")


@pytest.fixture
def healthy_nodes(cluster: Cluster) -> Iterator[None]:
    """Bring back, afterwards, the nodes that a test killed."""
    yield
    for node, state in cluster.node_states().items():
        if not cluster.alive(node) or state.startswith(("down", "drain")):
            cluster.start_node(node)


def assert_whole(run: RunOnDisk, undisturbed: RunOnDisk, again: Counter[str] | None = None) -> None:
    """All outputs are there and byte-identical, and nothing that was done was computed again but what is in `again`.

    Done means in the manifest: a shard that was killed between its last row and its line is computed again, rightly.
    """
    assert run.outputs() == undisturbed.outputs()
    assert run.leftovers() == []
    assert run.done() == Counter(ALL) + (again or Counter())


@pytest.fixture(autouse=True)
def calm(request: pytest.FixtureRequest) -> Iterator[None]:
    """No job outlives its test, so that one failing test does not spoil the next."""
    yield
    if "cluster" in request.fixturenames:
        clear(request.getfixturevalue("cluster"))


def clear(cluster: Cluster) -> None:
    """End every job in the queue."""
    if left := cluster.queue():
        cluster.run("scancel", *{id_.split("_")[0] for id_, *_ in left}, check=False)
        cluster.wait(lambda: not cluster.queue(), 120, "the jobs that a test left to end")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """The runs that a failing test made are set aside: another try finds none of them, and a person all."""
    sites = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Site)]
    before = {site.runs: set(site.runs.glob("*")) for site in sites}
    try:
        return (yield)
    except BaseException:
        for site in sites:
            clear(site.cluster)
            aside = site.runs.with_name(f"{site.runs.name}-failed-{time.monotonic_ns()}")
            for path in sorted(set(site.runs.glob("*")) - before[site.runs]):
                aside.mkdir(exist_ok=True)
                path.rename(aside / path.name)
        raise
