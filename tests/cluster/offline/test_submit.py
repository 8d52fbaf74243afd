"""Submissions that are refused, interrupted, killed, or two at once."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import jobs
from lumen_hpc.cluster import commands, graph, live, lock, slurm, submit
from lumen_hpc.cluster.stage import Pipeline, Run, Stage
from lumen_hpc.config.request import Request
from lumen_hpc.errors import UserError
from tests.cluster.offline.offline_graph import finish, submit_chain


def test_two_first_submissions_at_once_do_not_remove_each_others_run(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
):
    """The second has seen no folder, and is refused when the first one holds it."""
    prepare, run = submit.prepare_folder, submit.open_run(request_here)
    with ExitStack() as first:

        def meanwhile(run: Run) -> None:
            prepare(run)
            first.enter_context(lock.held(run.folder))

        monkeypatch.setattr(submit, "prepare_folder", meanwhile)
        with pytest.raises(lock.Busy, match="works on this run"), submit.writing(run):
            pass
        assert (run.folder / lock.LOCK).exists() and (run.folder / "layout").exists()


def test_what_a_killed_first_submission_left_in_the_queue_is_seen_and_cancelled(
    fake: Path,
    request_here: Request,
    stages: list[Stage],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    """kill -9 between sbatch's answer and the note of it: no job on record, and no config.yaml of the run."""
    monkeypatch.setattr(live, "SETTLE_TIMEOUT_S", 0.0)  # the fake scancel leaves its queue as it is
    run, _ = submit_chain(request_here, stages)
    (plan,) = run.folder.glob("submissions/*/plan.json")
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"jobs": []}))
    (run.folder / "config.yaml").unlink()
    (fake / "queue").write_text(f"1000|PENDING|Priority||N/A|{os.getuid()}|r.first")
    (fake / "job-1000").write_text(f"StdOut={run.folder}/first/logs/1000_0_log.out\n")
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    assert commands.status(request_here, pipeline) == 0
    assert commands.cancel(request_here, pipeline) == 0
    assert "cancelled 1 job(s)" in capsys.readouterr().out and (fake / "cancelled").read_text() == "1000\n"
    request_here.stage = "full"
    assert commands.submit(request_here, pipeline) == 0
    assert "cancelled 1 job(s) of earlier submissions" in capsys.readouterr().out


def test_a_second_submission_says_whether_the_run_is_under_way_or_done(
    fake: Path, request_here: Request, stages: list[Stage], capsys: pytest.CaptureFixture
):
    run, submitted = submit_chain(request_here, stages)
    own = str(os.getuid())
    (fake / "queue").write_text(
        "\n".join(
            f"{task}|PENDING|Priority||N/A|{own}|{job['name']}"
            for job in submitted
            for task in slurm.task_ids(job["id"], 1 if job.get("gate") else len(job["packs"]))
        )
    )
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    assert commands.submit(request_here, pipeline) == 0
    assert capsys.readouterr().out.endswith("nothing to submit: full of run r is under way\n")
    (fake / "queue").write_text("")
    everything = graph.steps(stages, run.settings)
    for step in everything:
        finish(run, step, everything)
    assert commands.submit(request_here, pipeline) == 0
    last = f"nothing to submit: full of run r is done\nreport: {run.folder}/report/index.html\n"
    assert capsys.readouterr().out.endswith(last)


def test_a_submission_waits_for_a_gate_that_is_about_to_cancel_what_waits_for_it(
    fake: Path,
    request_here: Request,
    stages: list[Stage],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    """Else what it will cancel counts as under way, and nobody submits it."""
    _, submitted = submit_chain(request_here, stages)
    own = str(os.getuid())
    (fake / "queue").write_text(
        "\n".join(
            f"{job['id']}|{'RUNNING' if job['step'] == 'first' else 'PENDING'}|None||N/A|{own}|{job['name']}"
            for job in submitted
            if job["step"] != "first" or job.get("gate")
        )
    )
    monkeypatch.setattr(live.time, "sleep", lambda seconds: (fake / "queue").write_text(""))
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    assert commands.submit(request_here, pipeline) == 0
    output = capsys.readouterr().out
    assert "which checks whether first is whole" in output and "first            job " in output
    assert len(list(live.submissions(request_here.folder))[1]["jobs"]) == len(submitted)


def test_a_job_that_sbatch_takes_while_the_user_interrupts_is_withdrawn_too(
    fake: Path,
    request_here: Request,
    stages: list[Stage],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setenv("INTERRUPT_AT", "2")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            submit_chain(request_here, stages)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (fake / "cancelled").read_text().split() == ["1002", "1001", "1000"]
    assert "nothing was submitted" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_withdraws_a_submission(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, number: int
):
    monkeypatch.setattr(submit, "record", lambda *_: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it stays ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            commands.submit(request_here, Pipeline(tuple(stages), jobs.run_pack))
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert len((fake / "cancelled").read_text().split()) == len(list(fake.glob("script-*"))) > 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_after_the_last_sbatch_withdraws_the_jobs(
    fake: Path,
    request_here: Request,
    stages: list[Stage],
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    error: BaseException,
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(submit, "record", fail)
    with pytest.raises(type(error)):
        submit_chain(request_here, stages)
    submitted = [f"{1000 + number}" for number, _ in enumerate(fake.glob("script-*"))]
    assert submitted and (fake / "cancelled").read_text().split() == submitted[::-1]
    assert "nothing was submitted" in capsys.readouterr().err
    assert list(live.submissions(request_here.folder)) == []


def test_a_new_runs_folder_stays_while_jobs_of_it_do(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REFUSE_AT", "2")
    run = submit.open_run(request_here)
    with pytest.raises(UserError, match="nothing was submitted"), submit.writing(run):
        submit_chain(request_here, stages)
    assert not run.folder.exists()
    for script in fake.glob("script-*"):
        script.unlink()
    monkeypatch.setenv("NO_SCANCEL", "1")
    lines = [f"{job}|RUNNING|None|n1|N/A|{os.getuid()}|r.first" for job in (1000, 1001)]
    (fake / "queue").write_text("\n".join(lines))
    with pytest.raises(UserError, match="jobs 1001, 1000 stay in the queue"), submit.writing(run):
        submit_chain(request_here, stages)
    assert next(run.folder.glob("code/*")).is_dir(), "what the jobs in the queue run from"


def test_a_job_that_sbatch_accepted_without_a_word_is_cancelled(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOST_AT", "3")
    (fake / "job-1003").write_text(f"StdOut={request_here.folder}/answer-a/logs/1003_0_log.out\n")
    with pytest.raises(UserError, match=r"Socket timed out.*nothing was submitted"):
        submit_chain(request_here, stages)
    assert (fake / "cancelled").read_text().split() == ["1002", "1001", "1000", "1003"]


def test_an_sbatch_that_dies_without_a_word_is_no_refusal_and_leaves_no_job(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KILLED_AT", "2")
    with pytest.raises(slurm.Unreachable, match=r"ended without a word \(exit status -9\); nothing was submitted"):
        submit_chain(request_here, stages)
    assert (fake / "cancelled").read_text().split() == ["1001", "1000"]


def test_signals_that_ask_a_job_to_end_do_not_end_the_sbatch_that_it_waits_for(fake: Path):
    """Slurm sends them to every process of a job; what sbatch had submitted by then would be known to nobody."""
    to_itself = "; ".join(f"os.kill(os.getpid(), signal.{name})" for name in ("SIGTERM", "SIGUSR2", "SIGHUP"))
    tool = fake / "bin" / "sbatch"
    tool.write_text(f"#!{sys.executable}\nimport os, signal; {to_itself}\nprint('Submitted batch job 7')\n")
    assert slurm.submit(fake / "script.sh") == "7"


def test_a_refusal_whose_jobs_stay_does_not_say_that_nothing_was_submitted(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REFUSE_AT", "2")
    monkeypatch.setenv("NO_SCANCEL", "1")
    lines = [f"{job}|RUNNING|None|n1|N/A|{os.getuid()}|r.first" for job in (1000, 1001)]
    (fake / "queue").write_text("\n".join(lines))
    with pytest.raises(UserError, match="jobs 1001, 1000 stay in the queue"):
        submit_chain(request_here, stages)
    assert [record["jobs"] != [] for record in live.submissions(request_here.folder)] == [True]


def test_a_umask_that_takes_the_owners_rights_makes_no_folder_that_nobody_can_open(request_here: Request):
    before, run = os.umask(0o777), submit.open_run(request_here)
    try:
        submit.prepare_folder(run)
    finally:
        os.umask(before)
    assert run.folder.stat().st_mode & 0o777 == 0o700
