"""Runs docs/results.ipynb and keeps what its cells give: `python -m sandbox.notebook FOLDER`, FOLDER has runs/demo.

No kernel is needed: a cell is Python whose last expression is shown, a frame as text and as HTML.
"""

from __future__ import annotations

import ast
import io
import json
import os
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "results.ipynb"


def cells() -> dict[str, Any]:
    """The notebook as it lies in docs."""
    return json.loads(NOTEBOOK.read_text())


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with fresh outputs, its cells run in order in `folder`; an error of a cell is raised."""
    names: dict[str, Any] = {"__name__": "__main__"}
    executed_cells = []
    number = 0
    with chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                number += 1
                outputs = _run("".join(cell["source"]), names, number)
                cell = cell | {"execution_count": number, "outputs": outputs}
            executed_cells.append(cell)
    return notebook | {"cells": executed_cells}


def _run(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    body = ast.parse(source).body
    last_expression = body[-1] if body and isinstance(body[-1], ast.Expr) else None
    if last_expression:
        body.pop()
    stdout = io.StringIO()
    with redirect_stdout(stdout):
        exec(compile(ast.Module(body, []), f"<cell {number}>", "exec"), names)
        value = (
            eval(compile(ast.Expression(last_expression.value), f"<cell {number}>", "eval"), names)
            if last_expression
            else None
        )
    outputs: list[dict[str, Any]] = []
    if text := stdout.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(text)})
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        if html := getattr(value, "_repr_html_", lambda: None)():
            data["text/html"] = _lines(html)
        outputs.append({"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}})
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.curdir)
    NOTEBOOK.write_text(json.dumps(execute(cells(), folder), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
