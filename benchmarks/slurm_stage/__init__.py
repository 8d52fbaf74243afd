"""The jobs/ of the shard benchmark: one array of trivial shards, run by the project's own machinery."""

from __future__ import annotations

from jobs import trivial
from lumen_hpc.cluster.stage import Pipeline


def run_pack(folder: str, submission: str, step: str, pack: int) -> str:
    """As in the project's own jobs/."""
    from lumen_hpc.cluster import worker

    return worker.run_pack(PIPELINE, folder, submission, step, pack)


PIPELINE = Pipeline((trivial.STAGE,), run_pack)
