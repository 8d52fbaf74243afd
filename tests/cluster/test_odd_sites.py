"""Paths, options, limits and users that are unlike the usual, on a real Slurm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.slurm import Cluster
from tests.cluster.conftest import RunOnDisk, Site, assert_whole, submitted

ON_HOLD = "hold: 'true'"
"""No job starts: what Slurm took of the request is at stake."""


def test_a_path_with_spaces_quotes_and_unicode_in_a_poor_shell(
    site: Site, cluster: Cluster, undisturbed: RunOnDisk, tmp_path: Path
) -> None:
    poor = copy(cluster)
    poor.environment = cluster.environment | {
        "LC_ALL": "C", "HOME": "/no/such/home", "TMPDIR": "/no/such/tmp", "SHELL": "/usr/bin/fish",
        "BASH_ENV": "/no/such/file",
    }  # fmt: skip
    elsewhere = replace(site, cluster=poor, runs=tmp_path / "a run's é #1 (x) & more")
    elsewhere.submit("odd")
    elsewhere.wait_until_left("odd")
    assert_whole(elsewhere.run("odd"), undisturbed)
    assert "done" in elsewhere.launch("status", "run=odd")
    assert "squares" in elsewhere.launch("logs", "run=odd")


def shown(cluster: Cluster, job: str) -> str:
    return cluster.run("scontrol", "show", "job", job).stdout


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("gres: 'gpu:h100:1'", "gpu:h100:1"),
        ("mem-per-gpu: 2G", "MinMemory"),
        ("--mem_per_cpu: 2G", "MinMemoryCPU=2G"),
        ("comment: 'it''s #1: a \"b\"'", 'Comment=it\'s #1: a "b"'),
        ("mem: false", "MinMemoryCPU=100M"),
        ("exclusive: user", "OverSubscribe=USER"),
        ("time: 0-00:07:00", "TimeLimit=00:07:00"),
        ("export: NONE", "JobState=PENDING"),
    ],
    ids=lambda value: value.split(":")[0],
)
def test_slurm_takes_a_further_option_in_every_spelling(
    site: Site, cluster: Cluster, option: str, expected: str
) -> None:
    run = "option-" + "".join(letter for letter in option.split(":")[0] if letter.isalpha())
    site.submit(run, f"profile.additional={{{ON_HOLD}, {option}}}")
    first = next(job for job in submitted(site.run(run)) if job["step"] == "squares")
    assert expected in shown(cluster, first["id"])


def test_one_kind_of_jobs_has_options_of_its_own(site: Site, cluster: Cluster) -> None:
    """GPUs of a type, in different numbers, and a reservation of nodes that the other jobs do not use."""
    reservation = ("reservationname=ours", "starttime=now", "duration=60", "users=root", "nodes=n1")
    cluster.run("scontrol", "create", "reservation", *reservation)
    try:
        site.submit(
            "kinds", f"profile.additional={{{ON_HOLD}}}",
            "profile.resources.gpu.additional={gres: 'gpu:h100:2', reservation: ours}",
            "profile.resources.judge.additional.gres=gpu:h100:3",
        )  # fmt: skip
        jobs = submitted(site.run("kinds"))
        squares, checks, total, gate = (
            shown(cluster, next(job["id"] for job in jobs if job["step"] == step and bool(job.get("gate")) is gate))
            for step, gate in (("squares", False), ("checks", False), ("total", False), ("squares", True))
        )
        assert "gres:gpu:h100:2" in squares and "Reservation=ours" in squares
        assert "gres:gpu:h100:3" in checks and "gres:gpu:4" in total
        assert not any("Reservation=ours" in text for text in (checks, total, gate))
    finally:
        site.launch("cancel", "run=kinds")
        cluster.run("scontrol", "delete", "reservationname=ours")


def test_a_job_without_the_shells_environment_does_its_work(site: Site, undisturbed: RunOnDisk) -> None:
    site.submit("bare-environment", "profile.additional={export: NONE}")
    site.wait_until_left("bare-environment")
    assert_whole(site.run("bare-environment"), undisturbed)


@pytest.fixture
def few_jobs(cluster: Cluster) -> Iterator[None]:
    """The user may have five jobs in the queue; an array counts once a task."""
    limit = ("sacctmgr", "-i", "modify", "user", "root", "set")
    cluster.run(*limit, "MaxSubmitJobs=5")
    yield
    cluster.run(*limit, "MaxSubmitJobs=-1")


def test_a_limit_on_submitted_jobs_is_refused_with_what_would_do(site: Site, few_jobs: None) -> None:
    output = site.launch("stage=full", "run=too-many", code=2)
    assert "job submit limit" in output and "nothing was submitted" in output
    assert "fewer tasks (profile.resources.KIND.tasks) or successors" in output, output
    assert site.jobs("too-many") == [] and not site.run("too-many").folder.exists()


def test_a_sweep_that_meets_the_limit_says_what_became_of_each_run(
    site: Site, cluster: Cluster, few_jobs: None
) -> None:
    cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=40")
    output = site.launch("stage=full", "run=sweep", "seed=[1,2,3]", f"profile.additional={{{ON_HOLD}}}", code=2)
    assert "lumen: run sweep-seed-2: Slurm refused" in output, output
    assert "sweep-seed-1: submitted or finished before" in output and "sweep-seed-3: not begun" in output, output
    assert site.jobs("sweep-seed-1") and not site.jobs("sweep-seed-2")


def test_a_submitter_whose_account_is_gone_hides_nobody_elses_jobs(site: Site) -> None:
    site.submit("departed", f"profile.additional={{{ON_HOLD}}}")
    (plan,) = site.run("departed").folder.glob("submissions/*/plan.json")
    (plan.parent.parent / "0000").mkdir()
    record = json.loads(plan.read_text())
    (plan.parent.parent / "0000" / "plan.json").write_text(
        json.dumps(record | {"user": 54321, "packs": {}, "jobs": []})
    )
    before = site.jobs("departed")
    assert "nothing to submit" in site.submit("departed", f"profile.additional={{{ON_HOLD}}}")
    assert site.jobs("departed") == before
