from __future__ import annotations

import pytest

from lumen_hpc.cluster import chain, graph, plan, submit
from lumen_hpc.cluster.stage import Run, Shard, Stage
from lumen_hpc.errors import UserError
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


def test_a_stage_whose_input_is_not_there_is_refused(run: Run, stages: list[Stage]):
    steps = graph.steps(stages, run.settings)
    with pytest.raises(UserError, match="reads first, of which run run has 0 of 1 shards done"):
        plan.make(run, graph.select(steps, stages, "answer"), steps, {})


def test_only_what_is_missing_is_planned(run: Run, stages: list[Stage]):
    steps = graph.steps(stages, run.settings)
    for step in steps:
        finish(run, step, steps)
    (run.folder / "answer-b" / Shard(3, 4).file).unlink()
    todo = {item.step.name: item.missing for item in plan.make(run, steps, steps, {})}
    assert todo["answer-a"] == todo["score-a"] == []
    assert todo["answer-b"] == [3]
    assert todo["score-b"] == [0, 1, 2, 3], "its input may change; the node leaves out what proves done"


def test_queued_shards_are_left_alone(run: Run, stages: list[Stage]):
    steps = graph.steps(stages, run.settings)
    plans = plan.make(run, steps, steps, {"first": {0}, "answer-a": {0, 1, 2, 3}})
    by_name = {item.step.name: item for item in plans}
    assert by_name["first"].packs == by_name["answer-a"].packs == []
    assert sum(map(len, by_name["answer-b"].packs)) == 4


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


def test_the_chain_pipelines_and_guards_its_successors(run: Run, stages: list[Stage]):
    steps = graph.steps(stages, run.settings)
    plans = plan.make(run, steps, steps, {})
    arrays = {array.label: array for array in chain.arrays(plans, run.profile, 1000, {})}
    assert arrays["<score-a>"].conditions == (("afterok", "<first+>"), ("aftercorr", "<answer-a>"))
    assert arrays["<score-a+>"].conditions == (
        ("afterok", "<first+>"),
        ("afterok", "<answer-a+>"),
        ("afterany", "<score-a>"),
    )
    assert arrays["<score-a+>"].dependency({"<first+>": "7"}) == "afterok:7:<answer-a+>,afterany:<score-a>"


def test_a_site_that_keeps_dead_jobs_gets_no_aftercorr(run: Run, stages: list[Stage]):
    run.profile.kill_on_invalid_dep = False
    steps = graph.steps(stages, run.settings)
    arrays = chain.arrays(plan.make(run, steps, steps, {}), run.profile, 1000, {})
    assert all(kind != "aftercorr" for array in arrays for kind, _ in array.conditions)


def test_arrays_are_split_by_the_largest_index(run: Run, stages: list[Stage]):
    run.settings.predict.shards = 7
    run.profile.resources["gpu"].tasks = 7
    steps = graph.steps(stages, run.settings)
    arrays = chain.arrays(plan.make(run, steps, steps, {}), run.profile, 3, {})
    sizes = [len(array.packs) for array in arrays if array.plan.step.name == "answer-a" and array.link == 0]
    assert sizes == [3, 3, 1]


def test_a_run_of_another_version_is_refused(run: Run):
    run.folder.mkdir()
    (run.folder / "layout").write_text("99\n")

    class Request:
        folder, settings, profile = run.folder, run.settings, run.profile

    with pytest.raises(UserError, match="layout 99"):
        submit.open_run(Request)  # type: ignore[arg-type]
