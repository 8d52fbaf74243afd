"""The stage files of the language stages, run in this process on a small run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs import export_text_llama, judge, rewrite
from lumen_hpc.cluster import engines
from lumen_hpc.cluster.stage import Ranks, Run, Shard, Step, Task
from lumen_hpc.config.profile import DataUse, Profile
from lumen_hpc.config.schema import EngineSettings, Settings
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.errors import UserError
from lumen_hpc.language.judge import SCORES
from tests.language.test_server_engine import ASKED, said, serving

DIFFERENCE = "what has changed compared to the reference image?"
NEW_EDEMA = "the main image has an additional finding of edema than the reference image. "


def task(folder, stage, settings, model="", **profile) -> Task:
    return Task(run=Run(folder, settings, Profile(**profile)), step=Step(stage, model))


@pytest.fixture
def questions(tmp_path):
    rows = [
        {
            "question_id": f"q{i}",
            "type": "difference" if i % 4 == 0 else "presence",
            "question": DIFFERENCE
            if i % 4 == 0
            else f"is there evidence of {('edema', 'nodule')[i % 2]} in this image?",
            "short_answer": NEW_EDEMA if i % 4 == 0 else ("yes", "no")[i % 3 == 0],
            "interval_days": 5 if i % 4 == 0 else None,
        }
        for i in range(20)
    ]
    write_jsonl(tmp_path / "prepare" / "questions.jsonl", rows)
    return rows


def test_the_shards_of_rewriting_hold_every_question_once_and_equal_ones_together(tmp_path, questions):
    process = rewrite.work(task(tmp_path, rewrite.STAGE, Settings()))
    shards = [list(process(Shard(index, 3))) for index in range(3)]
    answered = [row["question_id"] for rows in shards for row in rows if "source_question_id" not in row]
    assert sorted(answered) == sorted(row["question_id"] for row in questions)
    predicted = [row["source_question_id"] for rows in shards for row in rows if "source_question_id" in row]
    assert sorted(predicted) == sorted(row["question_id"] for row in questions if row["type"] == "difference")
    assert list(process(Shard(1, 3))) == shards[1]


def test_the_judge_sees_the_bare_question_and_the_answer_without_its_findings_line():
    record = {
        "conversations": [
            {"from": "human", "value": "reference image: <image>\nedema: no\nmain image: <image>\n" + DIFFERENCE},
            {"from": "gpt", "value": "nodule no no same; " + NEW_EDEMA.strip()},
        ],
        "meta": {
            "question_id": "q",
            "type": "difference",
            "question": DIFFERENCE,
            "short_answer": NEW_EDEMA,
            "long_answer": NEW_EDEMA.strip(),
        },
    }
    item = judge.item({"question_id": "q", "model": "lumen", "answer": "The edema has resolved."}, record)
    thought = {"question_id": "q", "model": "lumen", "answer": "<think>Is it new?</think>The edema has resolved."}
    assert judge.item(thought, record) == item, "nor its reasoning, which no measure reads"
    assert item["question"] == DIFFERENCE
    assert item["long_answer"] == NEW_EDEMA.strip() and item["answer"] == "The edema has resolved."
    assert set(item) == {"question_id", "model", "type", "question", "short_answer", "long_answer", "answer"}


def test_answers_under_a_control_are_not_judged(tmp_path):
    """They have their question's id, and would stand in the place of its score."""
    meta = {"question_id": "q", "type": "difference", "question": DIFFERENCE, "short_answer": NEW_EDEMA}
    answer = {"question_id": "q", "model": "lumen", "answer": NEW_EDEMA}
    rows_by_file = {
        "instruct/lumen-test.jsonl": [{"meta": {**meta, "long_answer": NEW_EDEMA}}],
        "predict-lumen/shard-00000-of-00001.jsonl": [
            answer,
            {**answer, "answer": "nothing has changed.", "control": "same"},
        ],
    }
    for name, rows in rows_by_file.items():
        (tmp_path / name).parent.mkdir()
        write_jsonl(tmp_path / name, rows)
    judging = task(tmp_path, judge.STAGE, Settings(), model="lumen")
    rows = [row for row in judge.work(judging)(Shard(0, 1)) if "canary" not in row]
    assert [row["score"] for row in rows] == [10] and judging.expected == 1


def test_restricted_data_is_not_sent_to_a_server_beyond_the_profiles_list(tmp_path, questions):
    settings = Settings()
    settings.data.source = "mimic"
    settings.rewrite.engine = EngineSettings(kind="server", model="m", endpoint="https://api.example.com/v1")
    with pytest.raises(UserError, match="may not see restricted data"):
        rewrite.work(task(tmp_path, rewrite.STAGE, settings, data_use=DataUse()))
    open_profile = DataUse(restricted=False)
    rewrite.work(task(tmp_path, rewrite.STAGE, settings, data_use=open_profile))


def test_a_model_is_found_in_the_cache_by_its_hub_name(tmp_path):
    engine = EngineSettings(kind="vllm", model="meta-llama/Llama-3.1-8B-Instruct")
    placed = engines.with_local_model(engine, task(tmp_path, rewrite.STAGE, Settings(), cache=str(tmp_path / "cache")))
    assert placed == replace(engine, model=str(tmp_path / "cache" / "Llama-3.1-8B-Instruct"))
    served = EngineSettings(kind="server", model="meta-llama/Llama-3.1-8B-Instruct")
    assert engines.with_local_model(served, task(tmp_path, rewrite.STAGE, Settings())) == served


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            EngineSettings(kind="vllm", model="m", tensor_parallel=4, pipeline_parallel=2),
            r"pipeline_parallel 2\) runs in 8 processes, one a GPU,",
        ),
        (EngineSettings(kind="vllm", model="m"), r"runs in 1 process,"),
        (EngineSettings(kind="server", model="m", endpoint="http://127.0.0.1:9/v1"), r"kind=server runs in 1 process,"),
    ],
)
def test_an_engine_that_does_not_fit_the_jobs_processes_is_refused_before_it_is_loaded(tmp_path, engine, message):
    spread = task(tmp_path, judge.STAGE, Settings())
    spread.ranks = Ranks(rank=1, world_size=2)
    with pytest.raises(UserError, match=rf"{message} and this job has 2; nodes x tasks_per_node"):
        engines.open_for(spread, engine)


def test_every_answer_of_a_server_is_progress_of_its_task(tmp_path):
    """A shard is one call, which may well take longer than the watchdog waits."""
    asking, beats = task(tmp_path, judge.STAGE, Settings()), []
    asking.beat = lambda doing="", **_: beats.append(doing)
    with serving(lambda *_: said("7")) as (url, _):
        engine = engines.open_for(asking, EngineSettings(kind="server", model="m", endpoint=url))
        engine.chat(ASKED, max_tokens=2, temperature=0.0, seed=0)
        engine.chat(ASKED, max_tokens=2, temperature=0.0, seed=0, choices=SCORES)
    assert len(beats) == 2 * len(ASKED)


def test_a_text_model_is_exported_only_where_one_is_named(tmp_path):
    settings = Settings()
    assert not export_text_llama.STAGE.enabled(settings)
    settings.rewrite.engine = EngineSettings(kind="vllm", model="meta-llama/Llama-3.2-11B-Vision-Instruct-text")
    assert export_text_llama.STAGE.enabled(settings)
    process = export_text_llama.work(task(tmp_path, export_text_llama.STAGE, settings, cache=str(tmp_path)))
    with pytest.raises(UserError, match=r"Llama-3\.2-11B-Vision-Instruct is no checkpoint folder"):
        list(process(Shard(0, 1)))
    there = tmp_path / "Llama-3.2-11B-Vision-Instruct-text"
    there.mkdir()
    (there / "config.json").write_text("{}")
    assert [row["bytes"] for row in process(Shard(0, 1))] == [2]
