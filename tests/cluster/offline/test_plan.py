from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import PIPELINE
from lumen_hpc.cluster import dependencies, graph, manifest, plan, submit
from lumen_hpc.cluster.dependencies import Gate, Link
from lumen_hpc.cluster.stage import Pipeline, Run, Shard, Stage, Step
from lumen_hpc.config.data_schema import Data
from lumen_hpc.config.profile import Profile, Resources
from lumen_hpc.config.schema import Instruct, Settings
from lumen_hpc.errors import UserError
from lumen_hpc.training.speed import Progress
from tests.cluster.offline.conftest import stage
from tests.cluster.offline.offline_graph import finish


def test_the_graph_follows_models_and_stars(run: Run, stages: list[Stage]):
    steps = {step.name: step.after for step in graph.steps(stages, run.settings)}
    assert list(steps) == ["first", "answer-a", "answer-b", "score-a", "score-b", "last"]
    assert steps["score-b"] == ("first", "answer-b")
    assert steps["last"] == ("answer-a", "answer-b", "score-a", "score-b")


@pytest.mark.parametrize(("name", "found"), [("full", 6), ("answer", 2), ("score-b", 1)])
def test_a_stage_is_chosen_by_its_name(run: Run, stages: list[Stage], name: str, found: int):
    assert len(graph.select(graph.steps(stages, run.settings), stages, name)) == found


def test_an_unknown_stage_names_the_near_one(run: Run, stages: list[Stage]):
    with pytest.raises(UserError, match=r"stage=anwser: no such stage; did you mean answer\?"):
        graph.select(graph.steps(stages, run.settings), stages, "anwser")
    with pytest.raises(UserError, match=r"stage=answer,score: no such stage; one at a time, or full"):
        graph.select(graph.steps(stages, run.settings), stages, "answer,score")


def test_a_stage_whose_input_is_not_there_is_refused(run: Run, stages: list[Stage]):
    steps = graph.steps(stages, run.settings)
    with pytest.raises(UserError, match="reads first, of which run run has 0 of 1 shards done"):
        plan.make(run, graph.select(steps, stages, "answer"), steps, {})


def test_only_what_is_missing_is_planned(run: Run, stages: list[Stage]):
    steps = graph.steps(stages, run.settings)
    for step in steps:
        finish(run, step, steps)
    (run.folder / "answer-b" / Shard(3, 4).file).unlink()
    todo = {item.step.name: item.missing_shards for item in plan.make(run, steps, steps, {})}
    assert todo["answer-a"] == todo["score-a"] == []
    assert todo["answer-b"] == [3]
    assert todo["score-b"] == [3], "the input of this one may change"
    assert todo["last"] == [0], "it reads all of them; the node leaves out what proves done"


def test_packs_follow_those_of_the_step_that_is_read_shard_by_shard(run: Run, stages: list[Stage]):
    steps = graph.steps(stages, run.settings)
    for step in steps:
        finish(run, step, steps, seconds=plan.PACK_SECONDS)
    for name, index in (("answer-b", 1), ("answer-b", 3), ("score-b", 0)):
        (run.folder / name / Shard(index, 4).file).unlink()
    packs = {item.step.name: item.packs for item in plan.make(run, steps, steps, {})}
    assert packs["answer-b"] == [[1], [3]]
    assert packs["score-b"] == [[1, 0], [3]], "what it lacks of its own joins them"


@pytest.mark.parametrize(
    ("changed", "readers"),
    [
        (("first", 0), {"answer-a": [0, 1, 2, 3], "answer-b": [0, 1, 2, 3], "score-a": [0, 1, 2, 3],
                        "score-b": [0, 1, 2, 3], "sum": [0]}),
        (("answer-a", 2), {"score-a": [2], "last": [0]}),
        (("score-b", 1), {"last": [0]}),
        (("other", 0), {"sum": [0]}),
    ],
)  # fmt: skip
def test_a_shard_depends_on_all_that_it_reads_and_on_nothing_else(
    run: Run, stages: list[Stage], changed: tuple[str, int], readers: dict[str, list[int]]
):
    steps = graph.steps([*stages, stage("other"), stage("sum", after=("first", "other"))], run.settings)
    for step in steps:
        finish(run, step, steps)
    before = {step.name: plan.inputs(run, step, steps) for step in steps}
    name, index = changed
    line = manifest.latest(run.folder / name)[index]
    manifest.append(run.folder / name / manifest.NAME, {**line, "content": "another"})
    after = {step.name: plan.inputs(run, step, steps) for step in steps}
    found = {step: [at for at, old in enumerate(before[step]) if old != after[step][at]] for step in before}
    assert {step: shards for step, shards in found.items() if shards} == readers
    assert not any(None in hashes for hashes in after.values())


def test_gpu_hours_are_of_what_is_missing_and_of_loading_once_a_task(stages: list[Stage]):
    item = plan.StepPlan(Step(stages[1]), 4, [0, 1], [[0], [1]], Resources(gpus=2, nodes=3), load_hours=0.5)
    assert item.gpu_hours is None and plan.total_gpu_hours([item]) == 0
    item.estimate = 8.0  # of all four shards; 6 GPUs load for half an hour in each of two tasks
    assert (item.gpu_hours, item.measured) == (4 + 6, False)
    item.progress = Progress(step=40, steps=100, seconds=30.0, gpus=6)  # 60 steps are left
    assert (item.gpu_hours, item.measured) == (3 + 6, True)
    item.shard_seconds = 1800.0
    assert item.gpu_hours == 6 + 6 == plan.total_gpu_hours([item])
    assert replace(item, missing_shards=[]).gpu_hours == 0
    assert replace(item, resources=Resources(gpus=0)).gpu_hours == 0


def test_queued_shards_are_left_alone(run: Run, stages: list[Stage]):
    steps = graph.steps(stages, run.settings)
    plans = plan.make(run, steps, steps, {"first": {0}, "answer-a": {0, 1, 2, 3}})
    by_name = {item.step.name: item for item in plans}
    assert by_name["first"].packs == by_name["answer-a"].packs == []
    assert sum(map(len, by_name["answer-b"].packs)) == 4


def test_no_pack_is_empty_where_a_queued_shard_had_one_of_its_own(run: Run, stages: list[Stage]):
    """Shards correspond to the earlier step's, whose packs are [0], [1], [2], [3]; 0 of this step is in the queue."""
    steps = graph.steps(stages, run.settings)
    plans = {item.step.name: item for item in plan.make(run, steps, steps, {"score-b": {0}})}
    assert plans["answer-b"].packs == [[0], [1], [2], [3]]
    assert all(plans["score-b"].packs) and sorted(itertools.chain(*plans["score-b"].packs)) == [1, 2, 3]


def test_what_has_followed_a_finished_shard_is_not_planned_again_while_others_run(run: Run, stages: list[Stage]):
    """Shards 0 to 2 are answered and scored, and their tasks have left the queue; shard 3 is being answered."""
    steps = graph.steps(stages, run.settings)
    for step, shards in zip(steps, ([0], [0, 1, 2], [], [0, 1, 2])):
        finish(run, step, steps, shards)
    live = {"answer-a": {3}, "score-a": {3}, "last": {0}}
    for chosen in (steps, graph.select(steps, stages, "score-a")):
        plans = {item.step.name: item for item in plan.make(run, chosen, steps, live)}
        assert plans["score-a"].missing_shards == plans["score-a"].packs == []
    assert plan.make(run, steps, steps, live | {"score-a": set()})[3].missing_shards == [3]
    (run.folder / "score-a" / Shard(1, 4).file).unlink()
    assert plan.make(run, steps, steps, live)[3].missing_shards == [1], "deleted meanwhile"
    assert plan.make(run, steps, steps, {"answer-a": {3}})[3].missing_shards == [1, 3]


def test_a_pilot_decides_how_many_tasks(run: Run, stages: list[Stage]):
    run.settings.predict.shards = 40
    steps = graph.steps(stages, run.settings)
    finish(run, steps[0], steps)
    finish(run, steps[1], steps, [0], seconds=100.0)
    item = plan.make(run, [steps[1]], steps, {})[0]
    assert len(item.packs) == 3 and sorted(index for pack in item.packs for index in pack) == list(range(1, 40))


def test_corresponding_packs_hold_the_same_shards(run: Run, stages: list[Stage]):
    run.settings.predict.shards = 10
    steps = graph.steps(stages, run.settings)
    plans = {item.step.name: item for item in plan.make(run, steps, steps, {})}
    assert plans["answer-a"].packs == plans["score-a"].packs


def _jobs(run: Run, stages: list[Stage], limit: int = 1000) -> dict[str, Link | Gate]:
    steps = graph.steps(stages, run.settings)
    plans = plan.make(run, steps, steps, {})
    return {
        job.label: job
        for job in dependencies.jobs(plans, run.profile, limit, {}, graph.read_steps(stages, run.settings))
    }


def test_the_chain_pipelines_and_its_successors_start_after_failures_only(run: Run, stages: list[Stage]):
    run.profile.resources["gpu"].successors = 2
    jobs = _jobs(run, stages)
    assert jobs["<score-a>"].conditions == (("aftercorr", "<answer-a>"), ("afterok", "<first gate>"))
    inputs = (("afterok", "<first gate>"), ("afterok", "<answer-a gate>"))
    assert jobs["<score-a+>"].conditions == (*inputs, ("afternotok", "<score-a>"))
    assert jobs["<score-a++>"].conditions == (*inputs, ("afternotok", "<score-a>"), ("afternotok", "<score-a+>"))
    ids = {"<first gate>": "7", "<answer-a gate>": "8", "<score-a>": "9"}
    assert jobs["<score-a+>"].dependency(ids) == "afterok:7:8,afternotok:9"


def test_a_mishap_upstream_takes_no_successor_from_the_step_that_follows_it(run: Run, stages: list[Stage]):
    run.profile.resources["gpu"].successors = 2
    jobs = _jobs(run, stages)
    assert "<score-a+++>" in jobs and "<answer-a+++>" not in jobs, "score-a is lost where answer-a was interrupted"
    run.profile.resources["gpu"].successors = 0
    assert "<score-a+>" not in _jobs(run, stages)


def test_a_gate_opens_after_any_link_and_dependants_wait_for_gates_alone(run: Run, stages: list[Stage]):
    run.profile.resources["gpu"].successors = 2
    jobs = _jobs(run, stages)
    gate = jobs["<answer-a gate>"]
    ids = {"<answer-a>": "1", "<answer-a+>": "2", "<answer-a++>": "3"}
    assert gate.dependency(ids) == "afterok:1?afterok:2?afterany:3"
    waited_for = {label for kind, label in jobs["<last>"].conditions if kind == "afterok"}
    assert waited_for == {f"<{step} gate>" for step in ("answer-a", "answer-b", "score-a", "score-b")}


def test_only_a_step_with_successors_that_somebody_waits_for_has_a_gate(run: Run, stages: list[Stage]):
    assert "<last gate>" not in _jobs(run, stages)
    run.profile.kill_on_invalid_dep = False  # successors that cannot start would stay in the queue
    assert "<last gate>" in _jobs(run, stages)
    run.profile.resources["cpu"].successors = 0
    jobs = _jobs(run, stages)
    assert "<first gate>" not in jobs and ("afterok", "<first>") in jobs["<answer-a>"].conditions
    run.profile.requeue = True
    assert all(isinstance(job, Link) and job.number == 0 for job in _jobs(run, stages).values())


def test_a_site_that_keeps_dead_jobs_gets_no_aftercorr(run: Run, stages: list[Stage]):
    run.profile.kill_on_invalid_dep = False
    assert all(kind != "aftercorr" for job in _jobs(run, stages).values() for kind, _ in job.conditions)


def test_arrays_are_split_by_the_largest_index_and_each_part_has_its_gate(run: Run, stages: list[Stage]):
    run.settings.predict.shards = 7
    run.profile.resources["gpu"].tasks = 7
    jobs = _jobs(run, stages, limit=3)
    assert [len(jobs[f"<answer-a.{part}>"].packs) for part in range(3)] == [3, 3, 1]
    assert {("afterok", f"<answer-a.{part} gate>") for part in range(3)} <= set(jobs["<last>"].conditions)


def test_what_can_never_start_after_a_failure_is_found_through_links_and_gates():
    records = [
        {"id": "1", "after": []},
        {"id": "2", "after": [["afternotok", "1"]]},
        {"id": "3", "after": [["afterok", "1"], ["afterany", "2"]], "gate": True},
        {"id": "4", "after": [["aftercorr", "1"]]},
        {"id": "5", "after": [["afterok", "3"], ["afternotok", "4"]]},
        {"id": "6", "after": [["afterok", "4"], ["afterany", "5"]], "gate": True},
        {"id": "7", "after": [["afterok", "6"]]},
    ]
    assert dependencies.unreachable(records, ["3"]) == ["5"], "4 may succeed for some of its packs"
    assert dependencies.unreachable(records, ["6"]) == ["7"]
    assert dependencies.unreachable(records[3:], ["4", "5"]) == ["6", "7"]


def test_a_run_of_another_version_is_refused(run: Run):
    run.folder.mkdir()
    (run.folder / "layout").write_text("99\n")

    class Request:
        folder, settings, profile = run.folder, run.settings, run.profile

    with pytest.raises(UserError, match="layout 99"):
        submit.open_run(Request)  # type: ignore[arg-type]


TABLES = {
    "prepare": "vqa/mimic_all.csv", "outcomes": "iv/hosp/patients.csv.gz", "instruct": "vqa/all_diseases.json",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_file_that_only_the_nodes_see_counts_neither_there_nor_here(tmp_path: Path, name: str):
    """Else what a worker has done would not be done for the machine that submits."""
    folder = tmp_path / "local"
    data = Data(source="mimic", mimic_cxr=f"{folder}/cxr", diff_vqa=f"{folder}/vqa", mimic_iv=f"{folder}/iv")
    settings = Settings(data=data, instruct=Instruct(findings_first=True))
    step = Step(next(stage for stage in PIPELINE.stages if stage.name == name))
    runs = [Run(tmp_path, settings, Profile(node_paths=paths)) for paths in ([str(folder)], [])]
    here, seen = (plan.inputs(run, step, []) for run in runs)
    table = folder / TABLES[name]
    table.parent.mkdir(parents=True)
    table.write_text("[]")
    assert plan.inputs(runs[0], step, []) == here
    assert plan.inputs(runs[1], step, []) != seen


@pytest.mark.parametrize("after", ["frist", "last", "answer-x-{model}"])
def test_a_stage_that_would_not_wait_for_what_it_reads_is_refused(stages: list[Stage], after: str) -> None:
    """`graph.steps` leaves out what a run skips, so a typo too: the stage would start at once."""
    odd = replace(stages[0], name="odd", after=(after,))
    with pytest.raises(UserError, match=rf"jobs/odd\.py reads {after.removesuffix('-{model}')}, no stage before it"):
        Pipeline((*stages[:-1], odd, stages[-1]), lambda *_: "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"settings": ("seed", "predict.shard")}, "there is no setting predict.shard"),
        ({"settings": "seed"}, "settings='seed': there is no setting s"),  # the comma of a tuple of one forgotten
        ({"resources": "gpus"}, "resources='gpus': takes one of cpu, gpu, judge, train"),
    ],
)
def test_a_stage_that_names_an_unknown_setting_or_resource_is_refused(
    stages: list[Stage], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=rf"jobs/first\.py: .*{message}"):
        Pipeline((replace(stages[0], **fields), *stages[1:]), lambda *_: "")
