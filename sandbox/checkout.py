"""A copy of the project with other stages: tests and benchmarks run small ones through the real command line."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROFILE = """\
extends: slurm
about: The cluster that the tests start; tests/cluster/slurm.py.
recipe: demo
resources:
  cpu: {partition: cpu, cpus: 1, mem_gb: 1, time_min: 10}
  gpu: {partition: h100, gpus: 1, cpus: 1, mem_gb: 1, time_min: 10, tasks: 4}
  judge: {partition: h100, gpus: 2, tasks_per_node: 1, cpus: 1, mem_gb: 1, time_min: 10, tasks: 4}
  train: {partition: h100, nodes: 2, gpus: 4, tasks_per_node: 1, cpus: 1, mem_gb: 1, time_min: 10, successors: 1}
"""


def make(folder: Path, jobs: Path) -> Path:
    """Put launch.py, lumen_hpc, the profiles and a profile `test` into `folder`, with the files of `jobs` as jobs/."""
    leave_out = shutil.ignore_patterns("__pycache__")
    for name in ("lumen_hpc", "cluster_profiles"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
    shutil.copytree(jobs, folder / "jobs", ignore=leave_out)
    shutil.copy(ROOT / "launch.py", folder)
    (folder / "cluster_profiles" / "test.yaml").write_text(PROFILE)
    return folder
