"""What a job of Slurm makes of its variables and its words."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs
from lumen_hpc.cluster import task, worker
from lumen_hpc.cluster.stage import Ranks


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-3]", "n1"),
        ("n[03-05,9],m1", "n03"),
        ("gpu-[7,9]-ib,x", "gpu-7-ib"),
        ("r[1-2]n[10-12]", "r1n10"),
    ],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert task.first_host(nodes) == first


def test_a_process_of_an_array_task(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
    }  # fmt: skip
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    expected = Ranks(rank=5, world_size=8, local_rank=1, master_addr="n1", nodes=2, job="7_2-0")
    assert task.ranks(given) == expected
    alone = task.ranks({"SLURM_JOB_ID": "9", "SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": "3"})
    assert alone == Ranks(master_addr="n1", job="9-3")


def test_a_task_takes_the_pack_of_its_number_after_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(worker, "run_pack", lambda *words: calls.append(words) or "done")
    for name, value in {"SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(name, value)
    task.main(str(tmp_path), "0002", "answer-a", "1000")
    (words,) = calls
    assert words[:5] == (jobs.PIPELINE, str(tmp_path), str(tmp_path / "submissions" / "0002"), "answer-a", 1003)
