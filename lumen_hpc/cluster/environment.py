"""Drops what a submission must not inherit from the shell it is started in: the profile alone decides.

`SBATCH_…` variables override the profile in silence, those of an allocation (`srun`, `salloc`, an editor on a node)
bind the new jobs to its cores, and `SQUEUE_…` and the like change what Slurm's commands print.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OVERRIDES = ("SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SACCTMGR_", "SCANCEL_")
OF_A_JOB = ("SLURM_", "SLURMD_", "SUBMITIT_", "PMI_", "PMIX_", "OMPI_", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
KEPT = {"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS"}
"""Which cluster, and who: not properties of a job."""


def drop(report: bool = False) -> None:
    """Removes such variables from this process's environment; `report` names on stderr those that would change jobs."""
    dropped = _take()
    if not report:
        return
    overrides = sorted(name for name in dropped if name.startswith("SBATCH_") or name == "SLURM_EXPORT_ENV")
    if overrides:
        print(f"lumen: ignored, because the profile decides: {', '.join(overrides)}", file=sys.stderr)
    if job := dropped.get("SLURM_JOB_ID"):
        print(f"lumen: started within job {job}: its variables are not passed to the new jobs", file=sys.stderr)


@contextmanager
def outside_the_job() -> Iterator[None]:
    """For a job that submits: takes its own variables away for the length of the block."""
    dropped = _take()
    try:
        yield
    finally:
        os.environ |= dropped


def _take() -> dict[str, str]:
    names = [name for name in os.environ if name.startswith(OVERRIDES + OF_A_JOB) and name not in KEPT]
    return {name: os.environ.pop(name) for name in names}
