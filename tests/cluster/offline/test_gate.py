"""A gate verifies its step and cancels what is left, at the subprocess boundary; tests/cluster has the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import jobs
from lumen_hpc.cluster import gate, graph, plan_file, slurm, snapshot, worker
from lumen_hpc.cluster.stage import Pipeline, Ranks, Run, Stage
from lumen_hpc.config.request import Request
from tests.cluster.offline.offline_graph import finish, submit_chain


@pytest.fixture
def submitted(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> tuple[Run, dict[str, list[str]], Path]:
    """A submission, whose gate of `first` is this process; its job ids by step, links first; its folder."""
    for module in (gate, plan_file):
        monkeypatch.setattr(module, "visibility_delay", lambda folder: 0.0)
    run, jobs = submit_chain(request_here, stages)
    ids: dict[str, list[str]] = {}
    for job in jobs:
        ids.setdefault(job["step"], []).append(job["id"])
    monkeypatch.setenv("SLURM_JOB_ID", ids["first"][-1])
    return run, ids, next((run.folder / "submissions").iterdir())


def test_a_whole_step_opens_the_gate_and_its_other_links_go(
    fake: Path, submitted: tuple[Run, dict[str, list[str]], Path], stages: list[Stage]
) -> None:
    run, ids, folder = submitted
    steps = graph.steps(stages, run.settings)
    finish(run, steps[0], steps)
    own = run.folder / "first" / "logs" / f"{ids['first'][-1]}_0_log.out"
    own.touch()
    assert gate.main(run.folder, folder) == 0
    assert (fake / "cancelled").read_text().split() == ["--state=PENDING", *ids["first"][:-1]]
    assert not own.exists()


def test_a_step_that_is_not_whole_keeps_it_shut_and_what_waits_for_it_goes(
    fake: Path, submitted: tuple[Run, dict[str, list[str]], Path], capsys: pytest.CaptureFixture
) -> None:
    run, ids, folder = submitted
    assert gate.main(run.folder, folder) == 1
    assert "first: 1 of 1 shards are missing" in capsys.readouterr().out
    dependants = [id_ for step in ids if step != "first" for id_ in ids[step]]
    assert sorted((fake / "cancelled").read_text().split()[1:]) == sorted(dependants)


def test_shards_of_other_settings_do_not_count(
    submitted: tuple[Run, dict[str, list[str]], Path], stages: list[Stage]
) -> None:
    run, _, folder = submitted
    steps = graph.steps(stages, run.settings)
    run.settings.seed += 1
    finish(run, steps[0], steps)
    assert gate.main(run.folder, folder) == 1


def test_where_nodes_have_no_scancel_the_gate_decides_all_the_same(
    fake: Path, submitted: tuple[Run, dict[str, list[str]], Path], stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, folder = submitted
    monkeypatch.setenv("PATH", "/nowhere")
    assert gate.main(run.folder, folder) == 1
    steps = graph.steps(stages, run.settings)
    finish(run, steps[0], steps)
    assert gate.main(run.folder, folder) == 0


def test_a_job_waits_for_its_record_as_long_as_sbatch_may_take_to_answer(
    submitted: tuple[Run, dict[str, list[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ids, folder = submitted
    plan, late = folder / "plan.json", (folder / "plan.json").read_text()
    plan.write_text(json.dumps(json.loads(late) | {"jobs": []}))
    moments = iter((0.0, 30.0, 59.0))  # what the command waits for is no concern of the folder's file system
    answers = SimpleNamespace(monotonic=lambda: next(moments), sleep=lambda _: plan.write_text(late))
    monkeypatch.setattr(plan_file, "time", answers)
    assert plan_file.wait_for(folder, ids["first"][0]) == json.loads(late)


def test_a_job_that_no_submission_knows_does_no_work(
    submitted: tuple[Run, dict[str, list[str]], Path], stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm took it after sbatch had timed out; its work is another job's by now, under the same submission's name."""
    run, _, folder = submitted
    monkeypatch.setattr(slurm, "ANSWER_TIMEOUT_S", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(snapshot, "require_submitted", lambda run, code: None)
    pipeline = Pipeline(tuple(stages), jobs.run_pack)
    with pytest.raises(SystemExit, match="has no job 4711"):
        worker.run_pack(pipeline, str(run.folder), str(folder), "first", 0, Ranks())
    assert not (run.folder / "first" / "attempts.jsonl").exists()
