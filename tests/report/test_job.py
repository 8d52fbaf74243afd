"""The evaluate job on a run created by the real stages before it, with pretended answers in place of trained models."""

from __future__ import annotations

import importlib
import json

import pytest

from lumen_hpc.cluster import manifest
from lumen_hpc.cluster.shards import write_shard
from lumen_hpc.cluster.stage import Run, Shard, Step, Task
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Settings
from lumen_hpc.data import perturbations
from lumen_hpc.data.records import Records
from lumen_hpc.report.criteria import GateFailed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = Settings()
    settings.data.phantom.patients, settings.data.phantom.test_fraction = 60, 0.4
    settings.instruct.expert_text = False
    settings.instruct.findings_first = True
    settings.predict.controls = ["same", "swapped"]
    settings.predict.shards = settings.rewrite.shards = 1
    settings.evaluate.bootstrap, settings.evaluate.permutations = 50, 2000
    pretended = Run(tmp_path_factory.mktemp("runs") / "pretended", settings, Profile())
    write(pretended, "experts", rows=[])
    for stage in ("prepare", "rewrite", "instruct"):
        write(pretended, stage)
    for model in settings.predict.models:
        write(pretended, "predict", model, answers(pretended, model))
        write(pretended, "judge", model)
    return pretended


def write(run, name, model="", rows=None):
    """One shard of a step, as the worker writes it."""
    stage = importlib.import_module(f"jobs.{name}")
    task = Task(run, Step(stage.STAGE, model))
    task.folder.mkdir(parents=True, exist_ok=True)
    written = write_shard(task.folder, Shard(0, 1), stage.work(task)(Shard(0, 1)) if rows is None else rows)
    line = {"shard": 0, "of": 1, "rows": written.rows, "seconds": 1.5, "gpu_seconds": 0.0, "node": "here"}
    manifest.append(task.folder / manifest.NAME, line)
    return task


def answers(run, model):
    """LUMEN says the reference answer, findings line and all; the others say one thing to everything."""
    records = Records(run.path("instruct") / "lumen-test.jsonl")
    for k, record in enumerate(records):
        text = record["conversations"][1]["value"] if model == "lumen" else "This image shows edema."
        row = {
            "question_id": record["meta"]["question_id"],
            "model": model,
            "answer": text,
            "tokens": 5,
            "seconds": 0.1,
        }
        yield row
        for control in run.settings.predict.controls:
            if controlled := perturbations.perturb(control, records, k):
                shown = {key: controlled["meta"][key] for key in ("ref_study_id", "study_id")}
                yield row | shown | {"control": control, "answer": "nothing has changed."}


def test_it_writes_the_report_with_the_digest_of_each_file(run):
    task = write(run, "evaluate")
    report = run.folder / "report"
    rows = [json.loads(line) for line in (task.folder / Shard(0, 1).file).read_text().splitlines()]
    assert {row["file"] for row in rows} >= {"../report/index.html", "../report/tables.csv", "../report/samples.jsonl"}
    assert all(manifest.matches(task.folder / row["file"], row) for row in rows)
    html = (report / "index.html").read_text()
    assert html.count("data:image/jpeg") > 20
    assert "oracle: reference, days and cue" in html
    samples = [json.loads(line) for line in (report / "samples.jsonl").read_text().splitlines()]
    lumen = [row for row in samples if row["model"] == "lumen" and row["type"] == "difference"]
    assert lumen and all(row["rouge_l"] == row["change_f1_macro"] == 1 for row in lumen)


def test_radiographs_of_either_kind_are_shown_and_a_broken_file_is_not(run, tmp_path):
    from jobs.evaluate import read_grey_levels

    folder = run.path("prepare") / "phantom"
    dicom, jpeg = next(folder.rglob("*.dcm")), next(folder.rglob("*.jpg"))
    for path in (dicom, jpeg):
        pixels = read_grey_levels(str(path))
        assert pixels.shape == (64, 64) and pixels.dtype == "uint8" and pixels.max() > 100
    corrupt = tmp_path / "broken.jpg"
    corrupt.write_bytes(b"no picture")
    assert read_grey_levels(str(corrupt)) is None and read_grey_levels(str(tmp_path / "missing.jpg")) is None


def test_a_demo_below_its_gates_writes_its_report_and_fails_by_name(run):
    run.settings.evaluate.gates = True
    try:
        with pytest.raises(GateFailed, match=r"swapped order: F1 against the swapped truth: 0\.000"):
            write(run, "evaluate")
    finally:
        run.settings.evaluate.gates = False
    held = json.loads((run.folder / "report" / "gates.json").read_text())
    assert {gate["name"]: gate["passed"] for gate in held}["difference, change F1"] is True
    assert not all(gate["passed"] for gate in held)
