"""The jobs/ of the chaining benchmark: one step, and another that waits for it."""

from __future__ import annotations

from jobs import first, second
from lumen_hpc.cluster.stage import Pipeline


def run_pack(folder: str, submission: str, step: str, pack: int) -> str:
    """As in the project's own jobs/."""
    from lumen_hpc.cluster import worker

    return worker.run_pack(PIPELINE, folder, submission, step, pack)


PIPELINE = Pipeline((first.STAGE, second.STAGE), run_pack)
