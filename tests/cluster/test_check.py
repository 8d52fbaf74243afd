"""`launch.py check` against the live cluster: what fits is confirmed, what does not is named with its fix."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sandbox.checkout import ROOT
from sandbox.slurm import Cluster


def check(cluster: Cluster, *words: str, recipe: str = "demo") -> tuple[int, str]:
    """Exit code and output of `check` in the project itself, with its own stages and its h100 profile."""
    command = [sys.executable, "launch.py", "check", "profile=h100", f"recipe={recipe}", "run=not-created", *words]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=300)
    assert cluster.queue() == []
    assert not (ROOT / "runs" / "not-created").exists()
    return done.returncode, done.stdout + done.stderr


def test_the_h100_profile_fits_a_cluster_of_h100_nodes(cluster: Cluster) -> None:
    code, output = check(cluster)
    assert code == 0, output
    assert "partition h100, 3 nodes with 4 GPUs" in output


@pytest.mark.parametrize(
    "word, found, fix",
    [
        ("profile.resources.gpu.partition=a100", "a100", "cpu, h100, preempt"),
        ("profile.resources.train.gpus=8", "gpus=8", "4 GPUs"),
        ("profile.resources.train.nodes=9", "nodes=9", "3 nodes"),
        ("profile.resources.gpu.time_min=100000", "time_min=100000", "1440"),
        ("profile.account=nobody", "nobody", "root"),
        ("profile.resources.judge.qos=gold", "gold", "normal"),
        ("profile.max_array_size=5000", "5000", "1001"),
    ],
    ids=lambda word: word.split("=")[0],
)
def test_what_does_not_fit_is_named_with_what_would(cluster: Cluster, word: str, found: str, fix: str) -> None:
    code, output = check(cluster, word)
    assert code == 2, output
    assert found in output and fix in output


@pytest.mark.parametrize(
    ("state", "code", "text"),
    [
        ("DOWN", 0, "partition preempt is DOWN: jobs queue and wait"),
        ("DRAIN", 2, "partition preempt is DRAIN: it takes no new jobs"),
        ("INACTIVE", 2, "partition preempt is INACTIVE: it takes no new jobs"),
    ],
)
def test_a_partition_that_is_closed_is_said_with_its_state(cluster: Cluster, state: str, code: int, text: str) -> None:
    cluster.run("scontrol", "update", "PartitionName=preempt", f"State={state}")
    try:
        found, output = check(cluster, "profile.resources.gpu.partition=preempt")
        tried = cluster.run("sbatch", "-p", "preempt", "--hold", "-o", "/dev/null", "--wrap", "true", check=False)
    finally:
        cluster.run("scontrol", "update", "PartitionName=preempt", "State=UP")
        cluster.run("scancel", "--user=root")
    assert (found, text in output) == (code, True), output
    assert (tried.returncode != 0) == (code == 2), "as Slurm does"


def test_a_partition_whose_nodes_are_all_drained_is_said(cluster: Cluster) -> None:
    cluster.run("scontrol", "update", "nodename=ALL", "state=drain", "reason=maintenance")
    try:
        code, output = check(cluster)
    finally:
        cluster.run("scontrol", "update", "nodename=ALL", "state=resume")
    assert code == 0 and "all 3 nodes of partition h100 are down, drained or reserved" in output, output


def test_a_smoke_run_fits_a_site_as_it_is(cluster: Cluster) -> None:
    code, output = check(cluster, recipe="smoke")
    assert code == 0, output
    command = [sys.executable, "launch.py", "stage=full", "profile=h100", "recipe=smoke", "dry_run=true"]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "h100 profile: would submit to Slurm, 14 steps, phantoms" in done.stdout
    assert "1 x 1 GPU, 30 min" in done.stdout and "4 GPU" not in done.stdout and "refused" not in done.stdout
    assert cluster.queue() == []
