"""The GPU benchmark, rehearsed whole on a CPU: every part runs, and one that hangs is ended and named."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_speed.py"


@pytest.fixture
def rehearsed(monkeypatch, capfd):
    """The script in this process, which has imported torch; its parts are processes of their own."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--rehearse", *words])
        monkeypatch.setattr(sys, "path", [*sys.path])
        code = runpy.run_path(str(SCRIPT), run_name="gpu_speed")["main"]()
        return code, "".join(capfd.readouterr())

    return run


def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(rehearsed):
    code, printed = rehearsed()
    assert code == 0 and "every part ran\n" in printed, printed
    for row in ("as before", "compiled, selective", "adapters"):
        assert f"step        {row:27} layers 2" in printed
    # 601 where each span is a call of its own, as on a GPU: a CPU pads spans of like size into one (padded_spans.py).
    assert "llm, sdpa 452" in printed and "llm, flex 225" in printed
    assert "resumed losses: bit-equal" in printed
    differences = [float(text.split()[-1]) for text in re.findall(r"off by [\d.e+-]+", printed)]
    assert len(differences) == 3 + 8 and max(differences) < 1e-5  # of attention, then of norms and activations


def test_a_part_that_takes_too_long_is_ended_and_named(rehearsed):
    code, printed = rehearsed("--limit", "0.1")
    assert code == 1
    assert "attention   tower                       failed no result in 0.1 s" in printed
