"""A language model of a few thousand weights under the real loop, and a way to run it in several processes.

`python training_toy.py JOB.json RANK` is one rank; `launch` starts them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY, WIDTH = 40, 16


def launch(folder: Path, *, world_size: int = 1, settings: dict[str, Any] | None = None, samples: int = 50,
           wait: bool = True, timeout: float = 120, **job: Any) -> list[subprocess.Popen]:
    """Starts `world_size` ranks that train in `folder`; waits for them unless told not to."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / f"job-{uuid.uuid4().hex[:8]}.json"
    name.write_text(json.dumps({"out": str(folder), "world_size": world_size, "meeting": name.stem,
                                "settings": settings or {}, "samples": samples, **job}))
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = [subprocess.Popen([sys.executable, __file__, str(name), str(rank)], env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for rank in range(world_size)]
    if wait:
        for rank in ranks:
            rank.output = rank.communicate(timeout=timeout)[0]
    return ranks


def finish(ranks: list[subprocess.Popen], timeout: float = 120) -> None:
    for rank in ranks:
        rank.output = rank.communicate(timeout=timeout)[0]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The deterministic part of metrics.jsonl."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows]


def consumed(folder: Path) -> list[str]:
    return [i for line in (folder / "consumed.jsonl").read_text().splitlines() for i in json.loads(line)["ids"]]


def _main(job_file: str, rank: int) -> None:
    import time

    import numpy as np
    import torch

    from lumen_hpc.settings import Train
    from lumen_hpc.training import loop
    from lumen_hpc.training.interruption import Interruption
    from lumen_hpc.training.packing import Shared
    from lumen_hpc.training.ranks import Ranks, join
    from lumen_hpc.training.survey import Survey

    torch.set_num_threads(1)
    job = json.loads(Path(job_file).read_text())
    samples = job["samples"]

    @dataclass
    class Toy:
        inputs: torch.Tensor
        targets: torch.Tensor
        samples: torch.Tensor
        tokens: int

        def to(self, device: torch.device) -> Toy:
            return self

    class Batcher:
        def build(self, packed: list[Shared]) -> Toy:
            parts = [(sample, np.random.default_rng(sample).integers(VOCABULARY, size=int(suffix[sample]) + 1))
                     for sequence in packed for sample in sequence.samples]
            tokens = [torch.from_numpy(text) for _, text in parts]
            return Toy(torch.cat([t[:-1] for t in tokens]) if tokens else torch.zeros(0, dtype=torch.long),
                       torch.cat([t[1:] for t in tokens]) if tokens else torch.zeros(0, dtype=torch.long),
                       torch.tensor([sample for sample, text in parts for _ in text[1:]], dtype=torch.long),
                       sum(sequence.tokens for sequence in packed))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(VOCABULARY, WIDTH)
            self.hidden = torch.nn.Linear(WIDTH, 2 * WIDTH)
            self.out = torch.nn.Linear(2 * WIDTH, VOCABULARY)

        def forward(self, micro: Toy) -> torch.Tensor:
            time.sleep(job.get("slow", 0.0))
            logits = self.out(torch.tanh(self.hidden(self.embed(micro.inputs))))
            if poison and ranks.rank == 0 and len(seen) >= poison:
                logits = logits * float("nan")
            seen.append(1)
            # A sum over nothing still carries a gradient, which keeps ranks without samples in step.
            return torch.nn.functional.cross_entropy(logits.float(), micro.targets, reduction="none")

    rng = np.random.default_rng(0)
    suffix = rng.integers(3, 12, size=samples)
    kinds = np.array(["diagnostic", "difference", "prediction"])[rng.integers(3, size=samples)]
    found = Survey(np.arange(samples), [f"s{i}" for i in range(samples)], kinds, np.arange(samples) // 3,
                   np.full(samples, 5), suffix, suffix)
    seen: list[int] = []
    poison = job.get("poison", 0)
    ranks = Ranks(rank=rank, world_size=job["world_size"], meeting=job["meeting"])
    settings = Train(**{"learning_rate": 0.01, "global_batch": 8, "precision": "fp32", "zero": 1, "max_tokens": 32,
                        "token_budget": 32, "checkpoint_every": 3, "stuck_after": 60, **job["settings"]})
    with Interruption() as asked:
        join(ranks, Path(job["out"]), timeout=30)
        torch.manual_seed(0)
        work = loop.Work(Model(), Batcher(), found, Path(job["out"]), {"global_batch": settings.global_batch})
        stop_at = job.get("stop_at")
        engine, done, finished = loop.run(work, settings, ranks, seed=0, should_stop=lambda: asked() or (
            stop_at is not None and _steps(Path(job["out"])) + 1 >= stop_at))
        weights = engine.weights()
        if weights is not None:
            torch.save(weights, Path(job["out"]) / "weights.pt")
        engine.close()
    print("finished" if finished else f"interrupted at step {done}")


def _steps(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
