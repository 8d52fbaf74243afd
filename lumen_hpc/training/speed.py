"""Speed of trainings: earlier measurements on GPUs, and what a run's own metrics.jsonl shows.

It needs only the standard library, so that a login node can read it. MFU counts 6 FLOPs per weight and token, without
attention and recomputation, against the dense bf16 peak. Add a row to `MEASUREMENTS` from the table that
`python benchmarks/gpu_speed.py` prints.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumen_hpc.config import schema
from lumen_hpc.config.data_schema import Pretrain
from lumen_hpc.files import open_regular, read_bytes
from lumen_hpc.progress import spell_count
from lumen_hpc.training.fingerprint import differences

PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "GH200": 989e12}
"""Dense bf16 peaks by a part of the device's name (NVIDIA's data sheets); the first match counts."""
RECENT_STEPS = 20
"""Number of last steps in metrics.jsonl whose median counts."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """MFU of a training on one GPU, micro-batches of 16,384 tokens."""

    device: str
    shared_prefix: bool
    checkpointing: str
    compiled: bool
    mfu: float
    date: str

    def __str__(self) -> str:
        layers = "compiled" if self.compiled else "plain"
        return f"measured on one {self.device}, {self.date}: {layers} layers, {self.checkpointing} recomputation"


MEASUREMENTS = (
    Measurement(
        device="H200", shared_prefix=True, checkpointing="full", compiled=False, mfu=0.344, date="2026-11-28"
    ),
    Measurement(device="H200", shared_prefix=True, checkpointing="full", compiled=True, mfu=0.387, date="2026-11-28"),
    Measurement(
        device="H200", shared_prefix=True, checkpointing="selective", compiled=True, mfu=0.457, date="2026-11-28"
    ),
    Measurement(
        device="H200", shared_prefix=False, checkpointing="full", compiled=False, mfu=0.304, date="2026-11-26"
    ),
)  # fmt: skip
"""torch 2.11, ZeRO-3, four micro-batches per step; ten of NVILA-8B's 28 language-model layers, fourteen for separate
samples and for compiled layers with full recomputation (benchmarks/gpu_smoke.md). Adapters have no row; the plan takes
the nearest one."""


def peak_flops(device: str) -> float:
    """The device's dense bf16 peak; 0 if it is unknown."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), 0.0)


def nearest_measurement(device: str, *, shared_prefix: bool, checkpointing: str, compiled: bool) -> Measurement:
    """The measurement most similar to these settings: by sharing first, then device, compilation and recomputation."""

    def likeness(row: Measurement) -> tuple[bool, ...]:
        layer_likeness = (row.compiled == compiled, row.checkpointing == checkpointing)
        return (row.shared_prefix == shared_prefix, row.device == device, *layer_likeness)

    return max(MEASUREMENTS, key=likeness)


@dataclass(frozen=True)
class Progress:
    """Progress and recent speed of a training, by its own metrics.jsonl."""

    step: int
    """Steps done."""
    steps: int
    """Steps in all."""
    seconds: float
    """Of a step by the clock, the median of the last steps."""
    gpus: int
    """Processes that trained."""
    mfu: float = 0.0
    """0 if the device's peak is unknown."""
    validation: tuple[int, float] | None = None
    """The step of the last validation, and its loss."""

    @property
    def eta_seconds(self) -> float:
        return self.seconds * (self.steps - self.step)

    @property
    def gpu_hours(self) -> float:
        """Of the remaining steps."""
        return self.eta_seconds * self.gpus / 3600

    def __str__(self) -> str:
        mfu = f", MFU {self.mfu:.2f}" if self.mfu else ""
        held_out = ", validation loss {1:.4g} at step {0}".format(*self.validation) if self.validation else ""
        where = f"on {spell_count(self.gpus, 'GPU')}"
        if not self.mfu:  # a CPU, maybe
            where = f"in {self.gpus} process{'es' * (self.gpus > 1)}"
        return (
            f"step {self.step} of {self.steps}, {self.seconds:.3g} s a step {where}{mfu}, "
            f"measured in this run{held_out}"
        )


def run_progress(folder: Path, train: schema.Train) -> Progress | None:
    """Progress of the training in `folder`; None before its second step, the first without the start in its time.

    None also if these are not the settings of that training, which would then start anew.
    """
    return read_progress(folder / "metrics.jsonl") if _has_settings(folder, train) else None


def pretraining_progress(folder: Path, pretrain: Pretrain) -> Progress | None:
    """Progress of stage `pretrain`, with its two trainings as one."""
    progress = read_progress(folder / "metrics.jsonl")
    return progress if progress and progress.steps == pretrain.steps else None


def read_progress(path: Path) -> Progress | None:
    """Progress by the rows of a metrics.jsonl; None before the second step."""
    rows = _last_rows(path, RECENT_STEPS)
    if not rows or rows[-1]["step"] < 2:
        return None
    last_timing = rows[-1]["timing"]
    if not {"gpus", "steps"} <= last_timing.keys():  # written by an earlier version
        return None
    timings = [row["timing"] for row in rows if row["step"] > 1 and row["timing"].get("gpus") == last_timing["gpus"]]
    return Progress(
        step=rows[-1]["step"],
        steps=last_timing["steps"],
        seconds=statistics.median(timing["seconds"] for timing in timings),
        gpus=last_timing["gpus"],
        mfu=statistics.median(timing.get("mfu", 0.0) for timing in timings),
        validation=_last_validation(path),
    )


def _last_validation(path: Path) -> tuple[int, float] | None:
    """Step and loss of the last row with a validation loss."""
    text = read_bytes(path)
    position = text.rfind(b'"validation_loss":')
    if position < 0:
        return None
    end = text.find(b"\n", position)
    try:
        row = json.loads(text[text.rfind(b"\n", 0, position) + 1 : end if end > 0 else None])
    except ValueError:  # being written
        return None
    return row["step"], row["validation_loss"]


def _has_settings(folder: Path, train: schema.Train) -> bool:
    """Whether the training in `folder` has these settings; `auto` equals any value."""
    try:
        stored = json.loads(read_bytes(folder / "training.json"))
    except (OSError, ValueError):
        return False
    current = {f"train.{name}": value for name, value in dataclasses.asdict(train).items()}
    stored.setdefault("train.adapter", current["train.adapter"] if train.adapter.kind == "none" else None)
    changed = differences({key: value for key, value in stored.items() if key in current}, current)
    return all(current[key] == "auto" for key in changed if key in stored)


def _last_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The rows of the last complete lines of a JSONL file; none if there is no file."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - 4096 * count))
            lines = file.read().splitlines(keepends=True)[-count - 1 :]
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) and line.endswith(b"\n") else []
        except ValueError:
            continue
    return rows[-count:]
