"""Section 2.5: a language model scores each answer against its reference, 1 to 10, with canaries among them.

Shard k reads shard k of the same model's answers, so it starts as soon as that one is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lumen_hpc.cluster import estimate
from lumen_hpc.cluster.stage import Shard, Stage, Task

STAGE = Stage(
    name="judge",
    paper="2.5",
    about="scores of the answers",
    resources="judge",
    settings=("seed", "judge", "predict.shards"),
    after=("instruct", "predict-{model}"),
    corresponds="predict-{model}",
    shards=lambda settings: settings.predict.shards,
    models=lambda settings: settings.predict.models,
    gpu_hours=estimate.judge,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Opens the judge once; yields a score row an answer, canaries included."""
    from lumen_hpc.data.records import read_jsonl
    from lumen_hpc.language.engine import open_engine
    from lumen_hpc.language.judge import score

    settings = task.config.judge
    records = {row["meta"]["question_id"]: row for row in read_jsonl(task.run.path("instruct") / "lumen-test.jsonl")}
    engine = open_engine(settings.engine)

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        answers = task.run.rows("predict", task.model, shard)
        items = [item(answer, records[answer["question_id"]]) for answer in answers if not answer.get("control")]
        yield from score(items, engine, settings, task.config.seed)

    return process


def item(answer: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """What the judge sees of one answer."""
    human, gpt = record["conversations"][0]["value"], record["conversations"][1]["value"]
    meta = record["meta"]
    return {**answer, "type": meta["type"], "question": human, "reference": gpt, "short_answer": meta["short_answer"]}
