"""Section 2.5: each model answers the test questions.

Reads instruct/lumen-test.jsonl and the model's final weights (the base for `nvila`); shard k of n answers a
contiguous part, the same part for every model, so that judge can follow shard by shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lumen_hpc.cluster import estimate
from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.models import repeats, training_number
from lumen_hpc.weights import verify

STAGE = Stage(
    name="predict",
    paper="2.5",
    about="answers to the test questions",
    resources="gpu",
    settings=("seed", "predict.max_new_tokens", "predict.controls", "predict.shards", "train.base", "train.max_tokens"),
    after=("pretrain", "instruct", "train-{model}"),
    shards=lambda settings: settings.predict.shards,
    models=lambda settings: [
        *settings.predict.models,
        *repeats(settings.predict.models, settings.train.seeds),
    ],
    volatile=("seconds",),
    gpu_hours=estimate.predict,
    load_hours=estimate.predict_load,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Loads the model once; yields one row per question."""
    from lumen_hpc.data import probes
    from lumen_hpc.data.records import Records
    from lumen_hpc.serving.predictor import open_predictor

    questions = Records(task.run.path("instruct") / "lumen-test.jsonl")
    weights = verify(task.run.weights(task.model), task.run.profile.cache)
    settings = task.settings.predict
    if training_number(task.model):  # the spread needs only the answers
        settings = replace(settings, controls=[control for control in settings.controls if control == probes.CONTROL])
    limit = task.settings.train.max_tokens
    predictor = open_predictor(weights, settings, model=task.model, max_tokens=limit)

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        part = shard.span(len(questions))
        task.expected = len(part) * (1 + len(settings.controls))  # some questions have no such control
        yield from predictor.answer(questions, part)

    return process
