"""`python launch.py logs run=NAME [stage=NAME]`: the end of the log that matters now, and where the others are.

That is the newest log of a step that failed, else of one that runs, else of any; with its `.err` where it has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lumen_hpc.cluster.status import StepStatus
from lumen_hpc.files import last_lines
from lumen_hpc.plain_text import visible

MAX_LINES, MAX_LINE_LENGTH = 30, 2000
"""Lines that are shown of a log, and characters of a line."""
PATTERNS = ("*.out", "*.err", "server-*.log")


def newest_first(folder: Path) -> list[Path]:
    """The logs of a step's folder that are not empty."""
    logs = [(path.stat(), path) for pattern in PATTERNS for path in (folder / "logs").glob(pattern)]
    return [path for stat, path in sorted(logs, key=lambda pair: -pair[0].st_mtime_ns) if stat.st_size]


def relevant_steps(folder: Path, steps: Sequence[StepStatus]) -> list[str]:
    """Names of the steps to look at first: those that failed, else those that run, else all that have logs."""
    for states in (("failed", "stuck"), ("running",)):
        names = [item.step for item in steps if item.state in states and newest_first(folder / item.step)]
        if names:
            return names
    return [item.step for item in steps if newest_first(folder / item.step)]


def lines(folder: Path, steps: Sequence[StepStatus]) -> Iterator[str]:
    """The lines that `launch.py logs` prints."""
    names = relevant_steps(folder, steps)
    failure_logs = {kind["log"] for item in steps for kind in item.failures if kind.get("log")}
    logs = sorted(
        {
            *(path for name in names for path in newest_first(folder / name)),
            *filter(Path.is_file, map(Path, failure_logs)),
        },
        key=lambda path: (str(path) not in failure_logs, -path.stat().st_mtime_ns),
    )
    if not logs:
        more = " …" if len(steps) > 3 else ""
        yield f"no log yet in {folder}: no task of {', '.join(item.step for item in steps[:3])}{more} has begun"
        return
    first = logs[0]
    group = first.stem.removesuffix("_log")
    group_logs = [
        first,
        *(path for path in logs[1:] if path.parent == first.parent and path.stem.removesuffix("_log") == group),
    ]
    for path in group_logs:
        yield visible(f"==> {path} <==")
        yield from tail(path)
    if others := [path for path in logs if path not in group_logs]:
        yield f"{len(others)} more, newest first:"
        yield from (visible(f"  {path}") for path in others[:10])


def tail(path: Path) -> list[str]:
    """The last lines of a log; a line that redraws itself counts as its last state."""
    return [visible(line.rpartition("\r")[2][:MAX_LINE_LENGTH]) for line in last_lines(path, MAX_LINES)]
