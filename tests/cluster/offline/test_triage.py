from __future__ import annotations

import errno
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lumen_hpc import files
from lumen_hpc.cluster import accounting, full_disk, graph, manifest, status, triage
from lumen_hpc.cluster.accounting import Usage
from lumen_hpc.cluster.stage import Run, Stage, Step
from tests.cluster.offline.offline_graph import finish


def _failed(folder: Path, shards: list[int], error: str, node: str = "n1", **more: object) -> None:
    row = {"shards": shards, "error": error, "node": node, "job": "7_1", "final": False, **more}
    manifest.append(folder / "failures.jsonl", row)


def test_alike_failures_come_together_with_a_fix(tmp_path: Path):
    for index in range(5):
        _failed(tmp_path, [index], f"OutOfMemoryError: CUDA out of memory. Tried {index} GiB at 0x7f{index}")
    _failed(tmp_path, [9], "UserError: question 12: no image", final=True)
    first, second = triage.failure_kinds(tmp_path, range(10))
    assert (first.count, sorted(first.shards), second.count) == (5, [0, 1, 2, 3, 4], 1)
    assert "mem_gb" in first.fix and "message says" in second.fix
    assert first.log.endswith("logs/7_1_0_log.out")


def test_failures_of_shards_that_are_done_meanwhile_are_past(tmp_path: Path):
    _failed(tmp_path, [1], "RuntimeError: x")
    assert triage.failure_kinds(tmp_path, [2]) == [] == triage.failure_kinds(tmp_path, [])


def test_failures_of_an_earlier_submission_are_past_once_the_shard_was_submitted_again(tmp_path: Path):
    _failed(tmp_path, [1, 2], "RuntimeError: repaired", chain="0001")
    _failed(tmp_path, [], "TimeoutError: hung", chain="0001")
    row = {"pack": 0, "attempt": 1, "event": "began", "chain": "0001", "job": "7_0", "node": "n2"}
    manifest.append(tmp_path / "attempts.jsonl", row)
    assert len(triage.failure_kinds(tmp_path, [1, 2], step_submissions={1: "0001", 2: "0001"})) == 3
    (kind,) = triage.failure_kinds(tmp_path, [1, 2], step_submissions={1: "0002", 2: "0001"})
    assert kind.shards == {2}, "shard 1 was submitted again, and nothing is known of it yet"
    assert triage.failure_kinds(tmp_path, [1, 2], step_submissions={1: "0002", 2: "0002"}) == []


def test_a_task_killed_from_outside_is_told(tmp_path: Path):
    for pack, event in ((0, "began"), (1, "began"), (1, "done")):
        row = {"pack": pack, "attempt": 1, "event": event, "chain": "0001", "job": "7_0", "node": "n2"}
        manifest.append(tmp_path / "attempts.jsonl", row)
    (kind,) = triage.failure_kinds(tmp_path, [0])
    assert kind.count == 1 and kind.nodes == {"n2"} and "killed" in kind.error


def test_a_task_of_an_interrupted_local_run_asks_for_no_memory_of_slurm(tmp_path: Path):
    row = {"pack": 0, "attempt": 1, "event": "began", "chain": "0001", "job": "", "node": "here"}
    manifest.append(tmp_path / "attempts.jsonl", row)
    (kind,) = triage.failure_kinds(tmp_path, [0])
    assert "the command that ran it was interrupted, or it was killed" in kind.error
    assert kind.fix.startswith("run the same command again, which goes on") and "mem_gb" not in kind.fix


def test_a_node_is_left_out_when_different_shards_fail_there_alone(tmp_path: Path):
    for index in (1, 2):
        _failed(tmp_path, [index], "RuntimeError: CUDA error", node="bad")
    assert triage.bad_nodes(tmp_path) == (), "no other node has shown that the work can be done"
    manifest.append(tmp_path / manifest.NAME, {"shard": 3, "node": "good"})
    assert triage.bad_nodes(tmp_path) == ("bad",)


def test_bad_input_blames_no_node(tmp_path: Path):
    for index in (1, 2):
        _failed(tmp_path, [index], "UserError: x", node="fine", final=True)
    manifest.append(tmp_path / manifest.NAME, {"shard": 3, "node": "good"})
    assert triage.bad_nodes(tmp_path) == ()


def test_slurm_is_asked_how_a_task_ended_that_recorded_nothing(tmp_path: Path):
    for pack, job in enumerate(("7_0", "7_1", "7_2", "7_3")):
        row = {"pack": pack, "attempt": 1, "event": "began", "chain": "0001", "job": job, "node": "n2"}
        manifest.append(tmp_path / "attempts.jsonl", row)
    accounted = accounting.parse(
        "7_0|OUT_OF_MEMORY|0:125|61|||n1\n7_0.batch|OUT_OF_MEMORY|0:125|61|1000K||n1\n"
        + "7_1|CANCELLED by 1000|0:15|9|||n1\n7_2|FAILED|0:9|9|||n1\n7_3|RUNNING|0:0|9|||n1\n"
    )
    requested: list[str] = []

    def usage(jobs: list[str]) -> dict[str, accounting.Usage]:
        requested.extend(jobs)
        return accounted

    found = {kind.error: kind.fix for kind in triage.failure_kinds(tmp_path, [0], {"7_3"}, usage)}
    assert requested == ["7_0", "7_1", "7_2"], "what runs is no failure"
    assert len(found) == 3 and "mem_gb" in found["a task was killed for exceeding its memory"]
    assert {"a task was cancelled in mid-work", "a task was killed by signal 9"} <= found.keys()


def test_memory_and_energy_come_from_a_jobs_steps_and_marks_for_no_value_are_none():
    lines = (
        "5|COMPLETED|0:0|100||", "5.batch|COMPLETED|0:0|100|2048K|700", "5.extern|COMPLETED|0:0|100|9G|99",
        "5.0|COMPLETED|0:0|90|1.5G|500", "6_3|COMPLETED|0:0|8||18446744073709551614", "6_3.batch|COMPLETED|0:0|8||0",
        "6_[4-9]|PENDING|0:0|0||",
    )  # fmt: skip
    found = accounting.parse("\n".join(f"{line}|n1" for line in lines))
    assert (found["5"].peak_bytes, found["5"].joules, found["5"].seconds) == (1.5 * 2**30, 700, 100)
    assert (found["6_3"].peak_bytes, found["6_3"].joules) == (None, None)


def _submitted(run: Run, step: Step, **job: object) -> None:
    """One submission of one job with one pack."""
    folder = run.folder / "submissions" / "0001"
    folder.mkdir(parents=True)
    record = {"step": step.name, "id": "7", "packs": [0], "link": 0, **job}
    (folder / "plan.json").write_text(json.dumps({"packs": {step.name: [[0]]}, "jobs": [record]}))
    (run.folder / step.name / "logs").mkdir(parents=True)


def _accounted(state: str, node: str) -> Callable[[list[str]], dict[str, Usage]]:
    return lambda jobs: {job: Usage(state, 0, 1.0, node=node) for job in jobs}


@pytest.mark.parametrize(
    ("log", "error", "fix"),
    [
        ("lumen: a line of the setup failed (exit 1): profile.modules: module load x", "module load x", "profile"),
        ("/bin/bash: line 20: apptainer: command not found", "apptainer: command not found", "environment"),
        ("x\nModuleNotFoundError: No module named 'lumen_hpc'\n", "No module named 'lumen_hpc'", "profile.setup"),
        ("OSError: [Errno 30] Read-only file system: '/home/me/.triton'", "Read-only file system", "profile.scratch"),
        ("lumen_hpc.errors.UserError: profile.scratch=/x: Read-only file system; leave it out", "out", "message says"),
        ("", "its log is empty", "log"),
    ],
)
def test_a_job_that_ended_before_its_work_is_a_failure_with_the_end_of_its_log(
    run: Run, stages: list[Stage], log: str, error: str, fix: str
):
    step = Step(stages[0])
    _submitted(run, step)
    (run.folder / step.name / "logs" / "7_0_log.out").write_text(log)
    (kind,) = triage.early_failures(run, step, [0], True, _accounted("FAILED", "n1"))
    assert error in kind.error and fix in kind.fix and kind.log.endswith("7_0_log.out")


def test_tasks_that_slurm_ended_before_their_work_are_one_failure(run: Run, stages: list[Stage]):
    step = Step(stages[0])
    _submitted(run, step)
    (plan,) = run.folder.glob("submissions/*/plan.json")
    job = json.loads(plan.read_text())["jobs"][0] | {"packs": [0, 1]}
    plan.write_text(json.dumps({"packs": {step.name: [[0], [1]]}, "jobs": [job]}))
    for task in range(2):
        line = f"slurmstepd: error: *** JOB {77 + task} ON n{task + 1} CANCELLED AT 2026-11-30T01:52:35 ***\n"
        (run.folder / step.name / "logs" / f"7_{task}_0_log.out").write_text(line)
    (kind,) = triage.early_failures(run, step, [0, 1], True, lambda jobs: None)
    assert kind.count == 2 and "the same command goes on" in kind.fix and kind.log.endswith("7_0_0_log.out")


@pytest.mark.parametrize(("nodes", "named"), [(["n1", "n1"], True), (["n1", "n2"], False)])
def test_a_node_on_which_every_job_ends_before_its_work_can_be_left_out(
    run: Run, stages: list[Stage], nodes: list[str], named: bool
):
    step = Step(stages[0])
    _submitted(run, step)
    (plan,) = run.folder.glob("submissions/*/plan.json")
    record = json.loads(plan.read_text())
    plan.write_text(json.dumps(record | {"jobs": [*record["jobs"], record["jobs"][0] | {"id": "8", "link": 1}]}))
    for name in ("7", "8"):
        log = run.folder / step.name / "logs" / f"{name}_0_log.out"
        log.write_text(f"/spool/job0000{name}/slurm_script: line 24: /venv/bin/python: No such file or directory\n")
    ends = {name: Usage("FAILED", 0, 1.0, node=node) for name, node in zip("78", nodes, strict=True)}
    (kind,) = triage.early_failures(run, step, [0], True, lambda jobs: ends)
    assert kind.count == 2 and ("profile.additional.exclude=n1" in kind.fix) is named


def test_a_job_without_a_log_is_a_failure_unless_what_it_reads_is_one(run: Run, stages: list[Stage]):
    step = Step(stages[0])
    _submitted(run, step)
    (kind,) = triage.early_failures(run, step, [0], True, _accounted("FAILED", "n1"))
    assert "left no log" in kind.error and "see" in kind.fix and kind.nodes == {"n1"}
    assert triage.early_failures(run, step, [0], False, _accounted("CANCELLED", "")) == [], "what it reads failed"
    (kind,) = triage.early_failures(run, step, [0], True, _accounted("CANCELLED", ""))
    assert "it was cancelled, or the gate" in kind.error and "launch.py stage=full" in kind.fix and not kind.log
    for usage in (lambda jobs: None, _accounted("PENDING", "n1")):  # no account; a crash of slurmctld, which forgot it
        (kind,) = triage.early_failures(run, step, [0], True, usage)
        assert "Slurm tells no end of it" in kind.error and kind.nodes == set() and not kind.log
        assert re.match(r"the same command goes on: .*stage=full.*; if it ends so again: does every node", kind.fix)
    assert triage.early_failures(run, step, [0], False, lambda jobs: None) == [], "what it reads is not there"
    manifest.append(run.folder / step.name / "attempts.jsonl", {"job": "7", "pack": 0, "event": "began"})
    assert triage.early_failures(run, step, [0], True, _accounted("FAILED", "n1")) == []


def test_a_successor_that_was_not_needed_is_no_failure_once_its_shard_is_missing_again(run: Run, stages: list[Stage]):
    """As after a change of settings with which only another stage was submitted."""
    step = Step(stages[0])
    _submitted(run, step)
    (plan,) = run.folder.glob("submissions/*/plan.json")
    record = json.loads(plan.read_text())
    plan.write_text(json.dumps(record | {"jobs": [*record["jobs"], record["jobs"][0] | {"id": "8", "link": 1}]}))
    assert len(triage.early_failures(run, step, [0], True, _accounted("CANCELLED", ""))) == 1
    manifest.append(run.folder / step.name / "attempts.jsonl", {"job": "7", "pack": 0, "event": "began"})
    assert triage.early_failures(run, step, [0], True, _accounted("CANCELLED", "")) == []


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: [enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0",
        "OSError: [Errno 122] Disk quota exceeded",
        "RuntimeError: PytorchStreamWriter failed writing file data/0: file write failed",
    ],
)
def test_a_full_disk_is_not_taken_for_anything_else(error: str):
    assert triage.fix(error) == full_disk.FIX


def statvfs(**left: int) -> SimpleNamespace:
    """A file system with plenty of everything but what is `left`."""
    plenty = {"f_frsize": 1, "f_bavail": 10**9, "f_files": 10**6, "f_favail": 10**5, "f_flag": 0}
    return SimpleNamespace(**plenty | left)


@pytest.mark.parametrize(
    ("left", "message", "fix"),
    [
        ({"f_bavail": 4096}, r"No space left on the file system /", full_disk.FIX),
        ({"f_favail": 0}, r"No space left on the file system /", full_disk.FIX),
        ({"f_flag": os.ST_RDONLY}, r"the file system /.* is read-only now", full_disk.READ_ONLY_FIX),
    ],
    ids=["bytes", "files", "read-only"],
)
def test_a_task_that_could_not_record_its_end_on_a_full_disk_is_told_from_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: dict[str, int], message: str, fix: str
):
    row = {"pack": 0, "attempt": 1, "event": "began", "chain": "0001", "job": "7", "node": "n2"}
    manifest.append(tmp_path / "attempts.jsonl", row)
    monkeypatch.setattr(files.os, "statvfs", lambda path: statvfs(**left))
    (kind,) = triage.failure_kinds(tmp_path, [0], usage=lambda jobs: None)
    assert re.match(message, kind.error) and kind.fix == fix


def test_a_full_disk_is_named_by_its_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refused = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught, files.atomic(tmp_path / "x"):
        raise refused
    assert caught.value.filename is None, "there is room here: it was another file's"
    assert full_disk.explain(KeyError("x"), tmp_path) == ""
    monkeypatch.setattr(files.os, "statvfs", lambda path: statvfs(f_bavail=0))
    with pytest.raises(OSError, match=f"'{tmp_path / 'x'}'") as caught, files.atomic(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.undo()
    text = full_disk.explain(caught.value, tmp_path)
    assert f"the file system {full_disk.mount_point(tmp_path)} when this was written: {tmp_path / 'x'}" in text
    assert triage.fix(text) == full_disk.FIX
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/home/me/cache")
    assert full_disk.explain(quota, tmp_path) == "No space left: the quota of /home/me/cache is used up"


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond a megabyte, as under the `ulimit -f` of a login node, which Slurm passes on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_files_is_no_full_disk(tmp_path: Path, small_files: None):
    with pytest.raises(OSError, match="File too large") as caught, files.atomic(tmp_path / "x") as stream:
        stream.write(bytes(3_000_000))
    hidden = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # torch's words
    for error in (caught.value, hidden):
        text = full_disk.explain(error, tmp_path)
        assert text == f"File too large: this task may write 0.001 GB to a file (ulimit -f), as to {tmp_path}"
        assert triage.fix(text).startswith("profile.setup: ['ulimit -f unlimited']")


def test_a_corrupt_shard_is_a_failure_with_what_to_do(run: Run, stages: list[Stage]):
    pipeline = graph.steps(stages, run.settings)
    for step in pipeline:
        finish(run, step, pipeline)
    answer = next(step for step in pipeline if step.name == "answer-a")
    file = run.folder / "answer-a" / "shard-00002-of-00004.jsonl"
    file.write_bytes(b"x" * file.stat().st_size)
    shown = {item.step: item for item in status.read(run, stages)}
    assert (shown["answer-a"].state, shown["answer-a"].failures[0]["shards"]) == ("failed", [2])
    assert f"{file}: not the file that manifest.jsonl records" in shown["answer-a"].failures[0]["error"]
    assert shown["answer-a"].first_fix.endswith(f"python launch.py stage=answer {run.arguments}")
    assert {item.state for name, item in shown.items() if name != "answer-a"} == {"done"}, (
        "what read it before is right"
    )
    assert status.read_files(run, stages)[1].failures == shown["answer-a"].failures
    file.unlink()
    (kind,) = triage.corruption(run, answer, pipeline, [2])
    assert kind.shards == {2}
    manifest.append(run.folder / "first" / manifest.NAME, manifest.latest(run.folder / "first")[0] | {"content": "new"})
    assert triage.corruption(run, answer, pipeline, [0, 1, 2, 3]) == [], "out of date, not corrupt"


def test_a_lost_shard_that_was_submitted_again_in_vain_is_a_failure_of_that_submission(run: Run, stages: list[Stage]):
    """The same command was given, and did not help: what it met is what has to be repaired."""
    pipeline = graph.steps(stages, run.settings)
    for step in pipeline:
        finish(run, step, pipeline)
    folder = run.folder / "answer-a"
    (folder / "shard-00002-of-00004.jsonl").unlink()
    manifest.append(folder / manifest.NAME, manifest.latest(folder)[2] | {"pack": 0, "attempt": 1})
    row = {"pack": 0, "attempt": 1, "event": "done", "chain": "0001", "job": "7", "node": "n1"}
    manifest.append(folder / "attempts.jsonl", row)
    for name in ("0001", "0002"):
        (run.folder / "submissions" / name).mkdir(parents=True)
        plan = {"packs": {"answer-a": [[0, 1, 2, 3] if name == "0001" else [2]]}, "jobs": []}
        (run.folder / "submissions" / name / "plan.json").write_text(json.dumps(plan))
    _failed(folder, [2], "RuntimeError: of the first submission, and past", chain="0001")

    def errors() -> list[str]:
        (step,) = (item for item in status.read(run, stages) if item.step == "answer-a")
        (by_files,) = (item for item in status.read_files(run, stages) if item.step == "answer-a")
        assert step.state == "failed" and step.failures == by_files.failures
        return [kind["error"].partition(": ")[2] for kind in step.failures]

    assert errors() == ["not the file that manifest.jsonl records (corrupt or deleted)"]
    _failed(folder, [2], "ModuleNotFoundError: No module named 'x'", chain="0002")
    assert errors()[0] == "No module named 'x'"
