"""The loop under DeepSpeed in one and several processes: equality, interruptions, accounting.

Starting a process costs more than all its steps, so runs share starts: `parts` makes those of several starts after one
another, and each test looks at its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lumen_hpc.cluster.attempts import EXIT_STUCK
from lumen_hpc.config.schema import Train
from lumen_hpc.errors import UserError
from lumen_hpc.training import loop
from lumen_hpc.training.checkpointing import Checkpoint
from tests.training import toy
from tests.training.forked import Rank

ALL = Counter({f"s{i}": 2 for i in range(toy.SAMPLES)})
"""Every sample once in each of two epochs."""
STEPS = 13
"""2 x 50 samples at 8 a step; the last step has 4."""
ZERO = (1, 2, 3)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """Whole runs and interrupted ones, by name: what changes between starts is the number of processes."""
    folder = tmp_path_factory.mktemp("parts")

    def run(name: str, stop_at: int = 0, **settings: Any) -> dict[str, Any]:
        return {"out": str(folder / name), "settings": settings, "stop_at": stop_at}

    def copied(name: str, **settings: Any) -> dict[str, Any]:
        """Goes on from what bf16-zeroN-begun left, on other processes; an earlier start was killed while converting."""
        shutil.copytree(folder / f"bf16-zero{settings['zero']}-begun", folder / name)
        for checkpoint in (folder / name / "checkpoints").iterdir():
            (checkpoint / "universal" / "zero").mkdir(parents=True)
        return run(name, precision="bf16", **settings)

    whole = [run(f"{kind}-zero{zero}", zero=zero, precision=kind) for kind in ("fp32", "bf16") for zero in ZERO]
    begun = [run(f"bf16-zero{zero}-begun", 5, zero=zero, precision="bf16") for zero in ZERO]
    toy.train(*whole, *begun, run("chain", 4), run("wider", 6, zero=3), world_size=2)
    narrower = copied("bf16-narrower", zero=1)
    toy.train(run("one"), run("chain", 8), run("chain", 10), narrower, world_size=1)
    again = [copied(f"bf16-zero{zero}-again", zero=zero) for zero in ZERO]
    toy.train(run("chain"), *again, world_size=2)
    toy.train(run("wider", zero=3), copied("bf16-wider", zero=3), world_size=4)
    return folder


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "weights.pt")


@pytest.mark.parametrize("zero", ZERO)
def test_zero_stages_on_two_processes_equal_one_process(parts, zero):
    two = parts / f"fp32-zero{zero}"
    assert len(toy.losses(two)) == STEPS
    assert toy.losses(two) == pytest.approx(toy.losses(parts / "one"), abs=1e-5)
    for name, tensor in weights(parts / "one").items():
        assert torch.allclose(weights(two)[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("zero", ZERO)
def test_bf16_learns_what_fp32_does_and_resumes_bit_for_bit(parts, zero):
    whole, again = parts / f"bf16-zero{zero}", parts / f"bf16-zero{zero}-again"
    assert toy.losses(whole) == pytest.approx(toy.losses(parts / "one"), rel=0.01)
    assert toy.losses(whole) != toy.losses(parts / f"fp32-zero{zero}")
    assert {tensor.dtype for tensor in weights(whole).values()} == {torch.bfloat16}
    assert toy.metrics(again) == toy.metrics(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(again)[name], tensor), name


@pytest.mark.parametrize(("name", "zero"), [("narrower", 1), ("wider", 3)])
def test_bf16_goes_on_with_another_number_of_processes(parts, name, zero):
    out, whole = parts / f"bf16-{name}", parts / f"bf16-zero{zero}"
    assert toy.losses(out)[:5] == toy.losses(whole)[:5]
    # The same master weights go on; products are rounded to 8 bits in other groupings.
    assert toy.losses(out) == pytest.approx(toy.losses(whole), rel=0.005)
    assert toy.consumed(out) == toy.consumed(whole)
    assert not list(out.glob("checkpoints/*/universal"))


def test_every_sample_is_seen_once_an_epoch_and_the_last_batch_is_short(parts):
    assert Counter(toy.consumed(parts / "one")) == ALL
    assert toy.metrics(parts / "one")[-1]["samples"] == 100
    assert toy.consumed(parts / "one") == toy.consumed(parts / "fp32-zero3")


def test_three_restarts_with_two_world_sizes_lose_and_double_nothing(parts):
    assert toy.losses(parts / "chain") == pytest.approx(toy.losses(parts / "one"), abs=1e-5)
    assert toy.consumed(parts / "chain") == toy.consumed(parts / "one")
    restarts = [json.loads(line) for line in (parts / "chain" / "restarts.jsonl").read_text().splitlines()]
    assert [(row["step"], row["world_size"]) for row in restarts] == [(4, 1), (8, 1), (10, 2)]


def test_zero_3_goes_on_with_twice_the_processes(parts):
    assert toy.losses(parts / "wider") == pytest.approx(toy.losses(parts / "one"), abs=1e-5)
    assert toy.consumed(parts / "wider") == toy.consumed(parts / "one")


WAYS = ("USR2 twice", "SIGTERM in a save", "killed rank", "node down", "truncated checkpoint")


def interrupted(out: Path, how: str) -> None:
    """Starts a run on two processes, which waits before its 8th step, and ends it in one of the ways."""
    out.mkdir()
    (out / "hold").touch()
    in_save = how == "SIGTERM in a save"
    run = {"out": str(out), "held_at": 8, "held_save": 6 if in_save else 0}
    ranks = toy.launch(toy.__file__, [run], world_size=2)
    saved = 1 if in_save else 2
    until(lambda: len(list(out.glob("checkpoints/step-*/COMPLETE.json"))) == saved and toy.steps(out) == 7, ranks)
    if in_save:  # one rank only: the other must hear of it
        assert (out / "checkpoints" / ".step-000006").exists()
        ranks[1].send_signal(signal.SIGTERM)
    if how == "USR2 twice":
        for rank in ranks * 2:
            rank.send_signal(signal.SIGUSR2)
    elif how == "killed rank":
        ranks[1].kill()
    elif how == "node down":
        for rank in ranks:
            rank.kill()
    (out / "hold").unlink()
    outputs = toy.finish(ranks)
    if in_save or how == "USR2 twice":
        assert [rank.returncode for rank in ranks] == [0, 0], outputs
        assert all("interrupted at step" in text for text in outputs)
    else:
        assert all(rank.returncode != 0 for rank in ranks)


def until(condition: Any, ranks: list[Rank], *, timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        assert all(rank.poll() is None for rank in ranks), [rank.communicate()[0] for rank in ranks]
        time.sleep(0.002)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> tuple[Path, str, Path]:
    """Runs interrupted in all ways and then all resumed; their output, and the file that was truncated."""
    folder = tmp_path_factory.mktemp("interrupted")
    for how in WAYS[:-1]:
        interrupted(folder / how, how)
    shutil.copytree(folder / "node down", folder / "truncated checkpoint")
    newest = max((folder / "truncated checkpoint" / "checkpoints").glob("step-*"))
    largest = max(newest.rglob("*.pt"), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    outputs = toy.train(*({"out": str(folder / how)} for how in WAYS), world_size=2)
    return folder, outputs[0], largest


@pytest.mark.parametrize("how", WAYS)
def test_an_interrupted_run_ends_with_the_undisturbed_curve_bit_for_bit(parts, resumed, how):
    folder, outputs, truncated = resumed
    out = folder / how
    assert toy.metrics(out) == toy.metrics(parts / "fp32-zero1")
    assert Counter(toy.consumed(out)) == ALL
    for name, tensor in weights(parts / "fp32-zero1").items():
        assert torch.equal(weights(out)[name], tensor), name
    (restart,) = [json.loads(line) for line in (out / "restarts.jsonl").read_text().splitlines()]
    lost = {
        "USR2 twice": (8, 0), "SIGTERM in a save": (8, 0), "killed rank": (6, 1), "node down": (6, 1),
        "truncated checkpoint": (3, 4),
    }  # fmt: skip
    assert (restart["step"], restart["lost_steps"]) == lost[how]
    if how == "truncated checkpoint":
        assert f"{truncated.parents[1]} is skipped" in outputs and truncated.name in outputs


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> tuple[Path, list[str]]:
    """Runs that must stop with a message to their user, and each rank's output."""
    folder = tmp_path_factory.mktemp("failed")

    def run(name: str, **more: Any) -> dict[str, Any]:
        return {"out": str(folder / name), "fails": True, **more}

    runs = [
        run("poisoned", poisoned_at=7),  # while the checkpoint of step 6 is being written
        *(run(f"gradient-{zero}", gradient_poisoned_at=7, settings={"zero": zero}) for zero in ZERO),
        run("full", full_disk_at=6),
        run("other", stop_at=3),
        run("other", settings={"global_batch": 10}),
    ]
    outputs = toy.train(*runs, world_size=2)
    (folder / "blocked" / "checkpoints").mkdir(parents=True)
    (folder / "blocked" / "checkpoints" / ".step-000006").touch()
    return folder, outputs + toy.train(run("blocked"))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_checkpoint(failed):
    folder, outputs = failed
    for text in outputs[:2]:
        assert "the loss of step 7 is nan" in text and f"{folder}/poisoned/checkpoints/step-000006" in text
    assert toy.steps(folder / "poisoned") == 6
    assert (folder / "poisoned" / "checkpoints" / "step-000006" / "COMPLETE.json").exists()


@pytest.mark.parametrize("zero", ZERO)
def test_a_gradient_that_is_no_number_on_one_rank_stops_all(failed, zero):
    folder, outputs = failed
    out = folder / f"gradient-{zero}"
    for text in outputs[:2]:
        assert f"the gradient norm of step 7 is inf; the last good checkpoint is {out}/checkpoints/step-000006" in text
    assert toy.steps(out) == 6


def check_loss(value: float, *, recent: int = 100, limit: float = 3.0) -> None:
    """`Loop._check` of a loss after `recent` losses of 1."""
    losses = deque([1.0] * recent, maxlen=100)
    checkpoints, work = SimpleNamespace(finish=lambda: None), SimpleNamespace(out=Path("none"))
    state = {"recent_losses": losses, "steps_done": 100, "checkpoints": checkpoints, "work": work}
    loop.Loop._check(SimpleNamespace(train=Train(loss_limit=limit), **state), value)


def test_a_loss_far_above_the_recent_ones_stops_the_run_which_another_limit_lets_go_on():
    for settings in ({"value": 3.0}, {"value": 4.0, "recent": 99}, {"value": 4.0, "limit": 0.0}):
        check_loss(**settings)
    with pytest.raises(loop.Diverged, match=r"is 4, more than 3 times the recent 1; .* train.loss_limit above 3"):
        check_loss(4.0)
    with pytest.raises(loop.Diverged, match="101 is inf; the last"):
        check_loss(float("inf"), limit=0.0)


def test_a_full_disk_on_one_rank_stops_all_at_the_next_step(failed):
    folder, outputs = failed
    for text in outputs[:2]:
        assert "full cannot be written to" in text and "No space left" in text
        assert f"{folder}/full/checkpoints/step-000003" in text
    assert toy.steps(folder / "full") == 6
    assert [f.name for f in (folder / "full" / "checkpoints").glob("step-*")] == ["step-000003"]


def test_a_checkpoint_of_other_settings_is_refused(failed):
    assert all("global_batch was 8 and is 10" in text for text in failed[1][:2])


def test_a_checkpoint_that_cannot_be_begun_stops_the_run_and_names_the_last_good_one(failed):
    folder, outputs = failed
    assert "blocked cannot be written to" in outputs[2] and f"{folder}/blocked/checkpoints/step-000003" in outputs[2]


def test_a_rank_that_hangs_is_named_and_the_job_ends(tmp_path):
    began = time.monotonic()
    # Long enough for the first step on a machine that does other things.
    run = {"out": str(tmp_path), "hangs_at": 5, "settings": {"stuck_after": 12}}
    ranks = toy.launch(toy.__file__, [run], world_size=2)
    outputs = toy.finish(ranks)
    # Whoever gives up first names the rank; the other may hear the connection break before its own time is up.
    codes = [rank.returncode for rank in ranks]
    assert EXIT_STUCK in codes and 0 not in codes
    output = outputs[codes.index(EXIT_STUCK)]
    assert "no progress for" in output and "the first to stop was rank 1" in output and "(computes step 5" in output
    assert time.monotonic() - began < 300


@pytest.mark.parametrize("settings", [{"seed": 0, "train.adapter": {"rank": 4}}, {"seed": 1}, {}])
def test_a_checkpoint_with_other_settings_more_or_fewer_is_refused(settings):
    checkpoint = Checkpoint(Path("step-000003"), 3, 1, {"fingerprint": settings}, {})
    with pytest.raises(UserError, match="step-000003 belongs to another training"):
        loop._same_run(checkpoint, {"seed": 0})


def test_a_checkpoint_with_the_same_parts_in_another_order_is_gone_on_from():
    checkpoint = Checkpoint(Path("step-000003"), 3, 1, {"fingerprint": {"train.tune": ["llm", "projector"]}}, {})
    loop._same_run(checkpoint, {"train.tune": ["projector", "llm"]})
