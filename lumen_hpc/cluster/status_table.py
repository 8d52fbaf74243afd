"""A run's status for people: a table with one row per step, then what waits, what failed, and the run's server."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lumen_hpc.cluster import live, slurm
from lumen_hpc.cluster.stage import Run
from lumen_hpc.cluster.status import StepStatus, server
from lumen_hpc.plain_text import visible
from lumen_hpc.progress import spell

REFRESH_INTERVAL_S = 5.0
"""How often `watch` looks again."""


def show(run: Run, step_statuses: list[StepStatus], console: Console) -> None:
    """Prints a run's status once."""
    for part in parts(run, step_statuses):
        console.print(part, soft_wrap=isinstance(part, Text))


def watch(run: Run, query: Callable[[], list[StepStatus]], console: Console) -> list[StepStatus]:
    """Shows a run's status until nothing of it runs or is queued; the last one.

    On a terminal it redraws in place, elsewhere it prints again what has changed.
    """
    step_statuses, last_text = _query_patiently(query), ""
    with (
        Live(console=console, auto_refresh=False, vertical_overflow="visible")
        if console.is_terminal
        else nullcontext() as display
    ):
        while True:
            renderables = parts(run, step_statuses)
            if display:
                display.update(
                    Group(
                        *renderables,
                        Text(
                            f"{time.strftime('%H:%M:%S')}, again every {REFRESH_INTERVAL_S:.0f} s; Ctrl-C ends it",
                            style="dim",
                        ),
                    ),
                    refresh=True,
                )
            elif (text := _render(renderables)) != last_text:
                print(text, flush=True)
                last_text = text
            if not any(item.running or item.queued for item in step_statuses):
                return step_statuses
            time.sleep(REFRESH_INTERVAL_S)
            step_statuses = _query_patiently(query)


def _query_patiently(query: Callable[[], list[StepStatus]]) -> list[StepStatus]:
    """The status, waiting for a controller that does not answer."""
    while True:
        try:
            return query()
        except live.Elsewhere:
            raise
        except slurm.Unreachable as error:
            print(f"{error}; trying again", file=sys.stderr, flush=True)
            time.sleep(REFRESH_INTERVAL_S)


def _render(renderables: list[RenderableType]) -> str:
    console = Console(highlight=False, markup=False, width=120)
    with console.capture() as capture:
        for part in renderables:
            console.print(part, soft_wrap=isinstance(part, Text))
    return capture.get().rstrip("\n")


def parts(run: Run, step_statuses: list[StepStatus]) -> list[RenderableType]:
    """The table, then one line for each detail that does not fit a cell."""
    table = Table(
        "step", "state", "shards", "running", "queued", "standby", "ETA", "GPU-h", title=str(run.folder),
        title_justify="left",
    )  # fmt: skip
    has_fixes = any(item.first_fix for item in step_statuses)
    if has_fixes:
        table.add_column("first to do", overflow="fold")
    for item in step_statuses:
        counts = (str(number or "") for number in (item.running, item.queued, item.successors))
        gpu_hours = f"{item.gpu_hours:.2f}" if item.gpu_hours else ""
        row = (item.step, item.state, f"{item.done}/{item.shards}", *counts, spell(item.eta_seconds), gpu_hours)
        table.add_row(*row, *([Text(item.first_fix)] if has_fixes else []))
    lines = [line for item in step_statuses for line in _details(item)] + server(run)
    names = [item.step for item in step_statuses]
    last = names.index("evaluate") if "evaluate" in names else -1  # what comes after it is on request
    if last >= 0 and all(item.state == "done" for item in step_statuses[: last + 1]):
        lines.append(f"report: {run.page}")
    # A line each: a failure's own lines could look like those of another step, with a fix of their own.
    return [table, *(Text(visible(" ".join(line.split("\n")))) for line in lines)]


def _details(item: StepStatus) -> list[str]:
    lines = [f"{item.step}: {item.progress}"] if item.progress else []
    lines += [f"{item.step}: {line}" for line in (*item.waits, *item.notes)]
    for kind in item.failures:
        where = f" on {', '.join(kind['nodes'])}" if kind.get("nodes") else ""
        lines += [f"{item.step}: {kind['count']}x{where}: {kind['error']}", f"   fix: {kind['fix']}"]
        lines += [f"   log: {kind['log']}"] if kind.get("log") else []
    return lines
