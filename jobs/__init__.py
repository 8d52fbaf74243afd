"""One file a stage, and the one function that a submitted job calls."""

from __future__ import annotations

from jobs import (
    evaluate,
    experts,
    export,
    export_text_llama,
    instruct,
    judge,
    outcomes,
    predict,
    prepare,
    pretrain,
    prognose,
    rewrite,
    serve,
    train,
)
from lumen_hpc.cluster.stage import Pipeline

MODULES = (
    prepare,
    outcomes,
    pretrain,
    experts,
    export_text_llama,
    rewrite,
    instruct,
    train,
    predict,
    prognose,
    judge,
    evaluate,
    serve,
    export,
)


def run_pack(folder: str, submission: str, step: str, pack: int) -> str:
    """Runs one pack of a step on this machine: what submitit pickles, with nothing but names."""
    from lumen_hpc.cluster import worker

    return worker.run_pack(PIPELINE, folder, submission, step, pack)


PIPELINE = Pipeline(tuple(module.STAGE for module in MODULES), run_pack)
