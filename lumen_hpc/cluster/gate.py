"""The job that dependants of a step wait for: `python -m lumen_hpc.cluster.gate RUN_FOLDER SUBMISSION_FOLDER`.

It starts as soon as one link of the step has succeeded, or after the last one (dependencies.py). It verifies that the
manifest has a line for every shard of its packs. Then it cancels the links that are left, and succeeds; or it cancels
what waits for it, and fails. Where nodes may not cancel jobs, Slurm alone decides the same: a link that follows a
success can never start, and neither can what waits for a gate that failed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import manifest, slurm
from lumen_hpc.files import visibility_delay


def main(folder: Path, submission: Path) -> int:
    """Exit code of the gate that runs as this job."""
    own = record(submission, os.environ["SLURM_JOB_ID"])
    step, shards = own["step"], own["shards"]
    if missing := _missing(folder / step, own):
        print(
            f"{step}: {len(missing)} of {len(shards)} shards are missing; launch.py status says why",
            flush=True,
        )
        slurm.cancel_pending(_dependants(folder, own["id"]))
        return 1
    slurm.cancel_pending([id_ for _, id_ in own["after"]])
    (folder / step / "logs" / f"{own['id']}_0_log.out").unlink(missing_ok=True)
    return 0


def record(submission: Path, job: str) -> dict[str, Any]:
    """This job's entry in plan.json, which the submitting command writes once sbatch has answered it.

    SystemExit where none comes: sbatch said that it failed, and Slurm took the job all the same. What the job would do,
    a later submission has given to another.
    """
    deadline = time.monotonic() + slurm.ANSWER_TIMEOUT_S + visibility_delay(submission)
    while True:
        for record in json.loads((submission / "plan.json").read_text())["jobs"]:
            if record["id"] == job:
                return record
        if time.monotonic() > deadline:
            raise SystemExit(f"{submission / 'plan.json'} has no job {job}: its submission was not completed")
        time.sleep(0.2)


def _missing(folder: Path, own: dict[str, Any]) -> list[int]:
    """Shards without a line. Files are verified, and written again if corrupt, by the tasks that read them."""
    deadline = time.monotonic() + visibility_delay(folder)
    while True:
        lines = manifest.latest(folder)
        expected = (own["of"], own["config"])
        missing = [
            index for index in own["shards"]
            if index not in lines or (lines[index]["of"], lines[index]["config"]) != expected
        ]  # fmt: skip
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.5)


def _dependants(folder: Path, gate: str) -> list[str]:
    """Jobs of the run that can never start once the gate has failed, the last ones first."""
    from lumen_hpc.cluster import dependencies, live

    records = [job for record in live.submissions(folder) for job in record["jobs"]]
    return dependencies.unreachable(records, [gate])[::-1]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
