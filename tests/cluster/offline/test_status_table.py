"""What `status` and `logs` show people."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from lumen_hpc.cluster import commands, logs, slurm, status_table
from lumen_hpc.cluster.stage import Run
from lumen_hpc.cluster.status import StepStatus

FAILED = StepStatus(
    "predict-lumen", "failed", 1, 4,
    failures=[{"error": "OutOfMemoryError: x", "count": 3, "fix": "more memory", "nodes": ["n1"], "log": ""}],
)  # fmt: skip


def test_the_row_of_a_failed_step_says_what_to_do_first(run: Run) -> None:
    console = Console(file=io.StringIO(), width=140)
    status_table.show(run, [FAILED, StepStatus("evaluate", "waiting", 0, 1)], console)
    (row,) = [line for line in console.file.getvalue().splitlines() if "│ failed" in line]  # type: ignore[attr-defined]
    assert "predict-lumen" in row and "more memory" in row
    assert "3x on n1: OutOfMemoryError: x" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_narrow_terminal_shows_every_word(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    found = [StepStatus("train-lumen", "running", 11, 12, running=1, queued=2, successors=3)]
    status_table.show(run, found, commands._console())
    out = capsys.readouterr().out
    assert all(word in out for word in ("train-lumen", "running", "11/12", "standby"))


def test_a_run_without_trouble_has_no_column_for_it(run: Run) -> None:
    console = Console(file=io.StringIO(), width=140)
    status_table.show(run, [StepStatus("evaluate", "running", 0, 1, 1)], console)
    assert "first to do" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_finished_run_says_where_its_report_is(run: Run) -> None:
    def shown(*found: StepStatus) -> str:
        console = Console(file=io.StringIO(), width=140)
        status_table.show(run, list(found), console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    done, report = StepStatus("evaluate", "done", 1, 1), f"report: {run.folder}/report/index.html"
    assert report in shown(StepStatus("judge-lumen", "done", 1, 1), done)
    assert report not in shown(StepStatus("judge-lumen", "running", 0, 1, 1), done)
    assert report not in shown(StepStatus("judge-lumen", "done", 1, 1))
    assert report in shown(done, StepStatus("serve", "running", 0, 1, 1))


def looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setattr(status_table.time, "sleep", lambda seconds: None)
    going, done = [StepStatus("train", "running", 0, 1, 1)], [StepStatus("train", "done", 1, 1)]
    return [going, going, slurm.Unreachable("no answer"), going, done]


def take(answers: list[object]) -> list[StepStatus]:
    answer = answers.pop(0)
    if isinstance(answer, Exception):
        raise answer
    return answer  # type: ignore[return-value]


def test_watching_redraws_in_place_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = looks(monkeypatch)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    assert status_table.watch(run, lambda: take(answers), console)[0].state == "done"
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[1A" in text and "\x1b[2K" in text, "the cursor goes back up over what was drawn"


def test_watching_into_a_file_prints_only_what_changed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    answers = looks(monkeypatch)
    status_table.watch(run, lambda: take(answers), Console(file=io.StringIO(), width=100))
    printed = capsys.readouterr()
    assert printed.out.count("train") == 2 and "\x1b" not in printed.out
    assert "no answer; trying again" in printed.err


def log(folder: Path, step: str, name: str, text: str, age: int) -> Path:
    path = folder / step / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_logs_shows_the_end_of_a_failed_steps_log_and_its_err(tmp_path: Path) -> None:
    log(tmp_path, "train", "9_0_log.out", "newer, but nothing is wrong there", 0)
    out = log(tmp_path, "predict-lumen", "7_0_log.out", "".join(f"line {n}\n" for n in range(90)), 50)
    err = log(tmp_path, "predict-lumen", "7_0_log.err", "Traceback\n", 60)
    older = log(tmp_path, "predict-lumen", "6_0_log.out", "old", 99)
    lines = list(logs.lines(tmp_path, [StepStatus("train", "running", 0, 1, 1), FAILED]))
    assert lines[0] == f"==> {out} <==" and lines[1] == "line 60" and lines[30] == "line 89"
    assert lines[31:33] == [f"==> {err} <==", "Traceback"]
    assert lines[-1].strip() == str(older)


def test_a_bar_in_a_log_shows_its_last_state(tmp_path: Path) -> None:
    path = log(tmp_path, "train", "9_0_log.out", "start\n 10%|#\r 50%|#####\r100%|##########\nend\n", 0)
    assert logs.tail(path) == ["start", "100%|##########", "end"]


def test_without_logs_it_says_so(tmp_path: Path) -> None:
    (line,) = logs.lines(tmp_path, [StepStatus("prepare", "queued", 0, 1)])
    assert "no log yet" in line
