"""One mishap in every kind of stage: a cpu job, an array on GPUs, judging that follows it shard by shard, a job of two
nodes. Each goes on, `status` says so in between, and the run equals an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.slurm import Cluster
from tests.cluster.conftest import SHARDS, RunOnDisk, Site, assert_whole
from tests.cluster.test_mishaps import where

HELD = ("numbers-0", "squares-5", "checks-5", "total-0")
"""A shard of each stage of the chain, in order; their resources are cpu, gpu, judge and train."""
PREEMPTIBLE = tuple(f"profile.resources.{kind}.partition=preempt" for kind in ("cpu", "gpu", "judge", "train"))


def held(site: Site, run: RunOnDisk, what: str, times: int = 1) -> None:
    """Wait until a shard has begun so often and is half written."""
    stage = what.split("-")[0]
    processes = 2 if what == "total-0" else 1
    site.wait(lambda: run.begun()[what] == times * processes, 240, f"{what} to begin, time {times}")
    site.wait(lambda: list(run.folder.glob(f"{stage}/*.tmp")), 60, f"{what} to be half written")


def assert_goes_on(site: Site, run: RunOnDisk, what: str) -> None:
    """`status` counts what is done, and calls the disturbed step neither done nor failed."""
    step = what.split("-")[0]
    output = site.launch("status", f"run={run.folder.name}", "json=true")
    shown = {row["step"]: row for row in json.loads(output)["steps"]}
    assert shown[step]["state"] in ("running", "queued"), shown[step]
    assert shown[step]["done"] < shown[step]["shards"], shown[step]
    for earlier in HELD[: HELD.index(what)]:
        name = earlier.split("-")[0]
        assert shown[name]["done"] == shown[name]["shards"] or name == "squares", shown


def lose_node(site: Site, run: RunOnDisk, what: str) -> None:
    node, _ = where(run, what)
    site.cluster.kill_node(node)
    site.cluster.declare_dead(node)
    held(site, run, what, 2)
    assert where(run, what)[0] != node or what == "total-0"
    site.cluster.start_node(node)


def preempt(site: Site, run: RunOnDisk, what: str) -> None:
    """Others take all nodes; the held shard does not end within the grace time, and is killed."""
    words = ("-p", "h100", "-N3", "--exclusive", "-o", "/dev/null")
    site.cluster.run("scontrol", "update", "PartitionName=preempt", "GraceTime=5")
    try:
        intruder = site.cluster.run("sbatch", "--parsable", *words, "--wrap", "sleep 3").stdout.strip()
        running = lambda: any(job[0] == intruder and job[2] == "RUNNING" for job in site.cluster.queue())  # noqa: E731
        site.wait(running, 120, "the intruder")
    finally:
        site.cluster.run("scontrol", "update", "PartitionName=preempt", "GraceTime=60")
    assert_goes_on(site, run, what)
    held(site, run, what, 2)


def cancel_task(site: Site, run: RunOnDisk, what: str) -> None:
    for task in site.running(run.folder.name, what.split("-")[0]):
        site.cluster.run("scancel", task)
    held(site, run, what, 2)


@pytest.mark.parametrize(
    ("disturb", "words"),
    [(lose_node, ()), (preempt, PREEMPTIBLE), (cancel_task, ())],
    ids=["node death", "preemption", "scancel of a task"],
)
def test_every_kind_of_stage_goes_on_after(
    site: Site, undisturbed: RunOnDisk, healthy_nodes: None, tmp_path: Path, disturb, words: tuple[str, ...]
) -> None:
    run = site.run(tmp_path.name)
    for what in HELD:
        run.steer(f"hold-{what}")
    site.submit(run.folder.name, *words)
    for what in HELD:
        held(site, run, what)
        disturb(site, run, what)
        assert_goes_on(site, run, what)
        (run.control / f"hold-{what}").unlink()
    site.wait_until_left(run.folder.name)
    assert_whole(run, undisturbed)


def test_an_administrators_requeue_loses_and_doubles_nothing(
    site: Site, cluster: Cluster, undisturbed: RunOnDisk
) -> None:
    run = site.run("by-admin")
    for what in HELD:
        run.steer(f"hold-{what}")
    site.submit("by-admin", "profile.requeue=true")
    for what in HELD:
        held(site, run, what)
        tasks = site.running("by-admin", what.split("-")[0])
        for task in tasks:
            cluster.run("scontrol", "requeue", task)
        pending = lambda: {id_ for id_, _, state, _ in site.jobs("by-admin") if state == "PENDING"}  # noqa: E731
        site.wait(lambda: set(tasks) <= pending(), 60, f"{what} to be back in the queue")  # noqa: B023
        assert_goes_on(site, run, what)
        for task in tasks:  # Slurm itself waits two minutes, counted from the end of the task
            cluster.run("scontrol", "update", f"JobId={task}", "StartTime=now+5")
        held(site, run, what, 2)
        assert_goes_on(site, run, what)
        (run.control / f"hold-{what}").unlink()
    site.wait_until_left("by-admin")
    assert_whole(run, undisturbed)
    assert len(run.begun()) == 2 + 2 * SHARDS
