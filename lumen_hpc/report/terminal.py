"""The two tables on a terminal: our values alone, read from `tables.csv`; intervals and tests are in the report."""

from __future__ import annotations

import csv
from pathlib import Path

from rich.console import Console
from rich.table import Table


def show(path: Path, console: Console) -> None:
    """Prints every table of a `tables.csv`: models as rows, measures as columns, with the tables' own stars."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for name in dict.fromkeys(row["table"] for row in rows):
        table_rows = [row for row in rows if row["table"] == name]
        columns = list(dict.fromkeys((row["block"], row["measure"]) for row in table_rows))
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        table.add_column("model")
        for block, measure in columns:
            table.add_column(f"{block}\n{measure.replace('_', ' ')}", justify="right")
        for model in dict.fromkeys(row["model"] for row in table_rows):
            cells = {(row["block"], row["measure"]): _cell(row) for row in table_rows if row["model"] == model}
            table.add_row(model, *(cells.get(column, "") for column in columns))
        console.print(table)


def _cell(row: dict[str, str]) -> str:
    if not row["value"]:
        return "–"
    return f"{float(row['value']):.3f}{row['star']:<3}"
