"""The chain with outcomes on a few phantoms, through the command line: every stage, and the page on outcomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.whole.test_chain import launch

SMALL = (
    "recipe=demo-outcomes", "data.phantom.patients=60", "data.phantom.test_fraction=0.5", "train.steps=3",
    "train.mixture.diagnostic=2", "train.mixture.difference=1", "train.mixture.prediction=1",
    "train.mixture.outcome=2", "train.mixture.timeline=1", "instruct.timelines=true",
    "pretrain.patients=30", "pretrain.expert_steps=2",
    "pretrain.base_steps=2", "evaluate.bootstrap=20", "evaluate.permutations=2000", "evaluate.outcome_gates=false",
    "predict.max_new_tokens=4", "predict.shards=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    done = launch(runs, "stage=full", *SMALL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return runs / "small"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open()]


def test_every_outcome_question_has_an_answer_with_its_probability(run: Path) -> None:
    asked = {row["id"]: row["meta"]["type"] for row in rows(run / "instruct" / "outcomes-test.jsonl")}
    answers = rows(run / "prognose-lumen-outcomes" / "shard-00000-of-00001.jsonl")
    assert {row["question_id"] for row in answers} == set(asked) and set(asked.values()) == {"outcome", "timeline"}
    weighed = [row["yes"] for row in answers if asked[row["question_id"]] == "outcome"]
    assert weighed and all(0 <= yes <= 1 for yes in weighed) and len(set(weighed)) > 1
    assert not any("yes" in row for row in answers if asked[row["question_id"]] == "timeline")


def test_every_step_learns_from_each_kind_of_the_mixture(run: Path) -> None:
    steps = rows(run / "train-lumen-outcomes" / "metrics.jsonl")
    kinds = {"diagnostic", "difference", "prediction", "outcome", "timeline", "verdict"}
    assert len(steps) == 3
    for step in steps:
        assert {key.removeprefix("loss_") for key in step if key.startswith("loss_")} == kinds
        assert step["samples"] == step["step"] * (2 + 1 + 1 + 2 + 1)


def test_the_prompt_tells_of_the_state_after_the_last_image(run: Path) -> None:
    record = next(r for r in rows(run / "instruct" / "outcomes-test.jsonl") if len(r["images"]) == 3)
    text = record["conversations"][0]["value"]
    assert text.count("<image>") == 3 and text.count("Patient: ") == text.count("Laboratory values: ") == 1
    assert text.rindex("<image>") < text.index("Patient: ")


def test_the_page_judges_the_model_beside_its_rivals(run: Path) -> None:
    table = json.loads((run / "report" / "outcomes.json").read_text())["icu_48h"]
    assert {"prevalence", "age and sex", "experts", "lumen-outcomes"} <= set(table["rows"])
    assert "lumen-outcomes, no laboratory values" in table["rows"] and len(table["oracles"]) == 6
    page = (run / "report" / "outcomes.html").read_text()
    assert "TRIPOD+AI" in page and page.index("The data are phantoms") < page.index("<table")


def test_a_model_below_its_gates_fails_the_run_by_name_and_gates_json_has_them(run: Path) -> None:
    done = launch(run.parent, "stage=evaluate", *SMALL, "evaluate.outcome_gates=true", "confirm=true")
    held = {gate["name"]: gate["passed"] for gate in json.loads((run / "report" / "gates.json").read_text())}
    assert done.returncode == 1 and "AUROC below the oracle" in done.stdout + done.stderr
    assert held["AUROC below the oracle"] is False and "AUROC gained from a third visit, lower bound" in held
    assert "AUROC below the oracle" in (run / "report" / "index.html").read_text()
