"""The job that dependants of a step wait for: `python -m lumen_hpc.cluster.gate RUN_FOLDER SUBMISSION_FOLDER`.

It starts as soon as one link of the step has succeeded, or after the last one (dependencies.py). It verifies that the
manifest has a line for every shard of its packs. Then it cancels the links that are left, and succeeds; or it cancels
what waits for it, and fails. Where nodes may not cancel jobs, Slurm alone decides the same: a link that follows a
success can never start, and neither can what waits for a gate that failed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import manifest, plan_file, slurm
from lumen_hpc.files import visibility_delay


def main(folder: Path, submission: Path) -> int:
    """Exit code of the gate that runs as this job."""
    job = os.environ["SLURM_JOB_ID"]
    own = next(record for record in plan_file.wait_for(submission, job)["jobs"] if record["id"] == job)
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
