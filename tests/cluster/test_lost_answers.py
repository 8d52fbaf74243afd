"""Answers that come late, or not at all, on a real Slurm; and whose failure is whose."""

from __future__ import annotations

import subprocess
import sys
import time
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from lumen_hpc.cluster import slurm
from sandbox.slurm import Cluster
from tests.cluster.conftest import SHARDS, RunOnDisk, Site, assert_whole, submitted

ON_HOLD = "profile.additional={hold: 'true'}"
"""No job starts: the queue alone is at stake."""


def test_watch_outlasts_a_controller_that_stalls_for_40_seconds(site: Site, cluster: Cluster, tmp_path: Path) -> None:
    site.submit("stalled", ON_HOLD)
    words = ["status", "watch=true", "run=stalled", "profile=test", f"runs={site.runs}"]
    output = tmp_path / "output"
    with output.open("wb") as stream:
        watch = subprocess.Popen(
            [sys.executable, "launch.py", *words], cwd=site.checkout, env=cluster.environment,
            stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        site.wait(lambda: "queued" in output.read_text(), 60, "the first table")
        with cluster.stalled():
            time.sleep(40)
            assert watch.poll() is None, output.read_text()
            text = output.read_text()
            assert "trying again" in text or "waiting for squeue" in text, text
        site.launch("cancel", "run=stalled")
        assert watch.wait(60) in (0, 1)
    finally:
        watch.kill()
    assert "Traceback" not in output.read_text()


NO_ANSWER = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
LOSES_THE_THIRD_ANSWER = """\
#!/bin/sh
echo x >> {folder}/calls
[ $(wc -l < {folder}/calls) = 3 ] || exec /usr/bin/env PATH={path} sbatch "$@"
PATH={path} sbatch "$@" > {folder}/answer
echo "{no_answer}" >&2
exit 1
"""


def test_a_job_that_slurm_took_while_sbatch_says_it_timed_out_does_not_stay(
    site: Site, cluster: Cluster, tmp_path: Path
) -> None:
    path = cluster.environment["PATH"]
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "sbatch"
    tool.write_text(LOSES_THE_THIRD_ANSWER.format(folder=tmp_path, path=path, no_answer=NO_ANSWER))
    tool.chmod(0o755)
    forgetful = copy(cluster)
    forgetful.environment = cluster.environment | {"PATH": f"{tmp_path / 'bin'}:{path}"}
    output = replace(site, cluster=forgetful).launch("stage=full", "run=ghost", ON_HOLD, code=2)
    assert "Submitted batch job" in (tmp_path / "answer").read_text(), "it was accepted"
    assert "Socket timed out" in output and "nothing was submitted" in output
    site.wait(lambda: not site.jobs("ghost"), 120, "the ghost to go")
    assert not site.run("ghost").folder.exists()


TAKEN_LATE = """\
#!/bin/sh
cp "$1" {folder}/script
(while [ ! -e {folder}/go ]; do sleep 0.1; done; PATH={path} sbatch {folder}/script) > {folder}/answer 2>&1 &
echo "{no_answer}" >&2
exit 1
"""


def test_a_job_that_slurm_took_after_the_command_had_given_up_does_no_shard_twice(
    site: Site, cluster: Cluster, tmp_path: Path, undisturbed: RunOnDisk
) -> None:
    """It arrives when the same command was given again, under the name of whose submission it runs."""
    run, path = site.run("late"), cluster.environment["PATH"]
    site.submit("late", stage="numbers")
    site.wait_until_left("late")
    hold = run.steer("hold-squares-0")
    tool = tmp_path / "sbatch"
    tool.write_text(TAKEN_LATE.format(folder=tmp_path, path=path, no_answer=NO_ANSWER))
    tool.chmod(0o755)
    impatient = copy(cluster)
    impatient.environment = cluster.environment | {"PATH": f"{tmp_path}:{path}"}
    output = replace(site, cluster=impatient).launch("stage=full", "run=late", code=2)
    assert "nothing was submitted; a job that Slurm took all the same does no work" in output
    site.submit("late")
    (tmp_path / "go").touch()
    site.wait(lambda: len(site.running("late", "squares")) >= 5, 60, "the late job beside the new one's last task")
    assert "on no record" in site.submit("late")
    hold.unlink()
    site.wait_until_left("late")
    assert_whole(run, undisturbed)
    assert run.begun() == run.ends(), "each shard once"


def test_jobs_that_have_ended_are_no_reason_to_ask_the_controller_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a gate cancels are links of which one has ended, and often all: each gate would wait six seconds."""
    held = ("sbatch", "--parsable", "--hold", "-p", "cpu", "--mem=1", "-o", "/dev/null", "--wrap", "true")
    ended, waiting = (cluster.run(*held).stdout.strip() for _ in range(2))
    cluster.run("scancel", ended)
    asked, ask = [], slurm.ask
    monkeypatch.setattr(slurm, "ask", lambda *words, **options: asked.append(words) or ask(*words, **options))
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    for ids in ([ended, waiting], [ended, waiting], [ended]):
        assert slurm.cancel_pending(ids)
        assert waiting not in {id_ for id_, *_ in cluster.queue()}
    assert len(asked) == 3, asked


def test_wrong_input_of_one_pack_ends_no_other_packs_successor(site: Site, cluster: Cluster) -> None:
    run = site.run("one-wrong")
    run.steer("wrong-squares-0")
    hold, early = run.steer("hold-squares-5"), run.steer("hold-squares-0")
    site.submit("one-wrong")
    early.unlink()  # a pack that ends before the submission does knows no successors yet
    site.wait(lambda: "failed" in run.events("squares") and "squares-5" in run.begun(), 180, "both packs")
    for task in site.running("one-wrong", "squares"):
        cluster.run("scancel", task)
    site.wait(lambda: run.begun()["squares-5"] == 2, 180, "a successor to take squares-5 up")
    hold.unlink()
    site.wait_until_left("one-wrong")
    assert {f"squares-{shard}" for shard in range(1, SHARDS)} <= set(run.done())
    later = {job["id"] for job in submitted(run) if job["step"] == "squares" and job["link"]}
    rows = site.accounted(run, later, "JobID", "NodeList")
    ran = {id_.split("_")[1] for id_, node in rows if node != "None assigned"}
    assert "1" in ran and "0" not in ran, (
        "the pack with wrong input is not tried again; 2 and 3 are if they were cancelled"
    )
    assert "squares-0: wrong input by order of its test" in site.launch("status", "run=one-wrong", code=1)
