"""Training alone, for its tests on a real cluster: given records, and the project's own jobs/train.py."""

from __future__ import annotations

from jobs import instruct, train
from lumen_hpc.cluster.stage import Pipeline


def run_pack(folder: str, submission: str, step: str, pack: int) -> str:
    """As in the project's own jobs/."""
    from lumen_hpc.cluster import worker

    return worker.run_pack(PIPELINE, folder, submission, step, pack)


PIPELINE = Pipeline((instruct.STAGE, train.STAGE), run_pack)
