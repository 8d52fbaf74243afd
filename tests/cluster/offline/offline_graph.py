"""Finished shards without a worker, and submissions to a stand-in for Slurm."""

from __future__ import annotations

import jobs
from lumen_hpc.cluster import manifest, submit
from lumen_hpc.cluster.plan import inputs
from lumen_hpc.cluster.shards import write_shard
from lumen_hpc.cluster.stage import Pipeline, Run, Shard, Stage, Step
from lumen_hpc.config.config_file import digest
from lumen_hpc.config.request import Request


def finish(run: Run, step: Step, graph: list[Step], shards: list[int] | None = None, seconds: float = 1.0) -> None:
    """Writes shards of a step as a worker would."""
    count = step.stage.shards(run.settings)
    for index in range(count) if shards is None else shards:
        folder = run.folder / step.name
        rows = [{"row": index, "seconds": seconds}]
        written = write_shard(folder, Shard(index, count), rows, step.stage.volatile)
        line = {
            "shard": index,
            "of": count,
            "sha256": written.sha256,
            "content": written.content,
            "bytes": written.bytes,
            "mtime_ns": written.mtime_ns,
            "files": [],
            "inputs": inputs(run, step, graph)[index],
            "config": digest(run.settings, step.stage.settings),
            "seconds": seconds,
            "gpu_seconds": seconds,
            "node": "n1",
        }
        manifest.append(folder / manifest.NAME, line)


def submit_chain(request: Request, stages: list[Stage]) -> tuple[Run, list[dict]]:
    run = submit.open_run(request)
    submit.prepare_folder(run)
    plans, upstream_job_ids = submit.make_plans(request, stages, run)
    return run, submit.submit(request, Pipeline(tuple(stages), jobs.run_pack), run, plans, upstream_job_ids).jobs
