"""The loop under DeepSpeed in one and several processes: equality, interruptions, accounting."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import training_toy as toy

from lumen_hpc.cluster.worker import EXIT_STUCK

ALL = Counter({f"s{i}": 2 for i in range(toy.SAMPLES)})
"""Every sample once in each of two epochs."""
STEPS = 13
"""2 x 50 samples at 8 a step; the last step has 4."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, Path]:
    """Whole runs on one and on two processes, by name."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = {f"zero{zero}": {"out": str(folder / f"zero{zero}"), "settings": {"zero": zero}} for zero in (1, 2, 3)}
    toy.train(*runs.values(), world_size=2)
    toy.train({"out": str(folder / "one")})
    return {name: folder / name for name in (*runs, "one")}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "weights.pt")


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_stages_on_two_processes_equal_one_process(undisturbed, zero):
    two = undisturbed[f"zero{zero}"]
    assert len(toy.losses(two)) == STEPS
    assert toy.losses(two) == pytest.approx(toy.losses(undisturbed["one"]), abs=1e-5)
    for name, tensor in weights(undisturbed["one"]).items():
        assert torch.allclose(weights(two)[name], tensor, atol=1e-5), name


def test_every_sample_is_seen_once_an_epoch_and_the_last_batch_is_short(undisturbed):
    assert Counter(toy.consumed(undisturbed["one"])) == ALL
    assert toy.metrics(undisturbed["one"])[-1]["samples"] == 100
    assert toy.consumed(undisturbed["one"]) == toy.consumed(undisturbed["zero3"])


def interrupted(out: Path, how: str) -> None:
    """Starts a slow run on two processes and ends it in one of the ways."""
    # Slow enough that a busy machine's test still comes in the middle of the run.
    ranks = toy.launch(toy.__file__, [{"out": str(out), "slow": 0.5}], world_size=2)
    toy.wait_for_step(out, 5, ranks)
    if how == "truncated checkpoint":  # there must be one before it, whole
        toy.wait_for_step(out, 7, ranks)
        while len(list(out.glob("checkpoints/step-*/COMPLETE.json"))) < 2:
            assert all(rank.poll() is None for rank in ranks), "it ended with fewer than two checkpoints"
            time.sleep(0.01)
    if how == "USR2":
        for rank in ranks:
            rank.send_signal(signal.SIGUSR2)
    elif how == "SIGTERM":  # reaches one rank only: the others must hear of it
        ranks[1].send_signal(signal.SIGTERM)
    elif how == "killed rank":
        ranks[1].kill()
    else:
        for rank in ranks:
            rank.kill()
    said = toy.finish(ranks)
    if how in ("USR2", "SIGTERM"):
        assert [rank.returncode for rank in ranks] == [0, 0], said
        assert all("interrupted at step" in text for text in said)
    else:
        assert all(rank.returncode != 0 for rank in ranks)


@pytest.mark.parametrize("how", ["USR2", "SIGTERM", "killed rank", "node down", "truncated checkpoint"])
def test_an_interrupted_run_ends_with_the_undisturbed_curve_bit_for_bit(undisturbed, tmp_path, how):
    interrupted(tmp_path, how)
    complete = sorted((tmp_path / "checkpoints").glob("step-*"))
    if how == "truncated checkpoint":
        largest = max(complete[-1].rglob("*.pt"), key=lambda file: file.stat().st_size)
        with largest.open("r+b") as file:
            file.truncate(largest.stat().st_size // 2)
    said = toy.train({"out": str(tmp_path)}, world_size=2)
    if how == "truncated checkpoint":
        assert "is passed over" in said[0] and largest.name in said[0]
    assert toy.metrics(tmp_path) == toy.metrics(undisturbed["zero1"])
    assert Counter(toy.consumed(tmp_path)) == ALL
    for name, tensor in weights(undisturbed["zero1"]).items():
        assert torch.equal(weights(tmp_path)[name], tensor), name
    restart = json.loads((tmp_path / "restarts.jsonl").read_text().splitlines()[-1])
    if how in ("USR2", "SIGTERM"):
        assert restart["lost_steps"] == 0
    else:
        assert restart["lost_steps"] > 0 and restart["step"] in (3, 6)


def part(out: Path, world_size: int, *, zero: int, stop_at: int = 0) -> None:
    toy.train({"out": str(out), "settings": {"zero": zero}, "stop_at": stop_at}, world_size=world_size)


def test_three_restarts_with_two_world_sizes_lose_and_double_nothing(undisturbed, tmp_path):
    part(tmp_path, 2, zero=1, stop_at=4)
    part(tmp_path, 1, zero=1, stop_at=8)
    part(tmp_path, 1, zero=1, stop_at=10)
    part(tmp_path, 2, zero=1)
    assert toy.losses(tmp_path) == pytest.approx(toy.losses(undisturbed["one"]), abs=1e-5)
    assert toy.consumed(tmp_path) == toy.consumed(undisturbed["one"])
    assert [json.loads(line)["step"] for line in (tmp_path / "restarts.jsonl").read_text().splitlines()] == [4, 8, 10]


def test_zero_3_goes_on_with_twice_the_processes(undisturbed, tmp_path):
    part(tmp_path, 2, zero=3, stop_at=6)
    part(tmp_path, 4, zero=3)
    assert toy.losses(tmp_path) == pytest.approx(toy.losses(undisturbed["one"]), abs=1e-5)
    assert toy.consumed(tmp_path) == toy.consumed(undisturbed["one"])


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_checkpoint(tmp_path):
    ranks = toy.launch(toy.__file__, [{"out": str(tmp_path), "poisoned_at": 8}])
    said = toy.finish(ranks)[0]
    assert ranks[0].returncode != 0
    assert "the loss of step 8 is nan" in said and "step-000006" in said
    assert toy.steps(tmp_path) == 7


def test_a_rank_that_hangs_is_named_and_the_job_ends(tmp_path):
    began = time.monotonic()
    run = {"out": str(tmp_path), "hangs_at": 5, "settings": {"stuck_after": 4}}
    ranks = toy.launch(toy.__file__, [run], world_size=2)
    said = toy.finish(ranks)
    # Whoever gives up first names the rank; the other may hear the connection break before its own time is up.
    codes = [rank.returncode for rank in ranks]
    assert EXIT_STUCK in codes and 0 not in codes
    told = said[codes.index(EXIT_STUCK)]
    assert "no progress for" in told and "the first to stand still was rank 1" in told and "(computes step 5" in told
    assert time.monotonic() - began < 300


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    toy.train({"out": str(tmp_path), "stop_at": 3})
    ranks = toy.launch(toy.__file__, [{"out": str(tmp_path), "settings": {"global_batch": 10}}])
    said = toy.finish(ranks)[0]
    assert ranks[0].returncode != 0 and "global_batch was 8 and is 10" in said
