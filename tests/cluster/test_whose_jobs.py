"""Which jobs in the queue are a run's, and what may be counted on: of runs removed, copied, cancelled, or half gone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.slurm import Cluster
from tests.cluster.conftest import RunOnDisk, Site, assert_whole, submitted
from tests.cluster.test_at_once import ON_HOLD, assert_once
from tests.cluster.test_mishaps import begin_and_hold, release


def test_a_removed_runs_jobs_do_not_work_on_a_new_run_of_its_name(site: Site, tmp_path: Path) -> None:
    site.submit("removed", ON_HOLD)
    before = {id_ for id_, *_ in site.jobs("removed")}
    shutil.rmtree(site.run("removed").folder)
    (tmp_path / "link").symlink_to(site.runs)
    output = replace(site, runs=tmp_path / "link").submit("removed", ON_HOLD)
    assert "or are on no record" in output, output
    assert_once(site, "removed")
    assert not before & {id_ for id_, *_ in site.jobs("removed")}


@pytest.mark.parametrize("name", ["copy", "original"], ids=["another name", "another place"])
def test_a_copy_of_a_run_leaves_the_originals_jobs_alone(site: Site, tmp_path: Path, name: str) -> None:
    site.submit("original", ON_HOLD)
    before = site.jobs("original")
    there = replace(site, runs=site.runs if name == "copy" else tmp_path)
    shutil.copytree(site.run("original").folder, there.run(name).folder)
    assert "cancelled 0 job(s)" in there.launch("cancel", f"run={name}")
    there.submit(name, ON_HOLD)
    there.launch("cancel", f"run={name}")
    site.wait(lambda: site.jobs("original") == before, 60, "the jobs of the copy alone to go")
    assert "nothing to submit" in site.submit("original", ON_HOLD)
    site.launch("cancel", "run=original")


def test_a_run_that_is_cancelled_and_submitted_again_at_once_ends_whole(
    site: Site, cluster: Cluster, undisturbed: RunOnDisk
) -> None:
    """What is ending is no work to count on, and no job to wait for by afterok."""
    run = begin_and_hold(site, "at-once-again", "squares-5")
    site.launch("cancel", "run=at-once-again")
    assert "which is ending" in site.submit("at-once-again")
    release(run)
    site.wait_until_left("at-once-again")
    assert_whole(run, undisturbed)


def test_where_only_a_running_job_is_left_its_readers_wait_for_it(
    site: Site, cluster: Cluster, undisturbed: RunOnDisk
) -> None:
    """As after `scancel --state=PENDING --me`: its gate and its successors are gone."""
    run = begin_and_hold(site, "half-gone", "numbers-0")
    cluster.run("scancel", "--state=PENDING", "--user=root")
    site.wait(lambda: len(site.jobs("half-gone")) == 1, 60, "all but one to go")
    ((running, *_),) = site.jobs("half-gone")
    site.submit("half-gone")
    assert any(["afterok", running] in job["after"] for job in submitted(run) if job["step"] == "squares")
    release(run)
    site.wait_until_left("half-gone")
    assert_whole(run, undisturbed)


FAILS_IN_GATES = "profile.setup=['case $SLURM_JOB_NAME in *.gate) false;; esac']"


def test_a_run_that_stands_still_because_a_gate_failed_says_so(site: Site, cluster: Cluster) -> None:
    site.submit("no-gates", FAILS_IN_GATES)
    site.wait_until_left("no-gates")
    said = "a job ended before its work began: the gate of numbers failed: lumen: a line of the setup failed"
    site.wait(lambda: said in site.launch("status", "run=no-gates", code=1), 60, "Slurm's account of it")
    assert "numbers/logs/" in site.launch("logs", "run=no-gates").partition("\n")[0], "the gate's log is shown"


def test_a_run_whose_jobs_were_cancelled_before_they_began_says_so(site: Site, cluster: Cluster) -> None:
    run = begin_and_hold(site, "gate-gone", "checks-0")
    (gate,) = [id_ for id_, name, *_ in site.jobs("gate-gone") if name == "gate-gone.checks.gate"]
    cluster.run("scancel", gate)
    release(run)
    site.wait_until_left("gate-gone")
    said = "a job ended before its work began: it was cancelled, or the gate that it waited for was"
    site.wait(lambda: said in site.launch("status", "run=gate-gone", code=1), 60, "Slurm's account of it")
    assert "fix: the same command goes on" in site.launch("status", "run=gate-gone", code=1)
