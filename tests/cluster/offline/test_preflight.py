"""The profile against what Slurm says of the cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import jobs
from lumen_hpc.cluster import commands, preflight, slurm
from lumen_hpc.cluster.stage import Pipeline, Stage
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.request import Request
from lumen_hpc.errors import UserError


@pytest.mark.parametrize(
    ("state", "counts", "level", "text"),
    [
        ("down", "0/3/0/3", "warn", "partition h100 is DOWN: jobs queue and wait"),
        ("drain", "0/3/0/3", "bad", "partition h100 is DRAIN: it takes no new jobs"),
        ("inact", "0/3/0/3", "bad", "partition h100 is INACTIVE: it takes no new jobs"),
        ("up", "0/0/3/3", "warn", "all 3 nodes of partition h100 are down, drained or reserved"),
    ],
)
def test_a_partition_that_is_closed_is_said_with_its_state(
    fake: Path, request_here: Request, monkeypatch: pytest.MonkeyPatch, state: str, counts: str, level: str, text: str
):
    monkeypatch.setenv("STATE", state)
    monkeypatch.setenv("COUNTS", counts)
    monkeypatch.setenv("ACCOUNTS", "us")
    found = [result for result in preflight.check_cluster(request_here.profile) if text in result.message]
    assert {result.level for result in found} == {level} and found[0].message.startswith("profile.resources.")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"partition": "nowhere"}, "partition=nowhere: not on this cluster; fix: one of cpu, h100"),
        ({"partition": "h100,nowhere"}, "partition=h100,nowhere: not on this cluster"),
        ({"time_min": 2000}, "time_min=2000 in partition h100; fix: its limit is 1440 min"),
        ({"cpus": 97}, "cpus=97 x 1 in partition h100; fix: 96 cores a node"),
        ({"mem_gb": 2000}, "mem_gb=2000 in partition h100; fix: 976 GB a node"),
    ],
)
def test_what_the_cluster_can_never_give_is_refused_before_anything_is_there(
    fake: Path, request_here: Request, stages: list[Stage], change: dict, why: str
):
    """Slurm takes a time limit over the partition's, and never starts the job."""
    gpu = request_here.profile.resources["gpu"]
    request_here.profile.resources["gpu"] = dataclasses.replace(gpu, **change)
    with pytest.raises(UserError, match="step answer-a cannot run on this cluster") as caught:
        commands.submit(request_here, Pipeline(tuple(stages), jobs.run_pack))
    assert why in str(caught.value)
    assert not request_here.folder.exists() and list(fake.glob("script-*")) == []


def test_an_array_beyond_the_clusters_limit_is_refused_by_a_dry_run_too(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, capsys
):
    """Slurm refused it in the middle of the chain, as `Invalid job array specification`."""
    pipeline, message = Pipeline(tuple(stages), jobs.run_pack), "profile.max_array_size=1000: this cluster allows 3"
    monkeypatch.setenv("ARRAY", "3")
    with pytest.raises(UserError, match=message):
        commands.submit(request_here, pipeline)
    assert not request_here.folder.exists() and list(fake.glob("script-*")) == []
    request_here.dry_run = True
    for limit, is_refused in (("3", True), ("4", False)):  # arrays of four tasks
        slurm.settings.cache_clear()
        monkeypatch.setenv("ARRAY", limit)
        commands.submit(request_here, pipeline)
        assert (f"a submission would be refused: {message}" in capsys.readouterr().out) == is_refused


def test_what_the_site_may_decide_is_left_to_slurm(fake: Path, request_here: Request):
    profile = request_here.profile
    gpu = profile.resources["gpu"]
    gpu.time_min, gpu.qos = 2000, "long"
    assert list(preflight.unfit_resources(profile, ["gpu"])) == [], "a qos may lift a partition's limit"
    gpu.cpus = 97
    assert [kind for kind, _ in preflight.unfit_resources(profile, ["gpu"])] == ["gpu"]
    profile.additional = {"cpus_per_task": "8"}
    assert list(preflight.unfit_resources(profile, ["gpu"])) == []
    profile.additional, gpu.partition = {}, ""
    assert list(preflight.unfit_resources(profile, ["gpu"])) == [], (
        "the site chooses a partition by account, qos or features"
    )


def test_a_site_without_accounting_for_this_user_is_not_a_traceback(fake: Path):
    assert list(preflight._accounting(Profile()))
