"""A tiny NVILA and records of a few invented patients, and `train` as a process for each rank.

`python training_tiny.py JOB.json RANK` is one rank; `training_toy.train(…, script=training_tiny.__file__)` starts all.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from tests.training import toy

SETTINGS = {
    "learning_rate": 1e-3,
    "global_batch": 8,
    "precision": "fp32",
    "zero": 1,
    "max_tokens": 512,
    "token_budget": 512,
    "checkpoint_every": 3,
    "checkpointing": "none",
    "workers": 1,
    "warmup": 0.1,
}


def make(folder: Path, *, patients: int = 8, image: tuple[int, int] = (64, 64), **form: Any) -> Path:
    """`base/`, `records.jsonl` and images under `folder`: per patient three diagnostic questions about the reference,
    one prediction about it, and one difference. `form` goes to `make_tiny`."""
    import numpy as np
    from PIL import Image

    from lumen_hpc import nvila
    from lumen_hpc.data.records import write_jsonl
    from lumen_hpc.nvila.tiny import make_tiny

    rng = np.random.default_rng(0)
    rows = []
    for patient in range(patients):
        paths = []
        for name in ("reference", "main"):
            path = folder / f"{patient}-{name}.png"
            Image.fromarray(rng.integers(256, size=image[::-1], dtype=np.uint8)).save(path)
            paths.append(str(path))
        one = "<image>\nThe experts see no edema.\n"
        two = "reference image: <image>\nmain image, 3 days later: <image>\n"
        for k in range(3):
            question = f"{one}is there finding {k}?"
            rows.append(_row(f"{patient}-{k}", "presence", paths[:1], question, f"no finding {k} is seen."))
        rows.append(_row(f"{patient}-p", "prediction", paths[:1], f"{one}what will change in 3 days?", "nothing will."))
        rows.append(_row(f"{patient}-d", "difference", paths, f"{two}what has changed?", "nothing has changed."))
    write_jsonl(folder / "records.jsonl", rows)
    sizes = {"vision_width": 32, "width": 32, "layers": 2, "vision_layers": 3}
    texts = [turn["value"] for row in rows for turn in row["conversations"]]
    nvila.save(make_tiny(texts, **{**sizes, **form}), folder / "base")
    return folder


def _row(name: str, kind: str, images: list[str], question: str, answer: str) -> dict[str, Any]:
    patient = name.split("-")[0]
    return {
        "id": name,
        "images": images,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        "meta": {
            "question_id": name,
            "question": question.rpartition("\n")[2],
            "type": kind,
            "subject_id": patient,
            "study_id": f"{patient}-main",
            "ref_study_id": f"{patient}-reference",
        },
    }


def run(out: Path, dataset: Path, **settings: Any) -> dict[str, Any]:
    """A run for `training_toy.train`."""
    return {"out": str(out), "dataset": str(dataset), "settings": {**SETTINGS, **settings}}


def _train(run: dict[str, Any], ranks: Any) -> str:
    import torch

    from lumen_hpc.config.schema import Adapter, Train
    from lumen_hpc.training.train import Inputs, fine_tune

    dataset = Path(run["dataset"])
    known = {field.name for field in dataclasses.fields(Train)}
    assert set(run["settings"]) <= known
    torch.manual_seed(1)
    held_out = Path(run["held_out"]) if "held_out" in run else None
    outcome = fine_tune(
        Train(**run["settings"] | {"adapter": Adapter(**run["settings"].get("adapter", {}))}),
        Inputs(records=dataset / "records.jsonl", base=dataset / "base", held_out=held_out),
        Path(run["out"]),
        seed=0,
        ranks=ranks,
        should_stop=lambda: toy.steps(Path(run["out"])) + 1 >= run.get("stop_at", 10**9),
    )
    return str(outcome)


if __name__ == "__main__":
    toy.each_rank(sys.argv[1], int(sys.argv[2]), _train)
