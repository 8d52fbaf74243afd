"""What a job of Slurm runs: `python -m lumen_hpc.cluster.task RUN_FOLDER SUBMISSION STEP FIRST_PACK`.

A task of an array takes the pack of its own number after the first. The code, jobs/ included, is the snapshot that the
script put into PYTHONPATH.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from lumen_hpc.cluster import worker
from lumen_hpc.cluster.attempts import job_id
from lumen_hpc.cluster.stage import Pipeline, Ranks


def main(folder: str, submission: str, step: str, first_pack: str) -> None:
    """Runs the pack of this task; exits non-zero unless all its shards are done."""
    pipeline: Pipeline = importlib.import_module("jobs").PIPELINE
    pack = int(first_pack) + int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    place = Path(folder) / "submissions" / submission
    print(worker.run_pack(pipeline, folder, str(place), step, pack, ranks(os.environ)), flush=True)


def ranks(environment: Mapping[str, str]) -> Ranks:
    """Which of the job's processes this is, by what Slurm tells it."""
    return Ranks(
        rank=int(environment.get("SLURM_PROCID", "0")), world_size=int(environment.get("SLURM_NTASKS", "1")),
        local_rank=worker.device(int(environment.get("SLURM_LOCALID", "0"))),
        master_addr=first_host(environment["SLURM_JOB_NODELIST"]),
        nodes=int(environment.get("SLURM_JOB_NUM_NODES", "1")),
        job=f"{job_id(environment)}-{environment.get('SLURM_RESTART_COUNT', '0')}",
    )  # fmt: skip


def first_host(nodes: str) -> str:
    """The first host of Slurm's list, such as `n[03-05,9],m1`; containers have no scontrol to ask."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else ""


if __name__ == "__main__":
    main(*sys.argv[1:])
