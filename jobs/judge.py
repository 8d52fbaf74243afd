"""Section 2.5: a language model scores each answer against the long answer, 1 to 10, with canaries among them.

Shard k reads shard k of the same model's answers, so it starts as soon as that shard is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lumen_hpc.cluster import engines, estimate
from lumen_hpc.cluster.stage import Shard, Stage, Task

STAGE = Stage(
    name="judge",
    paper="2.5",
    about="scores of the answers",
    resources="judge",
    settings=("seed", "judge", "predict.shards"),
    after=("export_text_llama", "instruct", "predict-{model}"),
    shardwise_after="predict-{model}",
    shards=lambda settings: settings.predict.shards,
    models=lambda settings: settings.predict.models,
    gpu_hours=estimate.judge,
    load_hours=estimate.judge_load,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Opens the judge once; yields a score row for each answer and canary."""
    from lumen_hpc.data.records import read_jsonl
    from lumen_hpc.language.judge import score

    settings = task.settings.judge
    records = {row["meta"]["question_id"]: row for row in read_jsonl(task.run.path("instruct") / "lumen-test.jsonl")}
    engine, second = engines.open_judges(task)

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        answers = task.run.rows("predict", task.model, shard)
        items = [item(answer, records[answer["question_id"]]) for answer in answers if not answer.get("control")]
        task.expected = len(items)
        yield from score(items, engine, settings, task.settings.seed, second)

    return process


def item(answer: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The judge's view of one answer, without its reasoning: the bare question and the long answer."""
    from lumen_hpc.data.findings_line import strip
    from lumen_hpc.language.markup import strip_reasoning

    meta = record["meta"]
    return {
        "question_id": meta["question_id"],
        "model": answer["model"],
        "type": meta["type"],
        "question": meta["question"],
        "short_answer": meta["short_answer"],
        "long_answer": meta["long_answer"],
        "answer": strip(strip_reasoning(answer["answer"])),
    }
