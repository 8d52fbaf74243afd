"""Answers of Slurm's commands that a real cluster cannot be made to give, at the subprocess boundary."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import jobs
import launch
from lumen_hpc.cluster import (
    accounting,
    attempts,
    commands,
    environment,
    graph,
    live,
    lock,
    manifest,
    preflight,
    slurm,
    status,
    status_table,
    submit,
)
from lumen_hpc.cluster.accounting import Accounting
from lumen_hpc.cluster.stage import Pipeline, Run, Shard, Stage, Step
from lumen_hpc.config import config_file
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.request import Request
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError
from tests.cluster.offline.conftest import stage
from tests.cluster.offline.offline_graph import finish, submit_chain


def _queue(fake: Path, jobs: list[dict], user: int | None = None, reason: str = "Priority") -> None:
    """Every job of a submission is pending."""
    lines = []
    for job in jobs:
        for name in slurm.task_ids(job["id"], 1 if job.get("gate") else len(job["packs"])):
            lines.append(f"{name}|PENDING|{reason}||N/A|{os.getuid() if user is None else user}|{job['name']}")
    (fake / "queue").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("record", "restarts", "requeued", "continuation"),
    [  # as Slurm 22.05 describes a job of that end while its script still runs
        ("JobState=RUNNING Reason=None Restarts=0", "0", True, "Slurm queues it again"),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=0", "0", True, "Slurm queues it again"),
        ("JobState=COMPLETING Reason=None Restarts=0 PreemptTime=2026-11-30T08:24", "0", True, "Slurm queues it again"),
        ("JobState=COMPLETING Reason=None Restarts=3", "2", False, "Slurm queues it again"),  # an administrator did
        ("JobState=COMPLETING Reason=None Restarts=2 PreemptTime=None", "2", False, "it was cancelled"),
        ("JobState=CANCELLED,COMPLETING Reason=None Restarts=0", "0", False, "it was cancelled"),
    ],
)
def test_a_job_queues_itself_again_unless_it_was_cancelled_or_slurm_did_it(
    monkeypatch, record: str, restarts: str, requeued: bool, continuation: str
):
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm, "ask", lambda *words: asked.append(words) or record)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    assert slurm.requeue("7_1").startswith(continuation)
    assert (("scontrol", "requeue", "7_1") in asked) is requeued


def test_hidden_partitions_are_seen(fake: Path):
    slurm.queue()
    assert "-a" in (fake / "asked").read_text().split()


@pytest.mark.parametrize(
    ("accounts", "why"),
    [
        ("none", "has no account on this cluster (fix: ask its administrators"),
        ("us", "partition=nowhere: not on this cluster (fix: one of cpu, h100)"),
    ],
)
def test_a_refusal_names_what_of_the_profile_does_not_fit(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, accounts: str, why: str
):
    monkeypatch.setenv("REFUSE_AT", "0")
    monkeypatch.setenv("ACCOUNTS", accounts)
    request_here.profile.resources["gpu"].partition = "nowhere" if accounts == "us" else ""
    with pytest.raises(UserError) as caught:
        submit_chain(request_here, stages)
    assert why in str(caught.value) and "nothing was submitted" in str(caught.value)


def test_a_job_of_the_same_name_of_another_run_is_left_alone(fake: Path, request_here: Request, stages: list[Stage]):
    run, _ = submit_chain(request_here, stages)
    (fake / "queue").write_text(f"77|PENDING|Priority||N/A|{os.getuid()}|r.answer-a")
    (fake / "job-77").write_text("StdOut=/elsewhere/r/answer-a/logs/77_0_log.out\n")
    assert live.unrecorded_ids(run, slurm.queue()) == []
    (fake / "job-77").write_text(f"StdOut={run.folder}/answer-a/logs/77_0_log.out\n")
    assert live.unrecorded_ids(run, slurm.queue()) == ["77"]


def test_ids_that_slurm_gives_out_again_are_the_later_submissions(
    fake: Path, request_here: Request, stages: list[Stage]
):
    """As after a crash of its controller, which forgets the jobs of the last seconds."""
    submit_chain(request_here, stages)
    for script in fake.glob("script-*"):
        script.unlink()
    request_here.profile.resources["gpu"].tasks = 2
    run, submitted = submit_chain(request_here, stages)
    first, later = sorted(run.folder.glob("submissions/*/plan.json"))
    assert {job["id"] for job in submitted} <= {job["id"] for job in json.loads(first.read_text())["jobs"]}
    assert json.loads(later.read_text())["jobs"] == submitted
    _queue(fake, submitted)
    found = [job["id"] for _, job, _ in live.in_queue(live.submissions(run.folder), slurm.queue())]
    assert found == [job["id"] for job in submitted], "each job once"
    answer = next(item for item in status.read(run, stages) if item.step == "answer-a")
    assert (answer.queued, answer.successors) == (2, 2 * request_here.profile.resources["gpu"].successors)


def test_jobs_that_cannot_be_cancelled_are_named_and_the_exit_code_is_1(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, capsys
):
    _, submitted = submit_chain(request_here, stages)
    _queue(fake, submitted)
    monkeypatch.setenv("NO_SCANCEL", "1")
    assert commands.cancel(request_here, Pipeline(tuple(stages), jobs.run_pack)) == 1
    output = capsys.readouterr()
    assert "cancelled 0 job(s)" in output.out and "permission denied" in output.err
    assert all(job["id"] in output.err.splitlines()[-1] for job in submitted)


def test_one_stage_is_cancelled_with_what_waits_for_it(
    fake: Path, request_here: Request, stages: list[Stage], capsys: pytest.CaptureFixture
):
    _, submitted = submit_chain(request_here, stages)
    _queue(fake, submitted)
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    request_here.stage, request_here.dry_run = "answer-b", True
    assert commands.cancel(request_here, pipeline) == 0
    assert "nothing was cancelled" in capsys.readouterr().out and not (fake / "cancelled").exists()
    request_here.dry_run = False
    assert commands.cancel(request_here, pipeline) == 0
    steps = {job["id"]: job["step"] for job in submitted}
    assert {steps[id_] for id_ in (fake / "cancelled").read_text().split()} == {"answer-b", "score-b", "last"}
    assert "because they wait for it: last, score-b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failures", "error", "asked", "cancelled"),
    [
        (1, "Socket timed out on send/recv operation", 2, True),
        (9, "Unable to contact slurm controller (connect failure)", 3, False),
        (9, "Access/permission denied", 1, False),
        (9, "Kill job error on job id 7: Invalid job id specified", 1, True),
        (9, "Kill job error on job id 7: Job/step already completing or completed", 1, True),
    ],
)
def test_a_job_asks_a_busy_controller_again_to_cancel_what_it_needs_no_more(
    fake: Path, monkeypatch: pytest.MonkeyPatch, failures: int, error: str, asked: int, cancelled: bool
):
    monkeypatch.setattr(slurm, "CANCEL_RETRY_PAUSES_S", (0.0, 0.0))
    (fake / "bin" / "scancel").write_text(
        f'#!/bin/sh\necho "$@" >> "$FAKE/tried"\n[ $(wc -l < "$FAKE/tried") -gt {failures} ] && exit 0\n'
        f"echo 'scancel: error: {error}' >&2; exit 1\n"
    )
    assert slurm.cancel_pending(["7_1", "8_1"]) == cancelled
    assert (fake / "tried").read_text().splitlines() == ["7_1 8_1"] * asked


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EAGAIN, slurm.Unreachable), (errno.ENOMEM, slurm.Unreachable), (errno.EACCES, UserError)],
)
def test_a_command_that_cannot_be_started_is_a_line_and_leaves_its_jobs_named(
    fake: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[UserError]
) -> None:
    """On a login node with `ulimit -u` or `-v`: the withdrawal of a submission must say which jobs stay."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(slurm, "CANCEL_RETRY_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(slurm.subprocess, "Popen", refuse)
    with pytest.raises(UserError, match=r"squeue could not be started \(") as raised:
        slurm.ask("squeue")
    assert type(raised.value) is kind and ("ulimit -u" in str(raised.value)) == (kind is slurm.Unreachable)
    assert slurm.cancel(["7", "8"]) == ["7", "8"] and not slurm.cancel_pending(["7"])


def test_a_finished_step_whose_input_is_being_made_anew_is_queued_and_not_done(
    fake: Path, request_here: Request, stages: list[Stage]
):
    """Its own job waits in the queue, and its shard is the one that the earlier inputs made."""
    run, submitted = submit_chain(request_here, stages)
    steps = graph.steps(stages, run.settings)
    for step in steps:
        finish(run, step, steps)
    _queue(fake, [job for job in submitted if job["step"] == "last"])
    last = next(item for item in status.read(run, stages) if item.step == "last")
    assert (last.state, last.done, last.shards, last.queued) == ("queued", 0, 1, 1)
    _queue(fake, [job for job in submitted if job["step"] == "last" and job["link"]])
    last = next(item for item in status.read(run, stages) if item.step == "last")
    assert (last.state, last.done, last.queued) == ("done", 1, 0), "a successor only stands by"


def test_a_stage_on_request_is_shown_while_it_is_under_way_and_where_it_is_named(
    fake: Path, request_here: Request, stages: list[Stage]
):
    """Nothing told of a server that waited or loaded, nor of an export that had failed."""
    stages = [*stages, stage("talk", on_request=True), stage("other", on_request=True)]
    run, submitted = submit_chain(dataclasses.replace(request_here, stage="talk"), stages)
    _queue(fake, submitted, reason="Licenses")
    *_, last, talk = status.read(run, stages)
    assert (last.step, talk.step, talk.state) == ("last", "talk", "queued") and "licence" in talk.waits[0]
    (fake / "queue").unlink()
    assert status.read(run, stages)[-1].step == "last"
    assert status.read(run, stages, "talk")[-1].step == "talk"
    assert status.read_files(run, stages, "talk")[-1].step == "talk"
    attempts.Attempts(run, Step(stages[-2]), 0, 0).record_begin()
    run.profile.executor = "local"
    with lock.held(run.folder):
        *_, last, talk = status.read(run, stages)
    assert (last.step, talk.step, talk.state) == ("last", "talk", "running")


def test_a_second_user_sees_who_owns_the_run(fake: Path, request_here: Request, stages: list[Stage]):
    run, submitted = submit_chain(request_here, stages)
    (plan,) = run.folder.glob("submissions/*/plan.json")
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"user": 1}))  # daemon, on every Linux
    live.require_own(run)
    _queue(fake, submitted, user=1)
    with pytest.raises(UserError, match="daemon has jobs 1000, 1001"):
        live.require_own(run)
    _queue(fake, submitted)  # jobs of these numbers that are mine are others
    assert live.shards(run, live.queue(run)) == ({}, {})


def _is_known_elsewhere(request: Request, pipeline: Pipeline, where: str, capsys: pytest.CaptureFixture) -> None:
    """No job counts as ended or cancelled."""
    with pytest.raises(live.Elsewhere, match=where):
        commands.cancel(request, pipeline)
    for verb in (commands.status, commands.logs):
        assert verb(request, pipeline) == 0
        assert f"{where}; go on there" in (output := capsys.readouterr()).err and "fix:" not in output.out
    request.watch = True
    with pytest.raises(live.Elsewhere, match=where):
        commands.status(request, pipeline)


def test_jobs_are_not_taken_for_ended_on_a_machine_without_slurm(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, capsys
):
    """As on a node for data transfers: `cancel` said that it had cancelled none, and status that all had failed."""
    run, _ = submit_chain(request_here, stages)
    monkeypatch.setenv("PATH", "/nowhere")
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    _is_known_elsewhere(request_here, pipeline, "squeue is not on this machine", capsys)
    live.require_no_jobs(run)  # a copy of a run on a laptop may go on there


def test_another_cluster_on_the_same_file_system_must_cancel_first(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, capsys
):
    run, submitted = submit_chain(request_here, stages)
    _queue(fake, submitted)
    monkeypatch.setenv("CLUSTER", "there")
    slurm.settings.cache_clear()
    assert live.shards(run, live.queue(run)) == ({}, {}), "a stranger's jobs of the same numbers"
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    with pytest.raises(UserError, match=r"submitted on cluster here .* this is there"):
        live.require_own(run)
    _is_known_elsewhere(request_here, pipeline, "this is there", capsys)
    monkeypatch.setenv("CLUSTER", "here")
    slurm.settings.cache_clear()
    commands.cancel(request_here, Pipeline(tuple(stages), jobs.run_pack))
    monkeypatch.setenv("CLUSTER", "there")
    slurm.settings.cache_clear()
    live.require_own(run)


def test_while_the_controller_does_not_answer_status_shows_the_files_and_watch_goes_on(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, capsys
):
    run, _ = submit_chain(request_here, stages)
    steps = graph.steps(stages, run.settings)
    finish(run, steps[0], steps)
    began = {"pack": 0, "attempt": 1, "event": "began", "chain": "0001", "job": "1003_0", "node": "n1"}
    manifest.append(run.folder / "answer-a" / "attempts.jsonl", began)
    squeue = fake / "bin" / "squeue"
    working = squeue.read_text()
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    request_here.json = True
    assert commands.status(request_here, pipeline) == 0
    output = capsys.readouterr()
    shown = json.loads(output.out)
    assert [step["state"] for step in shown["steps"]] == ["done", *["unknown"] * 5] and not shown["queue_known"]
    assert shown["steps"][1]["failures"] == [], "a task that may well be running"
    assert "Unable to contact slurm controller; the queue is unknown: this is what the files say" in output.err
    request_here.json, request_here.watch = False, True
    monkeypatch.setattr(status_table.time, "sleep", lambda seconds: squeue.write_text(working))
    commands.status(request_here, pipeline)
    assert "Unable to contact slurm controller; trying again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["stage=full", "recipe=smoke"], ["stage=full", "recipe=smoke", "seed=[1,2]"], ["cancel"], ["check"]],
    ids=" ".join,
)
def test_a_command_that_needs_the_controller_says_to_try_again(
    fake: Path, request_here: Request, stages: list[Stage], capsys: pytest.CaptureFixture, words: list[str]
):
    submit_chain(request_here, stages)
    for name in ("squeue", "sinfo", "scontrol"):
        (fake / "bin" / name).write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    slurm.settings.cache_clear()
    assert launch.main([*words, "profile=h100", "run=r", f"runs={request_here.folder.parent}"]) == 2
    output = capsys.readouterr()
    assert "try again once it answers (scontrol ping)" in output.out + output.err


def test_watch_looks_at_the_files_of_a_line_once(run: Run, stages: list[Stage], monkeypatch: pytest.MonkeyPatch):
    steps = graph.steps(stages, run.settings)
    for step in steps[:2]:
        finish(run, step, steps, [0, 1] if step.stage.name == "answer" else None)
    watched = dataclasses.replace(run, verified_lines={})
    looked: list[str] = []
    stat = os.stat
    spy = lambda name, **more: (looked.append(str(name)) if "shard-" in str(name) else None, stat(name, **more))[1]  # noqa: E731
    monkeypatch.setattr(manifest.os, "stat", spy)
    first = [item.done for item in status.read(watched, stages)]
    assert set(looked) == {Shard(0, 1).file, Shard(0, 4).file, Shard(1, 4).file}
    looked.clear()
    finish(run, steps[1], steps, [2])
    looked.clear()
    second = [item.done for item in status.read(watched, stages)]
    assert (first[:2], second[:2]) == ([1, 2], [1, 3])
    assert looked == [Shard(2, 4).file]


def test_a_pending_job_that_can_never_start_is_stuck_with_its_reason(
    fake: Path, request_here: Request, stages: list[Stage]
):
    run, submitted = submit_chain(request_here, stages)
    _queue(fake, submitted, reason="PartitionTimeLimit")
    first, *_ = status.read(run, stages)
    assert first.state == "stuck" and "cannot start as submitted" in first.waits[0]
    assert first.waits[0].endswith("a smaller profile.resources.cpu.time_min"), "by the kind of this step's jobs"
    assert first.first_fix.startswith(
        f"python launch.py cancel stage=first {run.arguments}, then submit again with: a smaller"
    )
    _queue(fake, submitted, reason="QOSGrpGRES")
    first, *_ = status.read(run, stages)
    assert first.state == "queued" and "starts when others end" in first.waits[0]


def test_a_cluster_without_arrays_gets_single_jobs(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ARRAY", "0")
    assert slurm.largest_array() == 1
    request_here.profile.max_array_size = 0
    _, submitted = submit_chain(request_here, stages)
    assert {len(job["packs"]) for job in submitted} == {1}


def test_a_plan_or_config_that_a_full_disk_left_empty_is_one_line(
    fake: Path, request_here: Request, stages: list[Stage]
):
    run, _ = submit_chain(request_here, stages)
    (folder,) = run.folder.glob("submissions/*")
    (folder / "plan.json").write_text("")
    with pytest.raises(UserError, match=r"plan\.json: empty or not JSON"):
        live.queue(run)
    (folder / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"config\.yaml: .*lacks stage, recipe, profile, settings"):
        config_file.load(folder / "config.yaml")
    with pytest.raises(UserError, match=r"config\.yaml: .*lacks"):
        resolve([f"config={folder / 'config.yaml'}"])


def test_a_run_with_jobs_in_the_queue_does_not_start_on_this_machine_too(
    fake: Path, request_here: Request, stages: list[Stage]
):
    run, submitted = submit_chain(request_here, stages)
    _queue(fake, submitted)
    request_here.profile, request_here.site_keys = Profile(runs=str(run.folder.parent)), ()
    with pytest.raises(UserError, match=r"jobs 1000, 1001.* are in Slurm's queue"):
        commands.submit(request_here, Pipeline(tuple(stages), jobs.run_pack))
    (fake / "queue").write_text("")
    live.require_no_jobs(run)


def test_a_run_is_not_cancelled_in_the_middle_of_its_submission(fake: Path, request_here: Request, stages: list[Stage]):
    run, submitted = submit_chain(request_here, stages)
    _queue(fake, submitted)
    (run.folder / lock.LOCK).write_text("login2 4711")
    with pytest.raises(lock.Busy, match="process 4711 on login2"):
        commands.cancel(request_here, Pipeline(tuple(stages), jobs.run_pack))
    assert not (fake / "cancelled").exists() and not (fake / "asked").exists(), "the queue may be an earlier one"


def test_what_is_submitted_while_a_run_is_being_cancelled_is_not_marked_as_cancelled(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
):
    """A slow queue gives another command the time to submit."""
    run, submitted = submit_chain(request_here, stages)
    _queue(fake, submitted)
    queue, later = live.queue, run.folder / "submissions" / "0002"

    def slow(run: Run) -> dict[str, slurm.Job]:
        (before,) = run.folder.glob("submissions/*/plan.json")
        later.mkdir()
        (later / "plan.json").write_text(before.read_text())
        return queue(run)

    monkeypatch.setattr(live, "queue", slow)
    commands.cancel(request_here, Pipeline(tuple(stages), jobs.run_pack))
    assert [bool(record.get("cancelled")) for record in live.submissions(run.folder)] == [True, False]


def test_a_run_on_a_disk_that_takes_nothing_can_be_cancelled(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, capsys
):
    run, submitted = submit_chain(request_here, stages)
    _queue(fake, submitted)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(live.files, "write_text", refuse)
    assert commands.cancel(request_here, Pipeline(tuple(stages), jobs.run_pack)) == 0
    shown = capsys.readouterr()
    assert f"cancelled {len(submitted)} job(s)" in shown.out
    assert f"{run.folder}: the end of its jobs cannot be noted there: Read-only file system" in shown.err


@pytest.mark.parametrize("state", ["SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "OF_A_LATER_SLURM"])
def test_a_job_in_an_unusual_state_still_holds_its_shards(
    fake: Path, request_here: Request, stages: list[Stage], state: str
):
    run, submitted = submit_chain(request_here, stages)
    _queue(fake, submitted)
    lines = (fake / "queue").read_text()
    (fake / "queue").write_text(lines.replace("PENDING", state))
    assert live.shards(run, live.queue(run))[0]["answer-a"] == {0, 1, 2, 3}
    (fake / "queue").write_text(lines.replace("PENDING", "COMPLETED"))
    assert live.queue(run) == {}


def test_a_job_name_in_another_encoding_is_no_traceback(fake: Path):
    (fake / "queue").write_bytes(f"7|RUNNING|None|n1|N/A|{os.getuid()}|caf".encode() + b"\xe9\n")
    assert set(slurm.queue()) == {"7"}


def test_a_log_in_a_folder_with_a_space_is_found(fake: Path):
    (fake / "job-7").write_text("   StdErr=/a b/r/x.out\n   StdOut=/a b/r/x.out\n   Power=\n")
    assert slurm.log_path("7") == "/a b/r/x.out"


def test_a_site_that_keeps_its_configuration_to_itself_takes_submissions(
    fake: Path, request_here: Request, stages: list[Stage]
):
    tool = fake / "bin" / "scontrol"
    tool.write_text("#!/bin/sh\necho 'slurm_load_ctl_conf error: Access/permission denied' >&2; exit 1\n")
    assert (slurm.cluster(), slurm.largest_array()) == ("", 1001)
    request_here.profile.max_array_size = 0
    _, submitted = submit_chain(request_here, stages)
    assert submitted
    results = preflight.check_cluster(request_here.profile)
    assert "run this on a login node" not in " ".join(result.fix for result in results)
    tool.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    with pytest.raises(slurm.Unreachable):
        slurm.largest_array()


def test_the_cluster_that_the_shell_chose_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_CLUSTERS", "big")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with environment.outside_the_job():
        assert os.environ["SLURM_CLUSTERS"] == "big" and "SLURM_JOB_ID" not in os.environ


@pytest.mark.parametrize(
    "squeue", ["echo 'slurm_load_jobs error: Access/permission denied' >&2; exit 1", "printf '1000|RUNNING|None|n1|N'"]
)
def test_a_squeue_that_fails_or_is_cut_off_submits_nothing_twice(
    fake: Path, request_here: Request, stages: list[Stage], squeue: str, capsys: pytest.CaptureFixture
):
    submit_chain(request_here, stages)
    (fake / "bin" / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
    before = len(list(fake.glob("script-*")))
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    for verb in (commands.submit, commands.cancel):
        with pytest.raises(slurm.Unreachable, match="squeue"):
            verb(request_here, pipeline)
    assert len(list(fake.glob("script-*"))) == before and not (fake / "cancelled").exists()
    assert commands.status(request_here, pipeline) == 0
    output = capsys.readouterr()
    assert "the queue is unknown" in output.err and "unknown" in output.out


def test_a_slow_sacct_is_waited_for_once_a_status(
    fake: Path, run: Run, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
):
    for step in graph.steps(stages, run.settings):
        row = {"pack": 0, "attempt": 1, "event": "began", "chain": "0001", "job": "7", "node": "n2"}
        manifest.append(run.folder / step.name / "attempts.jsonl", row)
    (fake / "bin" / "sacct").write_text("#!/bin/sh\nexec sleep 600\n")
    (fake / "bin" / "sacct").chmod(0o755)
    asked, ask = [], slurm.ask
    monkeypatch.setattr(slurm, "ask", lambda *words, **options: asked.append(words[0]) or ask(*words, **options))
    monkeypatch.setattr(status, "Accounting", lambda: Accounting(patience=0.2))
    shown = status.read(run, stages)
    assert asked.count("sacct") == 1
    assert {item.state for item in shown} == {"failed"}
    assert "killed from outside" in shown[0].failures[0]["error"], "what is known without it"


@pytest.mark.parametrize("answer", ["", "7|", "7|FAILED|1:0|4|", "7||||||", "Slurm accounting storage is disabled"])
def test_an_answer_of_sacct_that_is_cut_off_says_nothing(answer: str):
    assert accounting.parse(answer) == {}


def test_people_are_told_what_a_command_waits_for(capsys: pytest.CaptureFixture):
    waits: list[float] = []

    def communicate(timeout: float) -> tuple[bytes, bytes]:
        waits.append(timeout)
        if len(waits) == 1:
            raise subprocess.TimeoutExpired("squeue", timeout)
        return b"found", b""

    assert slurm._read_output(SimpleNamespace(communicate=communicate), "squeue", 60) == (b"found", b"")
    assert capsys.readouterr().err == "lumen: waiting for squeue …\n"
    assert waits == [slurm.NOTICE_DELAY_S, 60 - slurm.NOTICE_DELAY_S]


@pytest.mark.parametrize(
    ("message", "cause", "fix"),
    [
        ("", "is the Slurm controller up?", "scontrol ping"),
        ("sbatch: error: some trouble", "sbatch: error: some trouble", "scontrol ping"),
        (
            "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
            "Slurm temporarily unable to accept job",
            "MaxJobCount",
        ),
    ],
)
def test_what_a_command_said_before_its_time_was_over_is_told(
    fake: Path, monkeypatch: pytest.MonkeyPatch, message: str, cause: str, fix: str
):
    (fake / "bin" / "sbatch").write_text(f"#!/bin/sh\n[ -z '{message}' ] || echo '{message}' >&2\nexec sleep 600\n")
    monkeypatch.setattr(slurm, "ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(slurm, "NOTICE_DELAY_S", 0.2)
    with pytest.raises(slurm.Unreachable, match=re.escape(cause)) as caught:
        slurm.submit(fake / "script.sh")
    assert fix in caught.value.advice


def test_a_submission_to_a_full_queue_does_not_blame_the_controller():
    step = Step(Stage(name="squares", paper="", about="", resources="gpu", settings=()))
    error = submit._refusal(Profile(), step, slurm.FullQueue("sbatch did not answer"), "nothing was submitted")
    assert "nothing was submitted" in str(error)
    assert "MaxJobCount" in error.advice
