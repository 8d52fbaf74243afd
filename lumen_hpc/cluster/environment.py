"""Drops the variables that a submission must not inherit from its shell: the profile alone decides.

`SBATCH_…` variables override the profile in silence, those of an allocation (`srun`, `salloc`, an editor on a node)
bind the new jobs to its cores, those of another launcher (mpirun, torchrun) say which process this is, and `SQUEUE_…`
and the like change what Slurm's commands print.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lumen_hpc.errors import UserError

OVERRIDE_PREFIXES = ("SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SACCTMGR_", "SCANCEL_", "SCONTROL_")
JOB_PREFIXES = (
    "SLURM_", "SLURMD_", "SUBMITIT_", "PMI_", "PMI2_", "PMIX_", "OMPI_", "PRTE_", "MPI_LOCAL", "HYDI_",
    "MV2_COMM_WORLD_", "PALS_", "TORCHELASTIC_",
)  # fmt: skip
"""What Slurm, MPI's launchers and torchrun give to the processes that they start."""
EXACT_NAMES = {
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("OMP_PLACES", "OMP_PROC_BIND", "OMP_THREAD_LIMIT", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_HW_SUBSET"),
    *("SHELLOPTS", "BASHOPTS", "POSIXLY_CORRECT", "BASH_COMPAT"),
}
"""GPUs, ranks and cores of this process, and options of this shell that the jobs' bash would take over."""
SCRIPT_COMMANDS = (
    "apptainer", "cat", "echo", "exec", "exit", "export", "grep", "mktemp", "python", "rm", "scontrol",
    "set", "shift", "singularity", "srun", "trap", "type", "unset",
)  # fmt: skip
"""Commands of the batch scripts, for which an exported function of this shell would stand in."""
KEPT_VARIABLES = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS"}
"""Which cluster, and who: not properties of a job."""


def drop(report: bool = False) -> None:
    """Removes such variables from this process's environment; `report` names on stderr those that would change jobs.

    For the many variables of an allocation, it names the job's id. Raises UserError where several clusters are named.
    """
    if "," in (clusters := os.environ.get("SLURM_CLUSTERS", "")) or clusters == "all":
        raise UserError(f"SLURM_CLUSTERS={clusters}: the jobs of a run are on one cluster, which numbers them; name it")
    dropped = _remove_variables()
    if not report:
        return
    job = dropped.get("SLURM_JOB_ID")
    reported_names = [
        name for name in dropped
        if name.startswith("SBATCH_") or name == "SLURM_EXPORT_ENV" or not (job or name.startswith(OVERRIDE_PREFIXES))
    ]  # fmt: skip
    if reported_names:
        print(f"lumen: ignored, because the profile decides: {', '.join(sorted(reported_names))}", file=sys.stderr)
    if job:
        print(f"lumen: started within job {job}: its variables are not passed to the new jobs", file=sys.stderr)


@contextmanager
def outside_the_job() -> Iterator[None]:
    """For a job that submits: takes its own variables away for the length of the block."""
    dropped = _remove_variables()
    try:
        yield
    finally:
        os.environ |= dropped


def _remove_variables() -> dict[str, str]:
    exact_names = EXACT_NAMES | {f"BASH_FUNC_{name}%%" for name in SCRIPT_COMMANDS}
    names = [
        name for name in os.environ
        if name not in KEPT_VARIABLES and (name.startswith(OVERRIDE_PREFIXES + JOB_PREFIXES) or name in exact_names)
    ]  # fmt: skip
    return {name: os.environ.pop(name) for name in names}
