"""A language model of a few thousand weights under the real loop, and a way to run it in several processes.

`python training_toy.py JOB.json RANK` is one rank; `launch` starts them all.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.training.forked import Rank

VOCABULARY, WIDTH, SAMPLES = 40, 16, 50


def launch(script: str, runs: list[dict[str, Any]], *, world_size: int = 1) -> list[Rank]:
    """Starts `world_size` ranks of `script`, which do `runs` one after the other."""
    file = Path(runs[0]["out"]) / f"job-{uuid.uuid4().hex}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"runs": runs, "world_size": world_size}))
    return [Rank(script, [str(file), str(rank)], file.with_suffix(f".{rank}.log")) for rank in range(world_size)]


def finish(ranks: list[Rank], *, timeout: float = 500) -> list[str]:
    """Waits for the ranks; what they printed."""
    try:
        return [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def train(*runs: dict[str, Any], world_size: int = 1, script: str = __file__) -> list[str]:
    """Runs to the end, and is sure that they ended well."""
    ranks = launch(script, list(runs), world_size=world_size)
    outputs = finish(ranks)
    for rank, text in zip(ranks, outputs):
        assert rank.returncode == 0, text
    return outputs


def steps(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def metrics(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its times: what must be the same however a run got there."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in metrics(out)]


def consumed(out: Path) -> list[str]:
    """Sample ids in the order in which they were trained on."""
    return [i for line in (out / "consumed.jsonl").read_text().splitlines() for i in json.loads(line)["ids"]]


def each_rank(job_file: str, rank: int, do: Any) -> None:
    """One rank's main: calls `do(run, ranks)` for every run of the job."""
    import torch
    import torch.distributed as dist

    from lumen_hpc.distributed import Ranks
    from lumen_hpc.errors import UserError
    from lumen_hpc.training.accelerator import deepspeed

    torch.set_num_threads(1)
    job = json.loads(Path(job_file).read_text())
    for number, run in enumerate(job["runs"]):
        Path(run["out"]).mkdir(parents=True, exist_ok=True)
        name = f"{Path(job_file).stem}-{number}"
        ranks = Ranks(rank=rank, world_size=job["world_size"], nodes=run.get("nodes", 1), job=name)
        try:
            print(do(run, ranks), flush=True)
        except UserError as error:
            if not run.get("fails"):
                raise
            print(f"run {number}: {error}", flush=True)
            dist.destroy_process_group()
            deepspeed.utils.groups._WORLD_GROUP = None


def _run(run: dict[str, Any], ranks: Any) -> str:
    import numpy as np
    import torch

    from lumen_hpc.cluster.attempts import EXIT_STUCK
    from lumen_hpc.cluster.worker import Stop
    from lumen_hpc.config.schema import Train
    from lumen_hpc.distributed import join, leave
    from lumen_hpc.training import loop
    from lumen_hpc.training.layout import SharedSequence
    from lumen_hpc.training.record_index import RecordIndex
    from lumen_hpc.watchdog import Watchdog

    @dataclass
    class Micro:
        inputs: torch.Tensor
        targets: torch.Tensor
        samples: torch.Tensor
        verdicts: torch.Tensor
        tokens: int

        def to(self, device: torch.device) -> Micro:
            return self

    def text(sample: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(sample).integers(VOCABULARY, size=suffix[sample] + 1))

    class Batcher:
        def build(self, sequences: list[SharedSequence]) -> Micro:
            parts = [(sample, text(sample)) for sequence in sequences for sample in sequence.samples]
            nothing = torch.zeros(0, dtype=torch.long)
            learned = sum(len(text) - 1 for _, text in parts)
            return Micro(
                torch.cat([nothing, *(text[:-1] for _, text in parts)]),
                torch.cat([nothing, *(text[1:] for _, text in parts)]),
                torch.cat([nothing, *(torch.full((len(text) - 1,), sample) for sample, text in parts)]),
                torch.zeros(learned, dtype=torch.bool),
                sum(sequence.tokens for sequence in sequences),
            )

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(VOCABULARY, WIDTH)
            self.hidden = torch.nn.Linear(WIDTH, 2 * WIDTH)
            self.out = torch.nn.Linear(2 * WIDTH, VOCABULARY)

        def forward(self, micro: Micro) -> torch.Tensor:
            if run.get("hangs_at") == at[0] and ranks.rank == 1:
                time.sleep(600)
            logits = self.out(torch.tanh(self.hidden(self.embed(micro.inputs))))
            if run.get("poisoned_at") == at[0]:
                poisoned.set()
                logits = logits * float("nan")
            if run.get("gradient_poisoned_at") == at[0] and ranks.rank == 1:
                logits.register_hook(lambda gradient: gradient * float("inf"))
            return torch.nn.functional.cross_entropy(logits, micro.targets, reduction="none")

    at = [0]  # the step that this rank computes
    poisoned = threading.Event()

    def beat(doing: str = "", within: float = 0.0, waits: bool = False) -> None:
        watchdog.beat(doing, within, waits)
        if doing.startswith("computes step"):
            at[0] = int(doing.split()[-1])
            while at[0] == run.get("held_at") and hold.exists() and not stop.requested():
                time.sleep(0.01)
            while at[0] == full_disk_at + 1 and writer_of(full_disk_at):
                time.sleep(0.01)

    def writer_of(step: int) -> bool:
        """Whether this rank's thread still writes the checkpoint of that step."""
        return any(thread.name == f"checkpoint-{step}" for thread in threading.enumerate())

    def save(value: Any, file: Any) -> None:
        while f"/.step-{run.get('held_save', 0):06d}/" in file._file.name and hold.exists():
            time.sleep(0.01)
        if f"/.step-{run.get('poisoned_at', 0) - 1:06d}/" in file._file.name:
            poisoned.wait()
        if f"/.step-{full_disk_at:06d}/" in file._file.name and ranks.rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        really_save(value, file)

    rng = np.random.default_rng(0)
    suffix = rng.integers(3, 12, size=SAMPLES)
    kinds = np.array(["diagnostic", "difference", "prediction"])[rng.integers(3, size=SAMPLES)]
    found = RecordIndex(
        np.arange(SAMPLES),
        np.array([f"s{i}" for i in range(SAMPLES)]),
        kinds,
        np.arange(SAMPLES) // 3,
        np.full(SAMPLES, 5),
        suffix,
        suffix,
        np.zeros(SAMPLES, dtype=int),
    )
    settings = Train(
        **{
            "learning_rate": 0.01,
            "global_batch": 8,
            "precision": "fp32",
            "zero": 1,
            "max_tokens": 32,
            "token_budget": 32,
            "checkpoint_every": 3,
            "workers": 1,
            "epochs": 2,
            **run.get("settings", {}),
        }
    )
    out = Path(run["out"])
    stop = Stop()
    hold, full_disk_at = out / "hold", run.get("full_disk_at", 0)
    watchdog = Watchdog(120, lambda reason: os._exit(EXIT_STUCK), folder=out / "heartbeats", job=ranks.job,
                        rank=ranks.rank, world_size=ranks.world_size)  # fmt: skip
    join(ranks, out, timeout=60)
    really_save = torch.save
    torch.manual_seed(0)
    work = loop.Work(Model(), Batcher(), found, out, {"global_batch": settings.global_batch})
    stop_at = run.get("stop_at", 0)
    try:
        with patch.object(torch, "save", save):
            engine, done, finished = loop.run(
                work,
                settings,
                ranks,
                seed=0,
                should_stop=lambda: stop.requested() or bool(stop_at and at[0] >= stop_at),
                beat=beat,
            )
    finally:
        watchdog.stop()
    weights = engine.weights()
    if weights is not None:
        torch.save(weights, out / "weights.pt")
    engine.close()
    leave()
    return "finished" if finished else f"interrupted at step {done}"


if __name__ == "__main__":
    each_rank(sys.argv[1], int(sys.argv[2]), _run)
