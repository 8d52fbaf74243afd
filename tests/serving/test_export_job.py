"""`stage=export`: the folder, its card from the run's own numbers, and the check before anything is kept."""

from __future__ import annotations

import json
import shutil

import pytest

import launch
from jobs import export as job
from lumen_hpc import nvila
from lumen_hpc.cluster.stage import Run, Shard, Step, Task
from lumen_hpc.config import config_file
from lumen_hpc.config.resolve import resolve
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.errors import UserError

TEXT = "The main image has an additional finding of pleural effusion than the reference image."


@pytest.fixture
def task(folders, tmp_path) -> Task:
    """A run with a trained model, records, counts, tables and controls."""
    request = resolve(["stage=full", "run=made", f"runs={tmp_path}", "serve.model=lumen"])
    run = Run(tmp_path / "made", request.settings, request.profile)
    for name in ("instruct", "train-lumen", "prepare", "report"):
        (run.folder / name).mkdir(parents=True)
    shutil.copytree(folders["dynamic_s2"], run.path("train", "lumen") / "final")
    turns = [{"from": "human", "value": "What has changed?"}, {"from": "gpt", "value": TEXT}]
    write_jsonl(run.path("instruct") / "lumen-train.jsonl", [{"id": "1", "images": [], "conversations": turns}])
    (run.path("prepare") / "counts.json").write_text(json.dumps({"read": 120, "kept": 100}))
    (run.folder / "report" / "tables.md").write_text("## Table 1. Prognostic questions\n\n| LUMEN | 0.5 [0.4, 0.6] |\n")
    (run.folder / "report" / "controls.md").write_text("| the same image twice | 0.9 [0.8, 1.0] |\n")
    (run.folder / "provenance.json").write_text(json.dumps([{"git_commit": "abc123", "packages": {"torch": "2.13.0"}}]))
    config_file.save(request, run.folder / "config.yaml")
    return Task(run, Step(job.STAGE, "lumen"))


def test_the_card_tells_data_recipe_results_controls_limits_and_licence(task):
    rows = list(job.work(task)(Shard(0, 1)))
    folder = task.folder / "made-lumen"
    assert {row["file"] for row in rows} == {f"made-lumen/{path.name}" for path in folder.iterdir()}
    card = (folder / "README.md").read_text()
    for part in (
        "license: cc-by-nc-4.0", "Not for clinical use", "100 questions kept of 120 read", "generated phantoms",
        "### Table 1. Prognostic questions", "0.5 [0.4, 0.6]", "0.9 [0.8, 1.0]", "| train.learning_rate | 0.003 |",
        "SGLang does not read this folder", "CC BY-NC 4.0", "git_commit: abc123", "torch: 2.13.0",
    ):  # fmt: skip
        assert part in card, part
    assert "Generated images, one family of questions" in card and "hospital" not in card
    assert nvila.load(folder).config.aspect == "dynamic_s2"


def test_the_cards_recipe_holds_what_the_training_read_alone(task):
    train = task.run.settings.train
    train.mixture, train.steps, train.adapter.kind, train.adapter.rank = {"diagnostic": 24}, 60, "lora", 16
    list(job.work(task)(Shard(0, 1)))
    card = (task.folder / "made-lumen" / "README.md").read_text()
    for part in ("| train.mixture | {'diagnostic': 24} |", "| train.steps | 60 |", "| train.adapter.rank | 16 |"):
        assert part in card, part
    assert "global_batch" not in card and "epochs" not in card, "the mixture and the steps stand in their places"
    train.mixture, train.steps, train.adapter.kind = {}, 0, "none"
    list(job.work(task)(Shard(0, 1)))
    card = (task.folder / "made-lumen" / "README.md").read_text()
    assert "| train.global_batch | 128 |" in card and "| train.epochs | 1.0 |" in card and "adapter.rank" not in card


def test_a_run_that_was_not_evaluated_says_so(task):
    shutil.rmtree(task.run.folder / "report")
    list(job.work(task)(Shard(0, 1)))
    card = (task.folder / "made-lumen" / "README.md").read_text()
    assert "This run was not evaluated." in card and "This run asked no controls." in card


def test_credentialed_data_names_its_duties(task):
    task.run.settings.data.source = "mimic"
    list(job.work(task)(Shard(0, 1)))
    card = (task.folder / "made-lumen" / "README.md").read_text()
    assert "PhysioNet" in card and "share them with holders of the same credential only" in card


def test_nothing_is_kept_if_a_training_text_would_travel(task):
    (task.run.folder / "report" / "tables.md").write_text(f"For example: {TEXT}\n")
    with pytest.raises(UserError, match=r"README\.md holds a text of a training record"):
        list(job.work(task)(Shard(0, 1)))
    assert not (task.folder / "made-lumen").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=nvila"], "model=nvila is the base as it was published"),
        (["model=lumen"], "stage export-lumen reads instruct"),
    ],
)
def test_what_cannot_be_exported_is_said(task, capsys, words, message):
    assert launch.main(["stage=export", "run=made", f"runs={task.run.folder.parent}", *words]) == 2
    assert message in capsys.readouterr().err
