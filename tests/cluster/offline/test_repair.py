"""What a task does whose input is corrupt while the cluster does not answer; the rest runs on a real Slurm."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lumen_hpc.cluster import repair, slurm


def test_a_task_that_gets_no_answer_asks_again_and_keeps_its_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"instruct": [0]}
    looks, answers = iter([bad, bad, {}]), iter([slurm.Unreachable("sbatch: it ended without a word"), None])
    asked = []

    def resubmit(*words: object) -> None:
        asked.append(words[3])
        if error := next(answers):
            raise error

    monkeypatch.setattr(repair, "corrupt_inputs", lambda *_: next(looks))
    monkeypatch.setattr(repair, "_resubmit", resubmit)
    monkeypatch.setattr(repair, "QUEUE_INTERVAL_S", 0.0)
    monkeypatch.setattr(repair, "POLL_INTERVAL_S", 0.0)
    task = SimpleNamespace(
        run=None, step=None, ranks=SimpleNamespace(first=True), beat=lambda: None, should_stop=lambda: False
    )
    repair.verify_inputs(None, task, [], [0], tmp_path)  # type: ignore[arg-type]
    assert asked == [bad, bad]
    assert "ended without a word; asking again" in capsys.readouterr().out
