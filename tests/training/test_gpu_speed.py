"""The GPU benchmark, rehearsed whole on a CPU: every part runs, and one that hangs costs its own row only."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import gpu_speed


def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu():
    done = subprocess.run([sys.executable, gpu_speed.__file__, "--rehearse"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("every part ran\n"), done.stdout + done.stderr
    for row in set(gpu_speed.STEPS) - {"flash-attention"}:
        assert f"step       {row:20} layers 2" in done.stdout
    assert "llm, sdpa 601" in done.stdout and "llm, flex 225" in done.stdout
    assert "resumed losses: bit-equal" in done.stdout


def test_a_part_that_takes_too_long_costs_its_own_row_only(monkeypatch):
    monkeypatch.setitem(gpu_speed.LIMITS, "attention", 0.1)
    found = gpu_speed.measured("attention", ["as before"], False)
    assert found == {"as before": {"failed": "no result in 0.1 s"}}
