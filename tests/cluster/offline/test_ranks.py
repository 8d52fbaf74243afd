"""Which process of its job a process is, and which GPU it takes."""

from __future__ import annotations

import pytest

from lumen_hpc.cluster import ranks
from lumen_hpc.distributed import Ranks


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
    assert ranks.first_host(nodes) == first


def test_a_process_of_an_array_task(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
    }  # fmt: skip
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    expected = Ranks(rank=5, world_size=8, local_rank=1, master_addr="n1", nodes=2, job="7_2-0")
    assert ranks.of_slurm(given) == expected
    alone = ranks.of_slurm({"SLURM_JOB_ID": "9", "SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": "3"})
    assert alone == Ranks(master_addr="n1", job="9-3")


@pytest.mark.parametrize(("visible", "device"), [("0,1,2,3", 3), ("GPU-5f", 0), (None, 3), ("", 3)])
def test_a_rank_that_sees_one_gpu_uses_it(monkeypatch: pytest.MonkeyPatch, visible: str | None, device: int) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ranks.device(3) == device
