"""Stages for the tests of the cluster side, small and controllable. `conftest.checkout` installs them as `jobs/`.

numbers → squares (array) → checks (array, shard by shard) → total. What a test wants to go wrong it asks for with
files in `control-<run>/` beside the run: see `witness.py`.
"""

from __future__ import annotations

from jobs import checks, numbers, squares, total
from lumen_hpc.cluster.stage import Pipeline


def run_pack(folder: str, submission: str, step: str, pack: int) -> str:
    """As in the project's own jobs/."""
    from lumen_hpc.cluster import worker

    return worker.run_pack(PIPELINE, folder, submission, step, pack)


PIPELINE = Pipeline((numbers.STAGE, squares.STAGE, checks.STAGE, total.STAGE), run_pack)
