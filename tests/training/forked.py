"""Processes for ranks, forked from one that has imported torch and DeepSpeed: an import costs more than a run's steps.

What starts is as fresh as a new interpreter: the process that it comes from has only imported. It shares the seed of
hashes with it and does not end as an interpreter does; tests/whole and tests/cluster start ranks as a user does.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
IMPORTED = ["lumen_hpc.training.train", "lumen_hpc.cluster.worker", "transformers.models.qwen2.modeling_qwen2"]
"""What every rank needs; none of it starts a thread, which a fork would lose."""


class Rank:
    """`python SCRIPT WORDS` with what it prints in a file, under the names of subprocess.Popen."""

    def __init__(self, script: str, words: list[str], printed: Path) -> None:
        self._printed = printed
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        with patch.dict(os.environ, ENVIRONMENT):  # the process that ranks are forked from has it from its start
            self._process = context.Process(target=_run, args=(script, words, str(printed)), daemon=True)
            self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it printed, once it has ended."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(str(self._printed), timeout or 0, self._printed.read_bytes())
        return self._printed.read_text(), None


def _run(script: str, words: list[str], printed: str) -> None:
    multiprocessing.current_process().daemon = False  # which it is to end with the tests; such may start none
    gc.freeze()  # what the process it comes from has imported
    with open(printed, "wb", 0) as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")
