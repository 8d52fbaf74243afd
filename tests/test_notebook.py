"""docs/results.ipynb: it was executed, and holds nothing of the machine that did it."""

from __future__ import annotations

import ast
import re

from sandbox import notebook


def test_every_cell_was_executed_in_order():
    code = [cell for cell in notebook.cells()["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code)
    for cell in code:
        ast.parse("".join(cell["source"]))


def test_it_is_small_and_has_no_path_of_a_machine():
    text = notebook.NOTEBOOK.read_text()
    assert len(text) < 60_000
    assert re.findall(r"(?<![\w.:/<-])/(?:home|root|tmp|work|usr|Users|mnt|scratch)/[^ \"]*", text) == []


def test_a_cell_gives_what_it_prints_and_its_last_expression(tmp_path):
    made = {"cells": [{"cell_type": "code", "source": ["a = 2\n", "print('seen')\n", "a + 1"]}]}
    [cell] = notebook.execute(made, tmp_path)["cells"]
    assert cell["outputs"][0]["text"] == ["seen\n"]
    assert cell["outputs"][1]["data"] == {"text/plain": ["3"]}
