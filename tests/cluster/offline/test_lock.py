from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lumen_hpc.cluster import lock

HOLD = """
import sys, time
from pathlib import Path
from lumen_hpc.cluster import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holding(folder: Path) -> subprocess.Popen:
    """Another process, once it holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_one_command_at_a_time_has_a_run_and_the_other_learns_which(tmp_path: Path):
    process = holding(tmp_path)
    try:
        assert lock.is_held(tmp_path)
        with pytest.raises(lock.Busy, match=f"process {process.pid} on {socket.gethostname()}"), lock.held(tmp_path):
            pass
        assert lock.is_held(tmp_path), "who was refused must not take the lock away"
    finally:
        process.kill()


def test_the_lock_goes_with_the_command(tmp_path: Path):
    with lock.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [] and not lock.is_held(tmp_path)


def test_the_lock_of_a_killed_command_is_taken_over_even_if_its_process_id_is_in_use_again(tmp_path: Path):
    process = holding(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / lock.LOCK).write_text(f"{socket.gethostname()} {os.getppid()}")  # a living process, but another
    assert not lock.is_held(tmp_path)
    with lock.held(tmp_path):
        assert lock.is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


HOLD_AND_SUBMIT = """
import sys
from pathlib import Path
from lumen_hpc.cluster import lock, slurm
sbatch = 'touch "$0/begun"; while [ ! -e "$0/end" ]; do sleep 0.05; done'
with lock.held(Path(sys.argv[1])):
    slurm.ask("sh", "-c", sbatch, sys.argv[1], own_session=True)
"""


def test_the_lock_of_a_killed_command_is_taken_over_once_its_sbatch_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What sbatch submits meanwhile would be neither recorded nor in the queue yet."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_AND_SUBMIT, tmp_path])
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert lock.is_held(tmp_path)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        (tmp_path / "end").touch()
        time.sleep(seconds)

    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
    with lock.held(tmp_path):
        assert pauses


def test_the_lock_of_another_host_is_left_alone(tmp_path: Path):
    (tmp_path / lock.LOCK).write_text("login2 4711")
    assert lock.is_held(tmp_path)
    with pytest.raises(lock.Busy, match=r"process 4711 on login2.*remove"), lock.held(tmp_path):
        pass
    assert (tmp_path / lock.LOCK).read_text() == "login2 4711"


def test_a_folder_that_another_command_has_removed_is_one_line(tmp_path: Path):
    with pytest.raises(lock.Busy, match="try again"), lock.held(tmp_path / "removed"):
        pass
