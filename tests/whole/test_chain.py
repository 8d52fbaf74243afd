"""Every stage on a few phantoms, through the command line, as `make demo` runs it but in a minute."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "pretrain.patients=60", "pretrain.expert_steps=24", "pretrain.base_steps=21", "data.phantom.patients=40",
    "data.phantom.test_fraction=0.2", "train.steps=4", "train.checkpoint_every=2",
    "predict.controls=[same]", "predict.max_new_tokens=16",
    "evaluate.gates=false", "evaluate.bootstrap=200",
)  # fmt: skip


def command(runs: Path, *words: str, run: str = "small") -> list[str]:
    return [sys.executable, str(ROOT / "launch.py"), *words, f"runs={runs}", f"run={run}"]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "LUMEN_PROFILE"}


def launch(runs: Path, *words: str, run: str = "small") -> subprocess.CompletedProcess[str]:
    words = command(runs, *words, run=run)
    return subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=900)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    done = launch(runs, "stage=full", *SMALL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return runs


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("shard-*.jsonl")) for line in path.open()]


def test_it_ends_with_the_tables_and_the_page(runs: Path):
    report = runs / "small" / "report"
    assert {"index.html", "tables.md", "tables.csv", "tables.tex"} <= {path.name for path in report.iterdir()}
    tables = (report / "tables.md").read_text()
    assert all(name in tables for name in ("Table 1", "Table 2", "tiny NVILA-FT", "LUMEN"))


def test_every_test_question_is_answered_and_judged_by_every_model(runs: Path):
    run = runs / "small"
    asked = {json.loads(line)["meta"]["question_id"] for line in (run / "instruct/lumen-test.jsonl").open()}
    assert asked
    for model in ("nvila", "ft", "lumen"):
        answers = [row for row in _rows(run / f"predict-{model}") if not row.get("control")]
        assert sorted(row["question_id"] for row in answers) == sorted(asked)
        judged = {row["question_id"] for row in _rows(run / f"judge-{model}") if not row.get("canary")}
        assert judged >= asked


def test_the_models_are_trained_and_in_the_official_layout(runs: Path):
    for model in ("ft", "lumen"):
        final = runs / "small" / f"train-{model}" / "final"
        assert {"config.json", "llm", "vision_tower", "mm_projector"} <= {path.name for path in final.iterdir()}
        losses = [json.loads(line)["loss"] for line in (final.parent / "metrics.jsonl").open()]
        assert len(losses) == 4


def test_the_same_command_again_does_nothing(runs: Path):
    before = {path: path.stat().st_mtime_ns for path in (runs / "small").rglob("shard-*")}
    again = launch(runs, "stage=full", *SMALL)
    assert again.returncode == 0 and again.stdout.count("already done") == 14
    assert {path: path.stat().st_mtime_ns for path in (runs / "small").rglob("shard-*")} == before


def test_a_lost_shard_comes_back_the_same_and_sets_off_nothing_later(runs: Path):
    run = runs / "small"
    lost = run / "rewrite" / "shard-00001-of-00002.jsonl"
    before = lost.read_bytes()
    lost.unlink()
    again = launch(runs, "stage=full", *SMALL)
    assert again.returncode == 0 and again.stdout.count("already done") == 13
    assert lost.read_bytes() == before


def test_status_and_json_agree_that_it_is_done(runs: Path):
    assert launch(runs, "status").returncode == 0
    told = json.loads(launch(runs, "status", "json=true").stdout)
    assert {step["state"] for step in told["steps"]} == {"done"}


def interrupt(runs: Path, path: str, reached: str, how: str) -> int:
    """Runs the chain until the line `reached` is in a file of run `cut`, then ends it as told; its exit code.

    Ctrl-C goes to every process of the terminal, `kill -9` to the launcher alone.
    """
    file = runs / "cut" / path
    seen = file.read_text().count(reached) if file.exists() else 0
    with (runs / "cut.log").open("a") as log:
        process = subprocess.Popen(
            command(runs, "stage=full", *SMALL, run="cut"),
            env=environment(), stdout=log, stderr=log, start_new_session=True,
            # Where the tests run in a shell's background, they and their children are deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    while not (file.exists() and file.read_text().count(reached) > seen):
        assert process.poll() is None, (runs / "cut.log").read_text()[-3000:]
        time.sleep(0.02)
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    return process.wait(60)


def test_interrupted_anywhere_it_goes_on_and_ends_with_the_same_tables(runs: Path):
    began = '"event":"began"'
    assert interrupt(runs, "experts/attempts.jsonl", began, "kill -9") == -signal.SIGKILL
    assert interrupt(runs, "rewrite/attempts.jsonl", began, "ctrl-c") == 130
    assert interrupt(runs, "train-lumen/metrics.jsonl", '"step": 3', "kill -9") == -signal.SIGKILL
    assert interrupt(runs, "predict-ft/attempts.jsonl", began, "ctrl-c") == 130
    assert interrupt(runs, "evaluate/attempts.jsonl", began, "kill -9") == -signal.SIGKILL
    done = launch(runs, "stage=full", *SMALL, run="cut")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    cut, small = runs / "cut", runs / "small"
    for kind in ("md", "csv", "tex"):
        assert (cut / f"report/tables.{kind}").read_bytes() == (small / f"report/tables.{kind}").read_bytes()
    for manifest in cut.glob("*/manifest.jsonl"):
        lines = [json.loads(line)["shard"] for line in manifest.open()]
        assert len(lines) == len(set(lines)), f"{manifest} tells of work that was done twice"
    restarts = [json.loads(line) for line in (cut / "train-lumen/restarts.jsonl").open()]
    assert restarts[-1]["step"] == 2, "it did not go on from its checkpoint"
    told = json.loads(launch(runs, "status", "json=true", run="cut").stdout)
    assert {step["state"] for step in told["steps"]} == {"done"}
