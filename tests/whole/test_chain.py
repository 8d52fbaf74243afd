"""Every stage on a few phantoms, through the command line, as `make demo` runs it but in a minute."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import lumen_hpc
from lumen_hpc.data.findings_line import FINDINGS
from lumen_hpc.serving.supervisor import read_address
from sandbox import notebook
from sandbox.checkout import make

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "pretrain.patients=60", "pretrain.expert_steps=24", "pretrain.base_steps=21", "data.phantom.patients=40",
    "data.phantom.test_fraction=0.2", "train.steps=4", "train.checkpoint_every=2",
    "predict.controls=[same]", "predict.max_new_tokens=16",
    "evaluate.gates=false", "evaluate.bootstrap=200", "evaluate.permutations=2000",
)  # fmt: skip


HELD = """
import time
from dataclasses import replace
from jobs import training

STAGE = training.STAGE

def work(task):
    hold = task.run.folder.with_name("hold")

    def beat(doing="", *more, **options):
        while (task.model, doing) == ("lumen", "computes step 4") and hold.exists():
            time.sleep(0.05)
        task.beat(doing, *more, **options)

    return training.work(replace(task, beat=beat))
"""
"""The project's own training, which lies beside it as training.py; LUMEN's waits before its last step as long as a file
`hold` lies beside the run."""


def command(runs: Path, *words: str, run: str = "small", checkout: Path = ROOT) -> list[str]:
    return [sys.executable, str(checkout / "launch.py"), *words, f"runs={runs}", f"run={run}"]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "LUMEN_PROFILE"}


def launch(runs: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    words = command(runs, *words, **more)
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
        form = json.loads((final / "config.json").read_text())["prompt_form"]
        assert (form["inline"], form["findings_line"], form["expert_text"]) == (True, True, False), (
            "as the demo's recipe"
        )
        assert form["line"] == (list(FINDINGS) if model == "lumen" else [])
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


def _answered(run: Path, per_type: int) -> list[tuple[dict, dict]]:
    """Test records of every type, each with the row that the run's LUMEN answered."""
    rows = {row["question_id"]: row for row in _rows(run / "predict-lumen") if not row.get("control")}
    taken: dict[str, list[tuple[dict, dict]]] = {}
    for line in (run / "instruct/lumen-test.jsonl").open():
        record = json.loads(line)
        pairs = taken.setdefault(record["meta"]["type"], [])
        if len(pairs) < per_type:
            pairs.append((record, rows[record["id"]]))
    return [pair for pairs in taken.values() for pair in pairs]


def _whole(row: dict) -> str:
    """An answer with the findings line that the model wrote before it."""
    return f"{row['findings']} ; {row['answer']}" if row.get("findings") else row["answer"]


def test_asked_at_the_terminal_and_from_python_lumen_answers_as_in_the_run(runs: Path):
    record, row = next(pair for pair in _answered(runs / "small", 1) if pair[0]["meta"]["type"] == "difference")
    reference, image = record["images"]
    question, days = record["meta"]["question"], record["meta"]["interval_days"]
    words = [f"image={image}", f"reference={reference}", f"days={days}", question, "json=true"]
    done = launch(runs, "ask", "model=lumen", *words)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert reply["prompt"] == record["conversations"][0]["value"]
    assert (reply["answer"], reply["findings"]) == (row["answer"], row.get("findings", ""))
    model = lumen_hpc.open_run(runs / "small").model("lumen")
    assert model.ask(question, image=image, reference=reference, days=days).answer == row["answer"]


def test_the_notebook_of_the_docs_runs_on_any_run(runs: Path, tmp_path: Path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(runs / "small")
    code = [cell for cell in notebook.execute(notebook.cells(), tmp_path)["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] for cell in code)
    assert code[-1]["outputs"][-1]["data"]["text/plain"] == ["True"], "the model answers as it did in the run"


def test_every_answerer_of_the_cheats_benchmark_reads_the_whole_run(runs: Path):
    """A run's records and training metadata are streams; the benchmark's answerers read them one after another."""
    code = """
import sys
from pathlib import Path
from benchmarks.cheats import run_inputs
inputs, settings, seed = run_inputs(Path(sys.argv[1]))
print(*(len(list(rows)) for rows in (inputs.records, inputs.records, inputs.training_meta, inputs.training_meta)))
"""
    checkout = Path(lumen_hpc.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, runs / "small"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, learned, again = map(int, done.stdout.split())
    assert first == second > 0 and learned == again > 0


@pytest.mark.timeout(900)
def test_served_lumen_answers_the_plain_client_as_in_the_run(runs: Path):
    pytest.importorskip("vllm")
    from openai import OpenAI

    log = runs / "serve.log"
    with log.open("w") as printed:
        process = subprocess.Popen(
            command(runs, "stage=serve", "model=lumen", "serve.max_model_len=1024"),
            env=environment(), stdout=printed, stderr=printed, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 600
            while (address := read_address(runs / "small" / "serve")) is None:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
            client = OpenAI(base_url=address.url, api_key=address.key, max_retries=0)
            longest = lumen_hpc.open_run(runs / "small").settings.predict.max_new_tokens
            for record, row in _answered(runs / "small", 3):
                content = [{"type": "text", "text": record["conversations"][0]["value"]}]
                for path in record["images"]:
                    data = base64.b64encode(Path(path).read_bytes()).decode()
                    content.append({"type": "image_url", "image_url": {"url": f"data:image/any;base64,{data}"}})
                messages = [{"role": "user", "content": content}]
                reply = client.chat.completions.create(model="lumen", messages=messages, max_tokens=longest)
                # as docs/serving.md says: a plain client gets the spaces around an answer too
                assert reply.choices[0].message.content.strip() == _whole(row), record["meta"]["type"]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose training a test can hold."""
    folder = tmp_path_factory.mktemp("holding")
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "jobs" / "train.py").rename(folder / "jobs" / "training.py")
    (folder / "jobs" / "train.py").write_text(HELD)
    return make(folder / "checkout", jobs=folder / "jobs")


def interrupt(checkout: Path, runs: Path, path: str, reached: str, how: str) -> int:
    """Runs the chain until the line `reached` is in a file of run `cut`, then ends it as told; its exit code.

    Ctrl-C goes to every process of the terminal, `kill -9` to the launcher alone.
    """
    file = runs / "cut" / path
    seen = file.read_text().count(reached) if file.exists() else 0
    with (runs / "cut.log").open("a") as log:
        process = subprocess.Popen(
            command(runs, "stage=full", *SMALL, run="cut", checkout=checkout),
            env=environment(), stdout=log, stderr=log, start_new_session=True,
            # Where the tests run in a shell's background, they and their children are deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    while not (file.exists() and file.read_text().count(reached) > seen):
        assert process.poll() is None, (runs / "cut.log").read_text()[-3000:]
        time.sleep(0.05)
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    return process.wait(300)


def test_interrupted_anywhere_it_goes_on_and_ends_with_the_same_tables(holding: Path, runs: Path):
    began = '"event":"began"'
    (runs / "hold").touch()
    assert interrupt(holding, runs, "experts/attempts.jsonl", began, "kill -9") == -signal.SIGKILL
    assert interrupt(holding, runs, "rewrite/attempts.jsonl", began, "ctrl-c") == 130
    marker = "train-lumen/checkpoints/step-000002/COMPLETE.json"
    assert interrupt(holding, runs, marker, '"files"', "kill -9") == -signal.SIGKILL
    (runs / "hold").unlink()
    assert interrupt(holding, runs, "predict-ft/attempts.jsonl", began, "ctrl-c") == 130
    assert interrupt(holding, runs, "evaluate/attempts.jsonl", began, "kill -9") == -signal.SIGKILL
    done = launch(runs, "stage=full", *SMALL, run="cut", checkout=holding)
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
