import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_process_with_text_alone_does_not_keep_zero3_waiting():
    """Two processes with unequal numbers of tower calls: it ends, and with the losses of one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command.append(str(Path(__file__).with_name("zero3_worker.py")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    losses = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("losses")]
    assert len(losses) == 2, done.stderr[-2000:]
    for together, alone in losses:
        assert abs(float(together) - float(alone)) < 1e-5
