"""Section 2.3: expert models predict findings, age, race and view for every study, as calibrated probabilities.

Reads prepare/studies.jsonl; shard k of n takes a contiguous part of it and writes one row for each study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import estimate
from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.config.schema import Settings


def external(settings: Settings) -> list[str]:
    """The file of an own expert's, such as a table; a folder of weights has digests of its own."""
    weights = settings.experts.weights
    return [weights] if weights and Path(weights).expanduser().is_file() else []


STAGE = Stage(
    name="experts",
    paper="2.3",
    about="expert predictions for every study",
    resources="gpu",
    settings=(  # not what instruct alone reads: the wording
        "seed",
        "experts.shards",
        "experts.model",
        "experts.pathologies",
        "experts.extra",
        "experts.weights",
    ),
    after=("prepare", "pretrain"),
    shards=lambda settings: settings.experts.shards,
    external=external,
    gpu_hours=estimate.experts,
    load_hours=estimate.experts_load,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Loads the experts once; yields one prediction row for each study."""
    from lumen_hpc.data.records import Records
    from lumen_hpc.experts.protocol import open_expert, predict

    studies = Records(task.run.path("prepare") / "studies.jsonl")
    expert = open_expert(task.settings.experts, cache=task.run.profile.cache, pretrained=task.run.path("pretrain"))

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        part = shard.span(len(studies))
        task.expected = len(part)
        yield from predict(expert, [studies[index] for index in part])

    return process
