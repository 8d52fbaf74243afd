"""Runs on this machine: what Ctrl-C does while a step starts."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from rich.console import Console

import jobs
from lumen_hpc.cluster import local, submit
from lumen_hpc.cluster.stage import Pipeline, Stage
from lumen_hpc.config.request import Request


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


def test_ctrl_c_while_a_step_starts_stops_the_run_and_every_task_that_was_started(
    request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(submitit, "LocalExecutor", Interrupted)
    request_here.profile.executor = "local"
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    run = submit.open_run(request_here)
    plans, _ = submit.make(request_here, stages, run, {})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with submit.writing(run), pytest.raises(KeyboardInterrupt):
            local.run_all(request_here, pipeline, run, plans, Console(file=io.StringIO()))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert [job.received for job in Interrupted.started] == [[signal.SIGTERM]]
