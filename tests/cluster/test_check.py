"""`launch.py check` against the live cluster: what fits is confirmed, what does not is named with its fix."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sandbox.checkout import ROOT
from sandbox.slurm import Cluster


def check(cluster: Cluster, *words: str) -> tuple[int, str]:
    """Exit code and output of `check` in the project itself, with its own stages and its h100 profile."""
    command = [sys.executable, "launch.py", "check", "profile=h100", "recipe=demo", "run=not-created", *words]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=60)
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


def test_a_smoke_run_fits_a_site_as_it_is(cluster: Cluster) -> None:
    code, output = check(cluster, "recipe=smoke")
    assert code == 0, output
    command = [sys.executable, "launch.py", "stage=full", "profile=h100", "recipe=smoke", "dry_run=true"]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "h100 profile: would submit to Slurm, 14 steps, phantoms" in done.stdout
    assert "1 x 1 GPU, 30 min" in done.stdout and "4 GPU" not in done.stdout and "refused" not in done.stdout
    assert cluster.queue() == []
