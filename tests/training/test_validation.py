"""The validation loss: what it is, and that measuring it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lumen_hpc import nvila
from lumen_hpc.config.schema import Train
from lumen_hpc.data.records import Records, write_jsonl
from lumen_hpc.training import validation
from lumen_hpc.training.learner import Learner
from lumen_hpc.training.samples import Pictures
from tests.training import tiny, toy


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.make(tmp_path_factory.mktemp("tiny"), patients=4)
    rows = list(Records(folder / "records.jsonl"))
    broken = rows[6] | {"id": "broken", "images": ["/no/such/image.png"]}
    write_jsonl(folder / "held-out.jsonl", [*rows[:6], broken])
    return folder


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trainings of one run each: without validation, with it, and with it on two processes under ZeRO-3."""
    top = tmp_path_factory.mktemp("trained")
    held_out = {"held_out": str(dataset / "held-out.jsonl")}
    settings = {"steps": 4, "global_batch": 4, "checkpoint_every": 2}
    plain, measured = (tiny.run(top / name, dataset, **settings) for name in ("plain", "measured"))
    several = tiny.run(top / "several", dataset, **settings, zero=3)
    cut, late = (tiny.run(top / name, dataset, **settings) | held_out for name in ("cut", "late"))
    stopped = cut | {"stop_at": 2}, cut, late | {"stop_at": 4}
    outputs = toy.train(plain, measured | held_out, *stopped, script=tiny.__file__)
    toy.train(several | held_out, world_size=2, script=tiny.__file__)
    (top / "log.txt").write_text(outputs[0])
    return top


def measured(folder: Path) -> dict[int, dict[str, float]]:
    kept = [key for row in toy.metrics(folder) for key in row if key.startswith("validation_loss")]
    rows = toy.metrics(folder)
    return {row["step"]: {key: row[key] for key in kept if key in row} for row in rows if "validation_loss" in row}


def test_measuring_it_changes_no_step(trained: Path) -> None:
    assert toy.losses(trained / "measured") == toy.losses(trained / "plain")


def test_it_is_measured_at_checkpoints_and_at_the_end_on_any_number_of_processes(trained: Path) -> None:
    one, two = measured(trained / "measured"), measured(trained / "several")
    assert list(one) == [2, 4]
    assert one[4]["validation_loss"] < one[2]["validation_loss"]
    for step, row in one.items():
        assert two[step] == pytest.approx(row, rel=1e-4)


def test_a_stop_at_a_checkpoint_does_not_wait_for_it_and_the_next_start_makes_up_for_it(trained: Path) -> None:
    assert toy.metrics(trained / "cut") == toy.metrics(trained / "measured")


def test_a_stop_in_the_last_step_waits_for_it(trained: Path) -> None:
    assert toy.metrics(trained / "late") == toy.metrics(trained / "measured")


def test_it_is_the_mean_loss_of_the_usable_records_under_the_weights_of_that_step(trained: Path, dataset: Path) -> None:
    """By another way: each record alone, through the final model."""
    model = nvila.load(trained / "measured" / "final", dtype=torch.float32)
    learner = Learner(model, Train(precision="fp32", zero=1, checkpointing="none")).eval()
    preprocessor, pictures = nvila.Preprocessor.open(dataset / "base"), Pictures()
    total = tokens = 0.0
    for record in list(Records(dataset / "held-out.jsonl"))[:6]:
        images = [pictures.open(path) for path in record["images"]]
        (sample,) = preprocessor([{**record, "images": images}], inline=True).samples
        batch = nvila.pack([[sample]])
        with torch.no_grad():
            nll = learner(type("Micro", (), {"batch": batch})())
        total, tokens = total + float(nll.double().sum()), tokens + len(nll)
    assert measured(trained / "measured")[4]["validation_loss"] == pytest.approx(total / tokens, rel=1e-4)
    rejected = [json.loads(line) for line in (trained / "measured/validation/rejected.jsonl").open()]
    assert [row["id"] for row in rejected] == ["broken"]


def test_the_log_tells_step_loss_rate_and_validation(trained: Path) -> None:
    lines = [line for line in (trained / "log.txt").read_text().splitlines() if line.startswith("step ")]
    assert any(line.startswith("step 1/4: loss ") and "tokens/s, ETA " in line for line in lines)
    assert any(line.startswith("step 4/4: ") and "validation loss" in line for line in lines)


def test_records_are_taken_at_even_distances() -> None:
    rows = [{"id": number} for number in range(10)]
    assert [row["id"] for row in validation.evenly_spaced(rows, 4)] == [0, 2, 5, 7]
    assert validation.evenly_spaced(rows, 99) == rows
