"""What a job of Slurm makes of its words."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs
from lumen_hpc.cluster import task, worker


def test_a_task_takes_the_pack_of_its_number_after_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(worker, "run_pack", lambda *words: calls.append(words) or "done")
    for name, value in {"SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(name, value)
    task.main(str(tmp_path), "0002", "answer-a", "1000")
    (words,) = calls
    assert words[:5] == (jobs.PIPELINE, str(tmp_path), str(tmp_path / "submissions" / "0002"), "answer-a", 1003)
