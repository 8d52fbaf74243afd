"""The training's log files after a crash."""

from __future__ import annotations

import json

import pytest

from lumen_hpc.training.journal import Journal, recent_losses


@pytest.mark.parametrize("broken", [b"\0" * 100, b'{"step": 3, "lo', b"\xff\xfe\n", b"\n12\n[1]\n{}\n"])
def test_lines_that_a_crash_broke_are_dropped(tmp_path, broken):
    rows = [{"step": step, "loss": 1 / step, "timing": {"seconds": 2.0}} for step in (1, 2, 3)]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    for name in ("metrics.jsonl", "consumed.jsonl"):
        (tmp_path / name).write_bytes(b"".join(lines) + broken)
    journal = Journal(tmp_path, step=2)
    journal.close()
    assert (journal.lost_steps, journal.lost_seconds) == (1, 2.0)
    assert recent_losses(tmp_path, 9) == [1.0, 0.5]
    assert (tmp_path / "consumed.jsonl").read_bytes() == b"".join(lines[:2])
