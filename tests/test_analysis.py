"""`open_run`: frames of what the stages wrote, verified, each read when it is asked for."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import lumen_hpc
from lumen_hpc.analysis import COLUMNS
from lumen_hpc.cluster import manifest
from lumen_hpc.cluster.shards import Shard, write_shard
from lumen_hpc.cluster.submit import LAYOUT
from lumen_hpc.config import config_file
from lumen_hpc.config.resolve import resolve
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.errors import UserError
from lumen_hpc.files import sha256
from lumen_hpc.report.costs import Cost

QUESTIONS = [
    {
        "question_id": f"q{k}",
        "subject_id": 10 + k // 2,
        "study_id": 50 + k,
        "ref_study_id": None if k % 2 else 40 + k,
        "type": "abnormality" if k % 2 else "difference",
        "question": "what has changed?",
        "short_answer": "nothing has changed.",
        "closed": False,
        "interval_days": None if k % 2 else 7,
        "split": "test",
    }
    for k in range(4)
]


def step(
    folder: Path, rows: list[dict[str, Any]], files: tuple[Path, ...] = (), shards: int = 1, finished: str = ""
) -> None:
    """Writes a step as a worker would: shards, a manifest line each, and files beside them."""
    for index in range(shards):
        shard = Shard(index, shards)
        written = write_shard(folder, shard, rows[index::shards])
        beside = [
            {
                "file": str(path.relative_to(folder.parent)) if path.parent == folder else f"../report/{path.name}",
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
                "mtime_ns": path.stat().st_mtime_ns,
            }
            for path in files
        ]
        for row in beside:
            row["file"] = row["file"].removeprefix(f"{folder.name}/")
        manifest.append(
            folder / manifest.NAME,
            {
                "shard": index, "of": shards, "rows": written.rows,
                "sha256": written.sha256, "content": written.content,
                "bytes": written.bytes, "mtime_ns": written.mtime_ns, "files": beside, "inputs": "", "config": "",
                "code": "", "seconds": 1.0, "gpu_seconds": 0.0, "node": "n1", "pack": 0, "attempt": 1,
                "finished": finished,
            },
        )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    request = resolve(["stage=full", "run=run", f"runs={tmp_path}", "predict.models=[nvila,lumen]"])
    for name in ("prepare", "report"):
        (run / name).mkdir(parents=True)
    config_file.save(request, run / "config.yaml")
    (run / "layout").write_text(f"{LAYOUT}\n")
    studies = [
        {"subject_id": 10, "study_id": 50, "dicom_id": "a-b", "image": f"{run}/prepare/phantom/files/a.jpg",
         "view": "PA", "taken_at": "2150-08-10T23:55:25", "split": "test"}
    ]  # fmt: skip
    write_jsonl(run / "prepare" / "studies.jsonl", studies)
    write_jsonl(run / "prepare" / "questions.jsonl", QUESTIONS)
    step(run / "prepare", [], (run / "prepare" / "studies.jsonl", run / "prepare" / "questions.jsonl"))
    instruct = run / "instruct"
    instruct.mkdir()
    metas = [{**{k: v for k, v in row.items() if k != "split"}, "long_answer": "Nothing."} for row in QUESTIONS]
    write_jsonl(instruct / "lumen-test.jsonl", [{"id": row["question_id"], "images": [], "meta": row} for row in metas])
    step(instruct, [], (instruct / "lumen-test.jsonl",))
    samples = []
    for model in ("nvila", "lumen"):
        ids = [row["question_id"] for row in QUESTIONS]
        answers = [{"question_id": id, "model": model, "answer": "No.", "tokens": 2, "seconds": 0.5} for id in ids]
        controls = [{**answers[0], "control": "swapped"}]
        step(run / f"predict-{model}", answers + controls, shards=2)
        scores = [{"question_id": id, "model": model, "judge": "j", "score": 4, "expected_score": 4.5} for id in ids]
        step(run / f"judge-{model}", [*scores, {**scores[0], "canary": "wrong side", "passed": True}])
        samples += [
            {"question_id": id, "type": "difference", "model": model, "bleu4": 0.25, "judge": 4.0} for id in ids
        ]
    write_jsonl(run / "report" / "samples.jsonl", samples)
    step(run / "evaluate", [], (run / "report" / "samples.jsonl",))
    return run


def test_frames_hold_what_the_stages_wrote(folder: Path):
    run = lumen_hpc.open_run(folder)
    assert run.models == ["nvila", "lumen"]
    back = json.loads(run.questions.astype(object).where(run.questions.notna(), None).to_json(orient="records"))
    assert back == QUESTIONS
    assert run.studies["taken_at"].iloc[0].isoformat() == "2150-08-10T23:55:25"
    assert len(run.answers) == 10 and run.answers["control"].notna().sum() == 2
    assert len(run.scores) == 10 and run.scores["canary"].notna().sum() == 2


def test_every_frame_has_its_documented_columns_and_no_others(folder: Path):
    step(folder / "rewrite", [{"question_id": "q0", "long_answer": "Nothing.", "source": "llm", "attempts": 1}])
    empty = {name: getattr(lumen_hpc.open_run(folder), name).columns.tolist() for name in ("training", "costs")}
    (folder / "train-lumen").mkdir()
    row = {"step": 1, "loss": 0.5, "loss_verdict": 0.1, "timing": {"seconds": 1.0, "mfu": 0.3}}
    (folder / "train-lumen" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    began = {"pack": 0, "attempt": 1, "job": "", "node": "n1", "cpus": 2, "gpus": 1, "event": "began", "time": 1.0}
    manifest.append(folder / "judge-lumen" / "attempts.jsonl", began)
    run = lumen_hpc.open_run(folder)
    assert len(run.costs) == len(run.training) == 1
    assert {name: getattr(run, name).columns.tolist() for name in COLUMNS} == {
        name: list(columns) for name, columns in COLUMNS.items()
    }
    assert empty == {name: list(COLUMNS[name]) for name in empty}
    assert [item.name for item in dataclasses.fields(Cost)] == list(COLUMNS["costs"])


def test_results_join_a_row_a_question_and_model(folder: Path):
    results = lumen_hpc.open_run(folder).results
    assert len(results) == 8 and not results["answer"].isna().any()
    assert set(results["judge"]) == {4.0} and set(results["judged_by"]) == {"j"}
    assert (
        set(results["score"]) == {4} and set(results["bleu4"]) == {0.25} and set(results["long_answer"]) == {"Nothing."}
    )


def test_answers_that_were_written_again_are_not_shown_beside_scores_of_others(folder: Path):
    """Until stage evaluate has run again, its measures and the judge's scores are of the answers before."""
    now = [{"question_id": row["question_id"], "model": "lumen", "answer": "Yes."} for row in QUESTIONS]
    step(folder / "predict-lumen", [{**row, "answer": "No."} for row in now], shards=2, finished="2026-01-02T00:00:00Z")
    evaluated = manifest.latest(folder / "evaluate")[0]
    manifest.append(folder / "evaluate" / manifest.NAME, {**evaluated, "finished": "2026-01-03T00:00:00Z"})
    assert len(lumen_hpc.open_run(folder).results) == 8
    step(folder / "predict-lumen", now, shards=2, finished="2026-01-04T00:00:00Z")
    with pytest.raises(UserError, match="predict-lumen was written again after stage evaluate scored it"):
        _ = lumen_hpc.open_run(folder).results
    manifest.append(folder / "evaluate" / manifest.NAME, {**evaluated, "finished": "2026-01-05T00:00:00Z"})
    assert set(lumen_hpc.open_run(folder).results.query("model == 'lumen'")["answer"]) == {"Yes."}


@pytest.mark.parametrize("name", ["judge-lumen", "instruct"])
def test_judgements_and_questions_that_were_written_again_are_not_shown_beside_scores_of_others(
    folder: Path, name: str
):
    (line,) = manifest.latest(folder / name).values()
    manifest.append(folder / name / manifest.NAME, {**line, "content": "another", "finished": "2026-01-04T00:00:00Z"})
    with pytest.raises(UserError, match=f"{name} was written again after stage evaluate scored it"):
        _ = lumen_hpc.open_run(folder).results


def test_results_have_the_first_judges_scores_of_answers_alone(folder: Path):
    first = [{"question_id": row["question_id"], "model": "lumen", "judge": "j", "score": 4} for row in QUESTIONS]
    second = [{**row, "judge": "second", "score": 1} for row in first]
    canary = {**first[0], "score": 9, "canary": "side", "passed": False}
    step(folder / "judge-lumen", [canary, *first, *second])
    results = lumen_hpc.open_run(folder).results
    assert set(results["judged_by"]) == {"j"} and set(results["score"]) == {4} and len(results) == 8


def test_a_stage_with_a_shard_missing_is_named(folder: Path):
    lines = manifest.read(folder / "predict-lumen" / manifest.NAME)
    write_jsonl(folder / "predict-lumen" / manifest.NAME, lines[:1])
    with pytest.raises(UserError, match="1 of 2 shards are done; run stage=predict first"):
        _ = lumen_hpc.open_run(folder).answers


def test_answers_of_a_node_whose_clock_is_ahead_count_as_scored(folder: Path):
    for name, finished in (("predict-lumen", "2026-01-02T00:00:09Z"), ("evaluate", "2026-01-02T00:00:00Z")):
        lines = [{**line, "finished": finished} for line in manifest.read(folder / name / manifest.NAME)]
        write_jsonl(folder / name / manifest.NAME, lines)
    assert len(lumen_hpc.open_run(folder).results) == 8


def test_a_file_that_is_not_what_the_stage_wrote_is_named(folder: Path):
    run = lumen_hpc.open_run(folder)
    path = folder / "prepare" / "questions.jsonl"
    path.write_bytes(path.read_bytes()[:-2] + b"]\n")
    with pytest.raises(UserError, match=r"questions\.jsonl: not the file that stage prepare wrote"):
        _ = run.questions
    assert len(run.studies) == 1  # each frame is read on its own
    shard = folder / "predict-lumen" / "shard-00001-of-00002.jsonl"
    shard.write_text("")
    with pytest.raises(UserError, match=r"predict-lumen: shard 1 is not the file that its manifest records"):
        _ = run.answers


def test_an_unfinished_stage_is_named(folder: Path):
    lines = manifest.read(folder / "judge-nvila" / manifest.NAME)
    (folder / "judge-nvila" / manifest.NAME).unlink()
    assert lines
    with pytest.raises(UserError, match="run stage=judge first"):
        _ = lumen_hpc.open_run(folder).scores
    with pytest.raises(UserError, match="run stage=rewrite first"):
        _ = lumen_hpc.open_run(folder).rewrites


def test_what_is_no_run_is_refused(tmp_path: Path, folder: Path):
    with pytest.raises(UserError, match=rf"there is no .*/elsewhere; the runs here are {folder.name}"):
        lumen_hpc.open_run(folder.parent / "elsewhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is no run: it has no config\.yaml"):
        lumen_hpc.open_run(tmp_path / "empty")
    with pytest.raises(UserError, match=rf"is a part of a run; give the run's folder, .*/{folder.name}$"):
        lumen_hpc.open_run(folder / "judge-lumen")
    with pytest.raises(UserError, match=r"config\.yaml is no run, but a file; give the folder"):
        lumen_hpc.open_run(folder / "config.yaml")
    with pytest.raises(UserError, match=rf"give one of the runs in it, such as {folder.parent.name}/{folder.name}$"):
        lumen_hpc.open_run(folder.parent)
    (folder / "layout").write_text("1\n")
    with pytest.raises(UserError, match=r"written by another version of lumen_hpc \(layout 1,"):
        lumen_hpc.open_run(folder)


def test_costs_have_a_row_a_step_that_ran(folder: Path):
    began = {"pack": 0, "attempt": 1, "chain": "0001", "job": "", "node": "n1", "at": "", "cpus": 2, "gpus": 1}
    for event, time in (("began", 100.0), ("done", 3700.0)):
        manifest.append(
            folder / "judge-lumen" / "attempts.jsonl", {**began, "event": event, "time": time, "peak_mb": 1}
        )
    row = lumen_hpc.open_run(folder).costs.set_index("step").loc["judge-lumen"]
    assert row["gpu_hours"] == 1.0 and row["cpu_hours"] == 2.0 and row["attempts"] == 1


def test_a_moved_runs_phantoms_are_where_the_run_is(folder: Path, tmp_path: Path):
    image = folder / "prepare" / "phantom" / "files" / "a.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    copy = shutil.copytree(folder, tmp_path / "a copy")  # whose original is still there
    assert lumen_hpc.open_run(copy).studies["image"].tolist() == [f"{copy}/prepare/phantom/files/a.jpg"]
    moved = folder.rename(tmp_path / "moved run")
    assert lumen_hpc.open_run(moved).studies["image"].tolist() == [f"{moved}/prepare/phantom/files/a.jpg"]


def test_a_training_under_way_and_those_of_further_seeds_are_read(folder: Path):
    for name, count in (("train-lumen", 3), ("train-lumen@1", 2), ("train-lumen-outcomes", 5)):
        (folder / name).mkdir()
        rows = [json.dumps({"step": step, "loss": 0.5, "timing": {"seconds": 1.0}}) for step in range(count)]
        (folder / name / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 9, "lo']))
    training = lumen_hpc.open_run(folder).training
    assert training.groupby("model").size().to_dict() == {"lumen": 3, "lumen@1": 2}
    assert set(training["timing.seconds"]) == {1.0}


def test_an_installation_without_the_stages_is_told_which_extra_reads_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    monkeypatch.delitem(sys.modules, "lumen_hpc.analysis")
    with pytest.raises(ModuleNotFoundError, match=r"duckdb.*pip install '\.\[stages\]'"):
        lumen_hpc.open_run("runs/demo")
