"""Demo only: trains the weights that cannot be downloaded, on phantoms of another seed than the run's.

The small expert (tower and projector trained as a classifier) and the tiny base NVILA that starts from it stand in
for TorchXRayVision's weights and for NVILA-8B. A run that names a real base has no such stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.training import speed

STAGE = Stage(
    name="pretrain",
    paper="",
    about="stand-in weights for the demo",
    resources="cpu",
    settings=(
        "seed",
        "pretrain",
        "experts.in_prompt",
        "experts.thresholds",
        "instruct.expert_text",
        "instruct.max_images",
        "instruct.clinical",
        "instruct.labs",
        "instruct.outcomes",
        "instruct.timelines",
    ),
    progress=lambda settings, folder: speed.pretraining_progress(folder, settings.pretrain),
    enabled=lambda settings: settings.train.base == "tiny" or settings.experts.model == "phantom",
    needs="train.base=tiny or experts.model=phantom, as in recipe=demo",
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields one row with the digest of each file of weights."""
    from lumen_hpc.outcomes import phantom_texts
    from lumen_hpc.training import pretrain

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        settings = task.settings
        for path in pretrain.pretrain(
            settings.pretrain, settings.experts, settings.instruct, settings.seed, task.folder, task.beat,
            phantom_texts.texts(settings.instruct),
        ):  # fmt: skip
            yield task.artefact(path)

    return process
