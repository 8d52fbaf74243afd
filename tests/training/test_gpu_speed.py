"""The GPU benchmark, rehearsed whole on a CPU: every part runs, and one that hangs is ended and named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_speed.py"


def rehearsed(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, "--rehearse", *words], capture_output=True, text=True)


def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu():
    done = rehearsed()
    assert done.returncode == 0 and done.stdout.endswith("every part ran\n"), done.stdout + done.stderr
    for row in ("as before", "compiled, selective", "adapters"):
        assert f"step        {row:27} layers 2" in done.stdout
    # 601 where each span is a call of its own, as on a GPU: a CPU pads spans of like size into one (padded_spans.py).
    assert "llm, sdpa 452" in done.stdout and "llm, flex 225" in done.stdout
    assert "resumed losses: bit-equal" in done.stdout
    differences = [float(text.split()[-1]) for text in re.findall(r"off by [\d.e+-]+", done.stdout)]
    assert len(differences) == 3 + 8 and max(differences) < 1e-5  # of attention, then of norms and activations


def test_a_part_that_takes_too_long_is_ended_and_named():
    done = rehearsed("--limit", "0.1")
    assert done.returncode == 1
    assert "attention   tower                       failed no result in 0.1 s" in done.stdout
