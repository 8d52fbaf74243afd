from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import jobs
from jobs import experts, judge, predict, rewrite, train
from lumen_hpc import nvila
from lumen_hpc.cluster import dry_run, estimate, graph, manifest, plan, question_counts, status
from lumen_hpc.cluster.stage import Pipeline, Run, Stage
from lumen_hpc.config import config_file
from lumen_hpc.config.profile import Resources
from lumen_hpc.config.request import Request
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import EngineSettings
from lumen_hpc.data.prepare import prepare
from lumen_hpc.errors import UserError
from lumen_hpc.models import MODELS, Workload
from lumen_hpc.nvila.tiny import make_tiny
from tests.cluster.offline.offline_graph import finish
from tests.data.small_dataset import Dataset

JUDGE = EngineSettings(kind="vllm", model="large", tensor_parallel=4, pipeline_parallel=2)


def _planned(run: Run, stage: Stage, tasks: int) -> plan.StepPlan:
    """A step of which nothing is done, on 8 GPUs a task."""
    run.profile.resources[stage.resources] = Resources(nodes=2, gpus=4, tasks=tasks)
    step = graph.steps([replace(stage, after=())], run.settings)[0]
    return plan.make(run, [step], [step], {})[0]


@pytest.mark.parametrize("stage", [experts.STAGE, judge.STAGE, predict.STAGE, rewrite.STAGE], ids=lambda s: s.name)
def test_every_task_that_loads_a_model_pays_for_it(run: Run, stage: Stage):
    run.settings.rewrite.engine = run.settings.judge.engine = JUDGE
    one, four = (_planned(run, stage, tasks) for tasks in (1, 4))
    assert (len(one.packs), len(four.packs)) == (1, 4)
    assert one.load_hours > 0
    assert four.gpu_hours - one.gpu_hours == pytest.approx(3 * 8 * one.load_hours)
    assert one.gpu_hours == pytest.approx(stage.gpu_hours(run, "lumen") + 8 * one.load_hours)


def test_a_measured_shard_replaces_the_work_and_leaves_the_loading(run: Run, stages: list[Stage]):
    run.profile.resources["gpu"] = Resources(gpus=2, tasks=2)
    stages[1] = replace(stages[1], gpu_hours=lambda run, model: 100.0, load_hours=lambda settings: 0.5)
    steps = graph.steps(stages, run.settings)
    finish(run, steps[0], steps)
    finish(run, steps[1], steps, [0], seconds=3600.0)
    item = plan.make(run, [steps[1]], steps, {})[0]
    assert (len(item.missing_shards), len(item.packs)) == (3, 2)
    assert item.gpu_hours == pytest.approx(3 * 2 * 1.0 + 2 * 2 * 0.5)


def test_a_training_s_own_steps_replace_the_estimate_in_plan_dry_run_and_status(run: Run):
    run.settings.predict.models = ["lumen"]
    stage = replace(train.STAGE, after=())
    pipeline = Pipeline((stage,), lambda *_: "")
    request = Request(stage="train", run="run", settings=run.settings, profile=run.profile)

    def shown() -> tuple[str, plan.StepPlan, status.StepStatus]:
        step = graph.steps([stage], run.settings)[0]
        plans = plan.make(run, [step], [step], {})
        console = Console(file=io.StringIO(), width=300)
        dry_run.show(request, pipeline, run, plans, {}, console)
        return console.file.getvalue(), plans[0], status.read(run, [stage])[0]

    run.profile.resources["train"] = Resources(gpus=0)
    assert "train-lumen: the profile asks for no GPU; on one: 1" in shown()[0]
    run.profile.resources["train"] = Resources(gpus=4)
    before, planned, state = shown()
    assert "MFU 0.34 (measured on one H200, 2026-11-28" in before and "~" in before and not state.progress
    folder = run.folder / "train-lumen"
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps({"train.zero": 3}))
    rows = [{"step": step, "timing": {"seconds": 9.0, "gpus": 4, "steps": 4030, "mfu": 0.4}} for step in range(1, 31)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    after, planned, state = shown()
    assert planned.measured and planned.gpu_hours == pytest.approx(4000 * 9.0 * 4 / 3600)
    assert "MFU 0.40 (measured in this run)" in after
    assert state.progress == "step 30 of 4030, 9 s a step on 4 GPUs, MFU 0.40, measured in this run"


def test_a_second_judge_is_loaded_and_asked_as_well(run: Run):
    settings = run.settings
    settings.judge.engine = JUDGE
    alone = estimate.judge(run, "lumen"), estimate.judge_load(settings)
    settings.judge.second = JUDGE
    assert (estimate.judge(run, "lumen"), estimate.judge_load(settings)) == pytest.approx([2 * x for x in alone])


@pytest.mark.parametrize("kind", ["grammar", "server"])
def test_engines_outside_the_task_cost_it_no_gpu(run: Run, kind: str):
    run.settings.judge.engine = EngineSettings(kind=kind)
    assert estimate.judge(run, "lumen") == estimate.judge_load(run.settings) == 0


def test_the_paper_s_recipe_is_priced_with_the_paper_s_counts_and_others_with_theirs():
    def priced(*words: str) -> tuple[int, int, int]:
        settings = resolve(["recipe=lumen", *words]).settings
        counts = question_counts.expected(settings)
        trained = estimate.workload(settings, "lumen", counts)
        assert trained is not None
        return trained.samples, trained.image_sets, counts.test_questions

    paper = Workload()
    assert priced() == (paper.samples, paper.image_sets, 13_688 + 2 * 1_369)
    samples, image_sets, asked = priced("prepare.difference_fraction=1.0", "rewrite.predictions_per_pair=3")
    assert image_sets == pytest.approx(129_231 + 43_381 / 0.33, abs=1)
    assert samples == pytest.approx(428_995 + 4 * 43_381 / 0.33, abs=2)
    assert asked == pytest.approx(13_688 + 4 * 1_369 / 0.33, abs=1)
    settings = resolve(["recipe=lumen", "prepare.difference_fraction=1.0"]).settings
    assert estimate.workload(settings, "ft@1", question_counts.expected(settings)) == MODELS["ft"].workload


def test_what_prepare_has_counted_replaces_the_paper_s_counts(run: Run, tmp_path: Path):
    def shown() -> str:
        request = Request(stage="full", run="run", settings=settings, profile=run.profile)
        console = Console(file=io.StringIO(), width=300)
        dry_run.show(request, Pipeline((), lambda *_: ""), run, [], {}, console)
        return console.file.getvalue()

    settings = resolve(["recipe=lumen", "profile=local", "rewrite.predictions_per_pair=2"]).settings
    settings.data = Dataset(tmp_path).write().data
    settings.prepare.difference_fraction = 1.0
    run = replace(run, settings=settings)
    assert "~ is an estimate from the paper's counts" in shown()
    paper = estimate.predict(run, "lumen"), estimate.experts(run, ""), estimate.rewrite(run, "")
    counted = prepare(settings.data, settings.prepare, settings.seed, run.path("prepare"))
    digest = config_file.digest(settings, jobs.prepare.STAGE.settings)
    manifest.append(run.path("prepare") / manifest.NAME, {"shard": 0, "config": digest})
    assert "~ is an estimate from the counts of stage prepare" in shown()
    found, splits = question_counts.of(run), counted["splits"]
    differences = {name: split["difference"]["ours"] for name, split in splits.items()}
    assert (found.images, found.test_pairs) == (counted["studies"]["asked_about"], differences["test"]) == (7, 1)
    assert found.questions == counted["kept"] + 2 * sum(differences.values()) == 14
    assert found.test_questions == splits["test"]["diagnostic"]["ours"] + 3
    trained = estimate.workload(settings, "lumen", found)
    assert trained is not None
    diagnostic = splits["train"]["diagnostic"]["ours"]
    assert (trained.samples, trained.pairs) == (diagnostic + 3 * differences["train"], differences["train"])
    now = estimate.predict(run, "lumen"), estimate.experts(run, ""), estimate.rewrite(run, "")
    assert all(0 < less < more / 1000 for less, more in zip(now, paper, strict=True))
    assert estimate.train(run, "lumen") > 0, "few questions divide by nothing"
    settings.prepare.difference_fraction = 0.5
    assert question_counts.of(run) == question_counts.expected(settings), "it counted with other settings"


def test_controls_are_priced_by_the_questions_that_they_ask(run: Run):
    def hours(model: str = "lumen", **predict: list[str]) -> float:
        settings = resolve(["recipe=lumen"]).settings
        settings.predict.controls = predict.get("controls", [])
        return estimate.predict(replace(run, settings=settings), model)

    def priced(images: int, answers: int) -> float:
        speeds = estimate.PREFILL_TOKENS_PER_SECOND, estimate.OUTPUT_TOKENS_PER_SECOND
        return (images * 3073 / speeds[0] + answers * 40 / speeds[1]) / 3600

    asked, pairs = 13_688 + 2 * 1_369, 1_369
    assert hours() == pytest.approx(priced(asked + pairs, asked))
    for control, (images, answers) in {
        "swapped": (2 * pairs, pairs), "no_image": (0, asked), "no_experts": (asked + pairs, asked),
        "composed": (2 * pairs, 26 * pairs),
    }.items():  # fmt: skip
        assert hours(controls=[control]) - hours() == pytest.approx(priced(images, answers))
    assert hours("lumen@1", controls=["swapped", "no_image"]) == hours()


@pytest.mark.parametrize(("stage", "shards", "hours", "fix"), [
    (train.STAGE, 1, 29.0, ""), (train.STAGE, 1, 31.0, "train.successors=3"), (train.STAGE, 1, 101.0, "successors=10"),
    (predict.STAGE, 1, 9.0, ""), (predict.STAGE, 1, 11.0, "more shards"), (predict.STAGE, 9, 11.0, ""),
    (predict.STAGE, 9, 31.0, "gpu.successors=3"), (predict.STAGE, 9, 0.0, ""),
])  # fmt: skip
def test_a_task_that_its_jobs_have_no_time_for_is_warned_about(run: Run, stage: Stage, shards: int, hours: float, fix):
    step = graph.steps([replace(stage, after=())], run.settings)[0]
    resources = Resources(nodes=2, gpus=4, successors=2, time_min=600)
    item = plan.StepPlan(step, shards, [*range(shards)], [[*range(shards)]], resources, estimate=8 * hours)
    warning = dry_run.too_long(item)
    assert bool(warning) == bool(fix) and fix in warning
    assert not fix or f"about {hours} h by the clock" in warning


def test_a_further_training_costs_as_much_as_the_first(run: Run):
    run = replace(run, settings=resolve(["recipe=lumen", "seeds=2"]).settings)
    assert estimate.train(run, "lumen@1") == estimate.train(run, "lumen") > 0


def test_a_training_on_more_gpus_than_its_batch_fills_is_warned_about_with_what_helps(run: Run):
    run.settings.train.base = "somewhere"
    run.profile.resources["train"] = Resources(nodes=1, gpus=4)
    assert estimate.idle_warning(run, "lumen") == ""
    four = estimate.train(run, "lumen")
    run.profile.resources["train"] = Resources(nodes=16, gpus=4)
    assert estimate.idle_warning(run, "lumen") == ""  # train.sequence_parallel=auto
    assert estimate.train(run, "lumen") < 1.2 * four
    run.settings.train.sequence_parallel = 1
    warning = estimate.idle_warning(run, "lumen")
    assert "64 GPUs use 4" in warning and "16 GPUs take" in warning and "train.global_batch=" in warning
    assert "fix: train.sequence_parallel=4 takes 0.7 h and 4" in warning
    assert estimate.train(run, "lumen") > 2 * four


def test_what_helps_most_is_named_where_it_does_not_help_enough(run: Run):
    run.settings.train.base = "somewhere"
    run.settings.train.sequence_parallel = 1
    run.profile.resources["train"] = Resources(nodes=32, gpus=4)
    assert "fix: train.sequence_parallel=4 takes 0.4 h" in estimate.idle_warning(run, "lumen")
    run.settings.train.sequence_parallel = "auto"
    warning = estimate.idle_warning(run, "lumen")
    assert "128 GPUs use 79%" in warning and "train.sequence_parallel" not in warning and "64 GPUs take" in warning


def test_a_base_s_own_sizes_count_where_its_checkpoint_is_there(run: Run, tmp_path: Path):
    run.settings.train.base = str(tmp_path / "base")
    run.profile.resources["train"], run.profile.gpu_memory_gb = Resources(gpus=2), 30.0
    absent = estimate.training(run, "lumen")
    with pytest.raises(UserError, match="does not fit"):
        estimate.require_fit(run, ["lumen"])
    nvila.save(make_tiny(["a text"]), tmp_path / "base")
    small = estimate.training(run, "lumen")
    estimate.require_fit(run, ["lumen"])
    assert absent and small and small.checkpoint_gb < 0.01 * absent.checkpoint_gb
    assert small.gpu_hours < 0.01 * absent.gpu_hours
    config = tmp_path / "base" / "llm" / "config.json"
    config.write_text("[]")
    assert estimate.training(run, "lumen") == absent


def test_the_record_index_of_a_training_replaces_the_stated_mixture(run: Run):
    run.settings.train.base = "somewhere"
    run.profile.resources["train"] = Resources(nodes=1, gpus=4)
    stated = estimate.train(run, "lumen")
    folder = run.path("train", "lumen")
    folder.mkdir(parents=True)
    samples = np.arange(6400)
    np.savez(
        folder / "record_index.npz",
        groups=samples // 4, kinds=np.full(6400, "diagnostic"), prefix=np.full(6400, 3100), suffix=np.full(6400, 100),
    )  # fmt: skip
    found = estimate.training(run, "lumen")
    assert found is not None and found.steps == 50
    assert found.gpu_hours < stated / 50
    assert found.occupancy.sequences == pytest.approx(32, abs=1)


def test_experts_rewriting_and_judging_are_priced_by_their_counts(run: Run):
    run = replace(run, settings=resolve(["recipe=lumen"]).settings)
    counts = question_counts.of(run)
    assert estimate.experts(run, "") == pytest.approx(counts.images / 500 / 3600)
    assert estimate.rewrite(run, "") == pytest.approx(1.2 * 40 * counts.questions / 10_000 / 3600)
    judges = sum(engine.in_task for engine in run.settings.engines("judge").values())
    # The source of JUDGED_PER_GPU_HOUR: 19 minutes of 8 GPUs for three models' answers.
    seconds = 19 * 60 / (3 * 18_993)
    assert judges and estimate.judge(run, "lumen") == pytest.approx(
        judges * counts.test_questions * 8 * seconds / 3600, rel=0.02
    )


@pytest.mark.parametrize("size", ["tensor_parallel", "pipeline_parallel"])
def test_a_model_over_several_gpus_loads_as_a_large_one(run: Run, size: str):
    engine = replace(run.settings.rewrite.engine, kind="vllm", tensor_parallel=1, pipeline_parallel=1)
    assert estimate._load_hours(engine) == estimate.LOAD_HOURS["small"]
    assert estimate._load_hours(replace(engine, **{size: 2})) == estimate.LOAD_HOURS["large"]
