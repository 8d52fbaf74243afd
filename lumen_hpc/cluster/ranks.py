"""Which process of its job this is, and which GPU is its own: by Slurm's variables, or submitit's on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from lumen_hpc.cluster.attempts import job_id
from lumen_hpc.distributed import Ranks


def of_slurm(environment: Mapping[str, str]) -> Ranks:
    """By what Slurm tells a process of its job."""
    return Ranks(
        rank=int(environment.get("SLURM_PROCID", "0")), world_size=int(environment.get("SLURM_NTASKS", "1")),
        local_rank=device(int(environment.get("SLURM_LOCALID", "0"))),
        master_addr=first_host(environment["SLURM_JOB_NODELIST"]),
        nodes=int(environment.get("SLURM_JOB_NUM_NODES", "1")),
        job=f"{job_id(environment)}-{environment.get('SLURM_RESTART_COUNT', '0')}",
    )  # fmt: skip


def of_this_machine() -> Ranks:
    """By what submitit tells the process; a single one where it was not started by submitit."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return Ranks()
    from submitit import JobEnvironment

    environment = JobEnvironment()
    return Ranks(
        rank=environment.global_rank, world_size=environment.num_tasks, local_rank=device(environment.local_rank),
        master_addr=environment.hostnames[0], nodes=environment.num_nodes, job=f"{environment.job_id}-0",
    )  # fmt: skip


def first_host(nodes: str) -> str:
    """The first host of Slurm's list, such as `n[03-05,9],m1`; containers have no scontrol to ask."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else ""


def device(local_rank: int) -> int:
    """The GPU of a process among those that it sees: a site may show each process its own alone (--gpus-per-task)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("ROCR_VISIBLE_DEVICES", ""))
    return 0 if visible and "," not in visible else local_rank
