"""A submission's plan.json as its own jobs read it: gates (gate.py) and tasks (worker.py)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import slurm
from lumen_hpc.files import visibility_delay

POLL_INTERVAL_S = 0.2
"""How often a job looks for itself."""


def read(submission: Path) -> dict[str, Any]:
    """The plan.json in a submission's folder."""
    return json.loads((submission / "plan.json").read_text())


def wait_for(submission: Path, job: str) -> dict[str, Any]:
    """The plan.json once it has this job: the submitting command adds each job when sbatch has answered.

    SystemExit where it never has the job: sbatch said that it failed, and Slurm took the job all the same. A later
    submission has given that job's work to another.
    """
    deadline = time.monotonic() + slurm.ANSWER_TIMEOUT_S + visibility_delay(submission)
    while True:
        plan = read(submission)
        if any(record["id"] == job for record in plan["jobs"]):
            return plan
        if time.monotonic() > deadline:
            raise SystemExit(f"{submission / 'plan.json'} has no job {job}: its submission was not completed")
        time.sleep(POLL_INTERVAL_S)
