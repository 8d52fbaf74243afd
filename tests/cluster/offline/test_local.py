"""Runs on this machine: what Ctrl-C does while a step starts, what an edit does, and what tasks do with memory."""

from __future__ import annotations

import io
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from rich.console import Console

import jobs
from lumen_hpc.cluster import local, manifest, orphans, submit
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.stage import Pipeline, Stage, Step
from lumen_hpc.config.profile import Resources
from lumen_hpc.config.request import Request
from sandbox import checkout


class Interrupted:
    """Stands in for submitit's executor: at each start of a task, its caller meets ^C."""

    started: list[SimpleNamespace]

    def __init__(self, folder: Path) -> None:
        type(self).started = []

    def update_parameters(self, **_: object) -> None:
        pass

    def submit(self, *_: object) -> SimpleNamespace:
        os.kill(os.getpid(), signal.SIGINT)
        received: list[int] = []

        def done() -> bool:
            assert received, "^C was lost"
            return True

        process = SimpleNamespace(send_signal=received.append)
        self.started.append(SimpleNamespace(done=done, received=received, _process=process))
        return self.started[-1]


@pytest.fixture
def interrupted_run(request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose first task was started, in `os.environ`, and interrupted."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(submitit, "LocalExecutor", Interrupted)
    request_here.profile.executor = "local"
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    run = submit.open_run(request_here)
    plans, _ = submit.make_plans(request_here, stages, run, {})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with submit.writing(run), pytest.raises(KeyboardInterrupt):
            local.run_all(request_here, pipeline, run, plans, Console(file=io.StringIO()))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_a_step_starts_stops_the_run_and_every_task_that_was_started(interrupted_run: None) -> None:
    assert [job.received for job in Interrupted.started] == [[signal.SIGTERM]]


def plan_of(resources: str, cpus: int) -> StepPlan:
    step = Step(Stage(name="one", paper="", about="", settings=(), resources=resources))
    return StepPlan(step, 1, [0], [[0]], Resources(cpus=cpus))


def test_two_steps_of_cpu_resources_share_cores_and_no_others_do() -> None:
    cpu, train, one = plan_of("cpu", 2), plan_of("train", 2), plan_of("judge", 1)
    assert local._may_start(train, [], 1), "a step that is larger than the machine runs alone"
    assert local._may_start(one, [one], 2) and not local._may_start(one, [one, one], 2)
    assert local._may_start(cpu, [cpu], 2) and not local._may_start(cpu, [cpu, cpu], 2)
    assert not local._may_start(cpu, [train], 2) and not local._may_start(train, [cpu], 2)


REUSE = """
import resource
import numpy as np
def use():
    return [np.ones(3 << 20, np.uint8) for _ in range(8)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""The page faults of 24 MiB of memory that is freed and taken again ten times: 6,144 pages each time, or none."""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="the settings are glibc's")
def test_a_task_keeps_the_memory_that_it_frees(interrupted_run: None) -> None:
    faults = subprocess.check_output([sys.executable, "-c", REUSE], env=os.environ, text=True)
    assert int(faults) < 1000


def test_an_edit_during_a_run_does_not_reach_the_steps_to_come(tmp_path: Path) -> None:
    own = checkout.make(tmp_path / "checkout", jobs=Path(__file__).parents[1] / "chain")
    runs, control = tmp_path / "runs", tmp_path / "runs" / "control-edited"
    control.mkdir(parents=True)
    (control / "hold-numbers-0").touch()
    words = ("stage=full", "profile=local", "recipe=demo", "run=edited", f"runs={runs}", "experts.shards=1")
    command = [sys.executable, "launch.py", *words]
    with subprocess.Popen(command, cwd=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launch:
        try:
            while not (control / "computed.txt").exists():
                assert launch.poll() is None, launch.communicate()[0]
                time.sleep(0.1)
            (own / "jobs" / "total.py").write_text("raise RuntimeError('edited')\n")
        finally:
            (control / "hold-numbers-0").unlink()
        output = launch.communicate()[0]
    assert launch.returncode == 0, output
    assert len(list((runs / "edited" / "code").iterdir())) == 1


@pytest.mark.parametrize("how", ["INT", "HUP", "TERM"])
def test_whatever_ends_the_command_lets_its_tasks_save(tmp_path: Path, how: str) -> None:
    """A terminal sends Ctrl-C and its own end to all processes, `timeout` SIGTERM to the command alone."""
    own = checkout.make(tmp_path / "checkout", jobs=Path(__file__).parents[1] / "chain")
    runs, control = tmp_path / "runs", tmp_path / "runs" / "control-ended"
    control.mkdir(parents=True)
    hold = control / "hold-numbers-0"
    hold.touch()
    words = ("stage=full", "profile=local", "recipe=demo", "run=ended", f"runs={runs}", "experts.shards=1")
    process = subprocess.Popen(
        [sys.executable, "launch.py", *words], cwd=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in orphans.TERMINAL_SIGNALS],
    )  # fmt: skip
    with process:
        try:
            while not (control / "computed.txt").exists():
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.1)
            (os.kill if how == "TERM" else os.killpg)(process.pid, signal.Signals[f"SIG{how}"])
            time.sleep(2)  # submitit's controller would have killed them after one
        finally:
            hold.unlink()
        output = process.communicate()[0]
    assert process.returncode == 130 and "Traceback" not in output, output
    assert len(list(manifest.read(runs / "ended" / "numbers" / manifest.NAME))) == 1, "the shard was lost"
