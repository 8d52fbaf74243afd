"""The training's log files: metrics, consumed samples, restarts, TensorBoard.

Only rank 0 keeps a journal. A resumed run truncates both files to the step it resumes from, so that they
equal an uninterrupted run's; times, which cannot, are kept separately under `timing`.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from lumen_hpc import files

log = logging.getLogger(__name__)


class Journal:
    """`metrics.jsonl`, `consumed.jsonl` (ids of every step), `restarts.jsonl` and `tensorboard/` of one training."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """Opens the files for a run that continues after `step` steps; removes later lines and counts them as lost."""
        self._folder = folder
        self.lost_steps, self.lost_seconds = 0, 0.0
        lost_rows = _truncate(folder / "metrics.jsonl", step, {"step", "loss", "timing"})
        _truncate(folder / "consumed.jsonl", step, {"step", "ids"})
        self.lost_steps = len(lost_rows)
        self.lost_seconds = sum(line["timing"]["seconds"] for line in lost_rows)
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._consumed = (folder / "consumed.jsonl").open("a")
        self._tensorboard = _open_tensorboard(folder / "tensorboard", step)

    def write_restart(self, **details: Any) -> None:
        """Records a restart and the work that it lost."""
        with (self._folder / "restarts.jsonl").open("a") as file:
            _write_line(file, {**details, "lost_steps": self.lost_steps, "lost_seconds": round(self.lost_seconds, 3)})

    def write_step(self, step: int, ids: list[str], metrics: dict[str, Any], timing: dict[str, Any]) -> None:
        """Writes one step (counted from 1): its sample ids, its metrics and, apart from them, its times."""
        _write_line(self._consumed, {"step": step, "ids": ids})
        _write_line(self._metrics, {"step": step, **metrics, "timing": timing})
        if self._tensorboard is not None:
            for name, value in {**metrics, **timing}.items():
                if isinstance(value, (int, float)):
                    self._tensorboard.add_scalar(name, value, step)

    def lacks(self, key: str) -> bool:
        """Whether the last step's row has no such measure."""
        rows = (self._folder / "metrics.jsonl").read_text().splitlines()
        return bool(rows) and key not in json.loads(rows[-1])

    def amend(self, measures: dict[str, Any]) -> None:
        """Adds measures to the last step's row, before its times."""
        path = self._folder / "metrics.jsonl"
        *rows, last = path.read_text().splitlines()
        row = json.loads(last)
        timing = row.pop("timing")
        self._metrics.close()
        files.write_text(
            path, "".join(f"{text}\n" for text in (*rows, json.dumps({**row, **measures, "timing": timing})))
        )
        self._metrics = path.open("a")

    def sync(self) -> None:
        """Flushes to disk: a checkpoint must never be newer than the lines before it."""
        for file in (self._metrics, self._consumed):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        self.sync()
        self._metrics.close()
        self._consumed.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def recent_losses(folder: Path, count: int) -> list[float]:
    """The losses of the last steps on file, oldest first."""
    with (folder / "metrics.jsonl").open() as file:
        return [json.loads(line)["loss"] for line in file][-count:]


def _write_line(file: TextIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()


def _truncate(path: Path, step: int, keys: set[str]) -> list[dict[str, Any]]:
    """Keeps the lines up to `step` and returns the later rows. Drops lines that a crash broke, which lack some `keys`.

    Logs steps without a row, and with several: a copy or an editor may have changed the file.
    """
    kept_lines, kept_steps, lost_rows = [], Counter[int](), []
    if path.exists():
        for text in path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(text)
                if not keys <= row.keys():
                    continue
                is_kept = row["step"] <= step
            except (ValueError, TypeError, AttributeError):
                continue
            if is_kept:
                kept_lines.append(text)
                kept_steps[row["step"]] += 1
            else:
                lost_rows.append(row)
    for steps, fault in (
        ([k for k in range(1, step + 1) if not kept_steps[k]], "has no row of"),
        ([k for k, count in kept_steps.items() if count > 1], "has several rows of"),
    ):
        if steps:
            log.warning("%s %s %d of %d steps, first of step %d", path, fault, len(steps), step, steps[0])
    files.write_text(path, "".join(text + "\n" for text in kept_lines))
    return lost_rows


def _open_tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional package: metrics.jsonl holds the same numbers
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
