"""What a job of Slurm runs: `python -m lumen_hpc.cluster.task RUN_FOLDER SUBMISSION STEP FIRST_PACK`.

A task of an array takes the pack of its own number after the first. The code, jobs/ included, is the snapshot that the
script put into PYTHONPATH.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from lumen_hpc.cluster import ranks, worker
from lumen_hpc.cluster.stage import Pipeline


def main(folder: str, submission: str, step: str, first_pack: str) -> None:
    """Runs the pack of this task; exits non-zero unless all its shards are done."""
    pipeline: Pipeline = importlib.import_module("jobs").PIPELINE
    pack = int(first_pack) + int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    place = Path(folder) / "submissions" / submission
    print(worker.run_pack(pipeline, folder, str(place), step, pack, ranks.of_slurm(os.environ)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
