"""Bars that do not flood a log."""

from __future__ import annotations

import io

import pytest

from lumen_hpc import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    assert list(progress.with_progress(range(12), "predict shard 1 of 2", lambda: 12, stream=out)) == list(range(12))
    lines = out.getvalue().splitlines()
    assert 3 <= len(lines) <= 5
    assert all(line.startswith("predict shard 1 of 2: ") and "/12 [" in line and "\r" not in line for line in lines)
    assert "100%" in lines[-1] and " 12/12 [" in lines[-1], "work that is done says so"


def test_a_log_counts_from_the_first_row_for_which_a_model_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A predict shard of 8,805 rows once said 84 hours: its first row had taken half a minute."""
    clock = iter([0.0, 1000.0, 1001.0, 1040.0, 1040.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    rows = progress.with_progress(range(100), "predict", lambda: 100, stream=out)
    for _ in range(3):
        next(rows)
    (line,) = out.getvalue().splitlines()[1:]
    assert "3/100 [00:40<" in line and "20.00s/ rows" in line


def test_rows_that_no_stage_counts_leave_no_line() -> None:
    out = io.StringIO()
    list(progress.with_progress(range(3), "train", stream=out, interval_s=0.0))
    assert out.getvalue() == ""


def test_short_work_leaves_no_line() -> None:
    out = io.StringIO()
    list(progress.with_progress(range(100), "experts", stream=out))
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar_that_redraws() -> None:
    out = Terminal()
    list(progress.with_progress(range(3), "experts", lambda: 3, stream=out))
    assert "\r" in out.getvalue() and "\n" not in out.getvalue()


def test_durations_for_people() -> None:
    assert [progress.spell(value) for value in (None, 45, 720, 12_600)] == ["", "45 s", "12 min", "3.5 h"]
