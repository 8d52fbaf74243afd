"""The training's log files after a crash."""

from __future__ import annotations

import json
import logging

import pytest

from lumen_hpc.training.journal import Journal, recent_losses


def line(step: int) -> bytes:
    row = {"step": step, "loss": 1 / step, "ids": ["a"], "timing": {"seconds": 2.0}}
    return json.dumps(row).encode() + b"\n"


@pytest.mark.parametrize(
    "broken", [b"\0" * 100, b'{"step": 3, "lo', b"\xff\xfe\n", b'\n12\n[1]\n{}\n{"step": 3}\n{"step": 2}\n']
)
def test_lines_that_a_crash_broke_are_dropped(tmp_path, broken):
    lines = [line(step) for step in (1, 2, 3)]
    for name in ("metrics.jsonl", "consumed.jsonl"):
        (tmp_path / name).write_bytes(b"".join(lines) + broken)
    journal = Journal(tmp_path, step=2)
    journal.close()
    assert (journal.lost_steps, journal.lost_seconds) == (1, 2.0)
    assert recent_losses(tmp_path, 9) == [1.0, 0.5]
    assert (tmp_path / "consumed.jsonl").read_bytes() == b"".join(lines[:2])


def test_steps_without_a_row_and_with_several_are_logged(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(map(line, (1, 4, 4, 6))))
    (tmp_path / "consumed.jsonl").write_bytes(b"".join(map(line, range(1, 7))))
    with caplog.at_level(logging.WARNING):
        Journal(tmp_path, step=5).close()
    assert [record.getMessage().removeprefix(f"{tmp_path}/") for record in caplog.records] == [
        "metrics.jsonl has no row of 3 of 5 steps, first of step 2",
        "metrics.jsonl has several rows of 1 of 5 steps, first of step 4",
    ]
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(map(line, (1, 4, 4)))


def test_a_whole_journal_is_cut_in_silence(tmp_path, caplog):
    for name in ("metrics.jsonl", "consumed.jsonl"):
        (tmp_path / name).write_bytes(b"".join(map(line, range(1, 7))))
    Journal(tmp_path, step=5).close()
    Journal(tmp_path, step=0).close()
    assert not caplog.records


def test_a_measure_that_comes_later_is_added_to_the_last_row_before_its_times(tmp_path):
    journal = Journal(tmp_path, step=0)
    for step in (1, 2):
        journal.write_step(step, ["a"], {"loss": 1.0}, {"seconds": 2.0})
    assert journal.lacks("validation_loss")
    journal.amend({"validation_loss": 3.0})
    assert not journal.lacks("validation_loss")
    journal.write_step(3, ["b"], {"loss": 0.5}, {"seconds": 1.0})
    journal.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "loss": 1.0, "timing": {"seconds": 2.0}}',
        '{"step": 2, "loss": 1.0, "validation_loss": 3.0, "timing": {"seconds": 2.0}}',
        '{"step": 3, "loss": 0.5, "timing": {"seconds": 1.0}}',
    ]
