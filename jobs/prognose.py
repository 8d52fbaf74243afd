"""Each model that trains on outcomes answers the outcome questions of the test split, with its probability of yes.

Reads instruct/outcomes-test.jsonl and the model's final weights; shard k of n answers a contiguous part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lumen_hpc.cluster import estimate
from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.models import models_trained_on

ANSWER_TOKENS = 32
"""The sentences are short, and the probability of yes is that of the first token."""
LINE_TOKENS = 12
"""Of each finding's states, where a findings line comes before the sentence."""


STAGE = Stage(
    name="prognose",
    paper="",
    about="answers to the outcome questions, with their probability",
    resources="gpu",
    settings=("seed", "predict.shards", "train.base", "train.max_tokens"),
    after=("pretrain", "instruct", "train-{model}"),
    shards=lambda settings: settings.predict.shards,
    models=lambda settings: models_trained_on("outcome", settings.predict.models),
    needs="lumen-outcomes in predict.models, and instruct.outcomes",
    volatile=("seconds",),
    gpu_hours=estimate.predict,
    load_hours=estimate.predict_load,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Loads the model once; yields an answer row a question."""
    from lumen_hpc.data.records import Records
    from lumen_hpc.outcomes.questions import TEST
    from lumen_hpc.serving.predictor import open_predictor

    questions = Records(task.run.path("instruct") / TEST)
    longest = max((len(meta.get("line", ())) for meta in (record["meta"] for record in questions)), default=0)
    settings = replace(task.settings.predict, controls=[], max_new_tokens=ANSWER_TOKENS + LINE_TOKENS * longest)
    weights, limit = task.run.path("train", task.model) / "final", task.settings.train.max_tokens
    predictor = open_predictor(weights, settings, model=task.model, max_tokens=limit)

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        yield from predictor.answer(questions, shard.span(len(questions)))

    return process
