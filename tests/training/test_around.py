"""What surrounds the loop: rendezvous, health check, journal, learning rate, the stop flag."""

from __future__ import annotations

import json
import socket

import pytest
import torch

from lumen_hpc.config.schema import Train
from lumen_hpc.distributed import Ranks, join
from lumen_hpc.errors import UserError
from lumen_hpc.training import health
from lumen_hpc.training.health import Report, check_devices, fault_messages
from lumen_hpc.training.journal import Journal
from lumen_hpc.training.sizing import check_batch


def test_a_rank_that_does_not_come_is_named(tmp_path):
    with pytest.raises(TimeoutError, match=rf"ranks \[1, 2\] of 3 .* are on {socket.gethostname()}"):
        join(Ranks(rank=0, world_size=3, job="m"), tmp_path, timeout=1)
    with pytest.raises(TimeoutError, match="rank 0 did not open the rendezvous of job another"):
        join(Ranks(rank=1, world_size=3, job="another"), tmp_path, timeout=1)


def test_the_health_check_reports_and_names_what_is_bad(alone):
    (report,) = check_devices(Ranks(), size=64, megabytes=0.1)
    assert report["tflops"] > 0 and report["fault"] == "" and report["host"] == socket.gethostname()

    def rank(number, tflops, fault=""):
        return Report(number, f"n{number // 4}", "H100", tflops, 79.0, 300.0, fault)

    good = [rank(i, 600.0 + i) for i in range(7)]
    assert fault_messages([*good, rank(7, 580)], min_share=0.5) == []
    assert fault_messages([*good, rank(7, 120)], min_share=0.5) == [
        "n1 (rank 7, H100): 120.0 TFLOP/s where the median is 602.5"
    ]
    assert fault_messages([*good, rank(7, 0, "RuntimeError: ECC")], min_share=0.5) == [
        "n1 (rank 7, H100): RuntimeError: ECC"
    ]


def test_a_device_or_a_link_that_computes_something_wrong_is_named(alone, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(health.torch, "ones", lambda *size, **options: torch.full(size, 1.001))
        with pytest.raises(RuntimeError, match=r"\(rank 0, cpu\): ArithmeticError: a product of ones is wrong"):
            check_devices(Ranks(), size=64, megabytes=0.1)
    monkeypatch.setattr(health.dist, "all_reduce", lambda tensor: None)
    with pytest.raises(ArithmeticError, match=r"an all-reduce of ones gave 1\.0, not 2"):
        check_devices(Ranks(world_size=2), size=64, megabytes=0.1)


def test_the_journal_is_cut_back_to_the_step_that_is_gone_on_from(tmp_path):
    def steps(journal, numbers):
        for step in numbers:
            journal.write_step(step, [f"s{step}"], {"loss": step / 2}, {"seconds": 2.0})
        journal.close()

    steps(Journal(tmp_path, step=0), range(1, 8))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "los')  # the crash came here
    again = Journal(tmp_path, step=5)
    again.write_restart(step=5)
    assert (again.lost_steps, again.lost_seconds) == (2, 4.0)
    steps(again, range(6, 9))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    ids = [json.loads(line)["ids"] for line in (tmp_path / "consumed.jsonl").read_text().splitlines()]
    assert ids == [[f"s{step}"] for step in range(1, 9)]
    restart = json.loads((tmp_path / "restarts.jsonl").read_text())
    assert restart == {"step": 5, "lost_steps": 2, "lost_seconds": 4.0}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_learning_rate_warms_up_and_follows_a_cosine_to_zero():
    from lumen_hpc.schedule import rate_at

    rates = [rate_at(step, 100, 2.0, 0.03) for step in range(100)]
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert rates[3] == 2.0 and rates == sorted(rates[:3]) + sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert all(rate > 0 for rate in (rate_at(0, 1, 2.0, 0.0), rate_at(0, 1, 2.0, 1.0)))


def test_a_batch_that_gives_some_gpus_nothing_is_refused_with_what_works():
    check_batch(Train(), 128)
    with pytest.raises(UserError, match=r"train\.global_batch=144, or at most 128 GPUs"):
        check_batch(Train(), 144)
    with pytest.raises(UserError, match=r"train\.token_budget=8192, or at most train\.max_tokens=4096"):
        check_batch(Train(token_budget=4096), 4)
