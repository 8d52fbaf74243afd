"""A run's status for people: a table with a row a step, then what waits, what failed, and the run's server."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lumen_hpc.cluster import slurm
from lumen_hpc.cluster.stage import Run
from lumen_hpc.cluster.status import StepStatus, server
from lumen_hpc.plain_text import visible
from lumen_hpc.progress import spell

EVERY_S = 5.0
"""How often `watch` looks again."""


def show(run: Run, found: list[StepStatus], console: Console) -> None:
    """Prints a run's status once."""
    for part in parts(run, found):
        console.print(part, soft_wrap=isinstance(part, Text))


def watch(run: Run, look: Callable[[], list[StepStatus]], console: Console) -> list[StepStatus]:
    """Shows a run's status until nothing of it runs or is queued; the last one.

    On a terminal it redraws in place, elsewhere it prints again what has changed.
    """
    found, before = _look(look), ""
    with (
        Live(console=console, auto_refresh=False, vertical_overflow="visible")
        if console.is_terminal
        else _Plain() as view
    ):
        while True:
            shown = parts(run, found)
            if isinstance(view, Live):
                view.update(
                    Group(
                        *shown,
                        Text(f"{time.strftime('%H:%M:%S')}, again every {EVERY_S:.0f} s; Ctrl-C ends it", style="dim"),
                    ),
                    refresh=True,
                )
            elif (text := _text(shown)) != before:
                print(text, flush=True)
                before = text
            if not any(item.running or item.queued for item in found):
                return found
            time.sleep(EVERY_S)
            found = _look(look)


class _Plain:
    """Stands where rich's Live would, when the output is no terminal."""

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _look(look: Callable[[], list[StepStatus]]) -> list[StepStatus]:
    """The status, waiting for a controller that does not answer."""
    while True:
        try:
            return look()
        except slurm.Unreachable as error:
            print(f"{error}; trying again", file=sys.stderr, flush=True)
            time.sleep(EVERY_S)


def _text(shown: list[RenderableType]) -> str:
    console = Console(highlight=False, markup=False, width=120)
    with console.capture() as capture:
        for part in shown:
            console.print(part, soft_wrap=isinstance(part, Text))
    return capture.get().rstrip("\n")


def parts(run: Run, found: list[StepStatus]) -> list[RenderableType]:
    """The table, and a line for everything that needs more words."""
    view = Table(
        "step", "state", "shards", "running", "queued", "standby", "ETA", "GPU-h", title=str(run.folder),
        title_justify="left",
    )  # fmt: skip
    todo = any(item.todo for item in found)
    if todo:
        view.add_column("first to do", overflow="fold")
    for item in found:
        counts = (str(number or "") for number in (item.running, item.queued, item.successors))
        spent = f"{item.gpu_hours:.2f}" if item.gpu_hours else ""
        row = (item.step, item.state, f"{item.done}/{item.shards}", *counts, spell(item.eta_seconds), spent)
        view.add_row(*row, *([Text(item.todo)] if todo else []))
    lines = [line for item in found for line in _details(item)] + server(run)
    if any(item.step == "evaluate" for item in found) and all(item.state == "done" for item in found):
        lines.append(f"report: {run.page}")
    # A line each: a failure's own lines could look like those of another step, with a fix of their own.
    return [view, *(Text(visible(" ".join(line.split("\n")))) for line in lines)]


def _details(item: StepStatus) -> list[str]:
    lines = [f"{item.step}: {item.progress}"] if item.progress else []
    lines += [f"{item.step}: {line}" for line in (*item.waits, *item.notes)]
    for kind in item.failures:
        where = f" on {', '.join(kind['nodes'])}" if kind.get("nodes") else ""
        lines += [f"{item.step}: {kind['count']}x {kind['error']}{where}", f"   fix: {kind['fix']}"]
        lines += [f"   log: {kind['log']}"] if kind.get("log") else []
    return lines
