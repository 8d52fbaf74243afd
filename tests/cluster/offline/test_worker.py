from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lumen_hpc.cluster import manifest, snapshot, status, status_table, triage, worker
from lumen_hpc.cluster.attempts import Attempts
from lumen_hpc.cluster.stage import Run, Stage, Step, Task
from lumen_hpc.cluster.worker import Stop
from lumen_hpc.config.profile import Resources
from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """The handlers of signals are afterwards as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_only_set_a_flag_and_the_first_is_the_reason(own_handlers: None) -> None:
    stop = Stop()
    assert not stop.requested()
    for number in (signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM):
        os.kill(os.getpid(), number)
        assert stop.requested() and stop.reason == "SIGUSR2"


def test_what_the_package_logs_is_in_the_tasks_log(capsys: pytest.CaptureFixture) -> None:
    package = logging.getLogger("lumen_hpc")
    before = package.handlers, package.level, package.propagate
    try:
        package.handlers, package.propagate = [], False
        for _ in range(2):  # as a process that works on two packs
            worker._configure_logging()
        logging.getLogger("lumen_hpc.training.auto").info("train.zero=%d", 2)
        logging.getLogger("other").info("no part of it")
    finally:
        package.handlers, package.level, package.propagate = before
    assert capsys.readouterr().out == "train.zero=2\n"


@pytest.fixture
def step(run: Run, stages: list[Stage], monkeypatch: pytest.MonkeyPatch) -> Step:
    monkeypatch.setenv("LUMEN_SUBMISSION", "0001")
    return Step(stages[1])


def start(monkeypatch: pytest.MonkeyPatch, job: str, restart: int = 0) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))


def test_a_late_rank_does_not_take_its_own_attempt_for_a_killed_one(
    run: Run, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.profile.crashes = 0
    start(monkeypatch, "7")
    first = Attempts(run, step, 0, rank=0)
    assert first.shards_within_budget([0, 1]) == [0, 1]
    first.record_begin()
    late = Attempts(run, step, 0, rank=1)
    assert (late.number, late.shards_within_budget([0, 1])) == (first.number, [0, 1])

    start(monkeypatch, "8")
    second = Attempts(run, step, 0, rank=0)
    assert (second.number, second.shards_within_budget([0, 1])) == (2, [])
    start(monkeypatch, "7", restart=1)  # requeued: the same job, another attempt
    assert Attempts(run, step, 0, rank=1).number == 2


@pytest.mark.parametrize("crashes", [0, 1, 2])
def test_a_pack_is_given_up_after_exactly_its_crashes(
    run: Run, step: Step, monkeypatch: pytest.MonkeyPatch, crashes: int
) -> None:
    run.profile.crashes = crashes
    for attempt in range(crashes + 1):
        start(monkeypatch, str(attempt))
        attempts = Attempts(run, step, 0, rank=0)
        assert attempts.shards_within_budget([0]) == [0]
        attempts.record_begin()
    start(monkeypatch, "99")
    assert Attempts(run, step, 0, rank=0).shards_within_budget([0]) == []


def test_what_is_killed_after_it_was_asked_to_stop_is_a_preemption_and_no_crash(
    run: Run, step: Step, monkeypatch: pytest.MonkeyPatch, own_handlers: None
) -> None:
    """Its shard, or its checkpoint, takes longer than the site waits before it kills."""
    run.profile.crashes, run.profile.preemptions = 0, 1
    for attempt in range(2):
        start(monkeypatch, str(attempt))
        attempts = Attempts(run, step, 0, rank=0)
        assert attempts.shards_within_budget([0]) == [0]
        attempts.record_begin()
        stop = Stop()
        os.kill(os.getpid(), signal.SIGUSR2)
        stop.on_request(attempts.record_stop_request)  # as where the request comes before the attempt is on record
        os.kill(os.getpid(), signal.SIGTERM)
    folder = run.folder / step.name
    assert [row["event"] for row in manifest.read(folder / "attempts.jsonl")] == ["began", "asked"] * 2
    assert [row["job"] for row in triage.unended_attempts(folder)] == ["1"], "it has not ended"
    start(monkeypatch, "99")
    assert Attempts(run, step, 0, rank=0).shards_within_budget([0]) == []
    attempts.record_end("done")
    attempts.record_stop_request()
    assert triage.unended_attempts(folder) == [], "asked as it ends"


@pytest.mark.parametrize(
    ("gpus", "sees", "noted"), [(1, False, True), (1, True, False), (0, False, False), (1, None, False)]
)
def test_a_task_that_asks_for_gpus_and_sees_none_is_named_by_status(
    run: Run,
    stages: list[Stage],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    gpus: int,
    sees: bool | None,
    noted: bool,
) -> None:
    """A torch that does not fit the node's driver computes on the CPU, and everything else looks well."""
    step = Step(stages[0])
    monkeypatch.setenv("LUMEN_SUBMISSION", "0001")
    run.profile.resources[step.stage.resources] = Resources(gpus=gpus)
    torch = SimpleNamespace(__version__="2.13.0", cuda=SimpleNamespace(is_available=lambda: sees))
    if sees is None:  # the work needs no torch
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "torch", torch)
    start(monkeypatch, "7")
    for pack in (0, 1):
        attempts = Attempts(run, step, pack, rank=0)
        attempts.record_begin()
        attempts.record_end("done")
    found = status.read_files(run, [step.stage])[0]
    shown = status_table._render(status_table.parts(run, [found]))
    line = f"{step.name}: it asks for GPUs, and torch 2.13.0 sees none on {socket.gethostname()}; fix: "
    assert (shown.count(line), "torch 2.13.0 sees none" in capsys.readouterr().err) == (int(noted), noted)


def test_an_input_error_ends_the_tries_at_its_own_shards_only(
    run: Run, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, "7")
    attempts = Attempts(run, step, 0, rank=0)
    attempts.record_begin()
    attempts.record_failure([1], UserError("row 5 has no image"))
    attempts.record_failure([2], RuntimeError("a node's own trouble, which another try may not meet"))
    assert attempts.final_shards() == {1}
    assert attempts.final_shards(before=True) == set(), "what this attempt itself met"
    attempts.record_end("failed")
    start(monkeypatch, "8")
    assert Attempts(run, step, 0, rank=0).shards_within_budget([1, 2]) == [2]
    assert Attempts(run, step, 1, rank=0).shards_within_budget([1, 2]) == [1, 2], "another pack"
    monkeypatch.setenv("LUMEN_SUBMISSION", "0099")
    assert Attempts(run, step, 0, rank=0).shards_within_budget([1, 2]) == [1, 2], "the user has submitted again"


def test_garbage_is_collected_after_a_stages_imports_but_not_during_them(
    run: Run, stages: list[Stage], step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected = []
    work = SimpleNamespace(work=lambda task: collected.append(gc.isenabled()) or task.no_such_thing)
    monkeypatch.setitem(sys.modules, f"jobs.{step.stage.name}", work)
    start(monkeypatch, "7")
    task = Task(run, step, Ranks(), lambda: False, lambda *_: None)
    writer = worker._Writer(task, [Step(stages[0]), step], Attempts(run, step, 0, rank=0), SimpleNamespace())
    assert writer.write([0]) == 1 and "no_such_thing" in (run.folder / step.name / "failures.jsonl").read_text()
    assert collected == [False] and gc.isenabled()


def test_other_code_than_was_submitted_is_refused(tmp_path: Path) -> None:
    import jobs  # noqa: F401

    with pytest.raises(UserError, match=r"imports lumen_hpc from .*, not from .*/code/abc"):
        snapshot.require_submitted(tmp_path, "abc")


def test_a_scratch_folder_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LUMEN_SCRATCH", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"profile\.scratch=\$LOCAL cannot be used on .*File exists; name a folder"):
        worker._use_scratch("$LOCAL")
    monkeypatch.setenv("LUMEN_SCRATCH", "")
    with pytest.raises(UserError, match=r"where it is \(empty\)"):
        worker._use_scratch("$LOCAL")
