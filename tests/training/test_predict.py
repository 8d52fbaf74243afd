"""What opening a model for answers needs."""

from __future__ import annotations

import subprocess
import sys


def test_answers_need_no_deepspeed() -> None:
    program = "import sys; from lumen_hpc.training import predict; print('deepspeed' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == ["False"]
