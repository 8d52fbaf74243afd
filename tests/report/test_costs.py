"""What a run cost: every attempt is paid, and lost time is known."""

from __future__ import annotations

import pytest

from lumen_hpc.cluster.accounting import Usage
from lumen_hpc.report import costs


def begins(pack: int, attempt: int, time: float, **more) -> dict:
    row = {"event": "began", "pack": pack, "attempt": attempt, "time": time, "node": "n1", "job": f"7_{pack}"}
    return row | {"cpus": 8, "gpus": 4} | more


def ends(pack: int, attempt: int, time: float, event: str = "done", **more) -> dict:
    return {"event": event, "pack": pack, "attempt": attempt, "time": time, "peak_mb": 100 * (pack + 1), **more}


def line(shard: int, pack: int, attempt: int, seconds: float) -> dict:
    return {"shard": shard, "of": 3, "pack": pack, "attempt": attempt, "seconds": seconds, "inputs": "i", "config": "c"}


def test_every_attempt_is_paid_and_unproductive_time_is_wasted():
    logs = costs.StepLogs(
        attempts=[
            begins(0, 1, 0), begins(1, 1, 0), ends(0, 1, 100),
            begins(1, 2, 80, node="n2"), ends(1, 2, 120, "interrupted"), begins(1, 3, 130), ends(1, 3, 150),
        ],
        manifest=[line(0, 0, 1, 90), line(1, 1, 1, 30), line(2, 1, 3, 15)],
    )  # fmt: skip
    (cost,) = costs.costs({"predict-lumen": logs, "never": costs.StepLogs()})
    assert (cost.shards, cost.attempts, cost.interrupted, cost.wall_seconds) == (3, 4, 2, 150)
    assert cost.wasted_seconds == (80 - 30) + 40, "killed while at its second shard, then stopped before it finished it"
    assert cost.gpu_hours == pytest.approx(4 * (100 + 80 + 40 + 20) / 3600) == cost.cpu_hours / 2
    assert (cost.peak_bytes, cost.joules, cost.nodes) == (200 * 2**20, None, ("n1", "n2"))


def test_slurms_account_knows_when_a_task_was_killed_its_energy_and_its_memory():
    logs = costs.StepLogs(attempts=[begins(0, 1, 0), begins(0, 2, 500, job="8_0"), ends(0, 2, 520, waited=4.0)])
    accounted = {"7_0": Usage("NODE_FAIL", 0, 60, 3 * 2**30, 7.2e6), "8_0": Usage("COMPLETED", 0, 20, None, 1.8e6)}
    (cost,) = costs.costs({"experts": logs}, accounted)
    assert (cost.wasted_seconds, cost.joules, cost.peak_bytes) == (60 + 4, 9e6, 3 * 2**30)
    assert costs.energy([cost]) == 9e6 and costs.wall_seconds([cost]) == 520
    (cost,) = costs.costs({"experts": logs})
    assert (cost.wasted_seconds, cost.joules) == (500 + 4, None), "without an account it counts until its successor"


def test_a_successor_on_a_node_whose_clock_is_behind_hides_no_lost_time():
    logs = costs.StepLogs(attempts=[begins(0, 1, 500), begins(0, 2, 300, job="8_0"), ends(0, 2, 320)])
    (cost,) = costs.costs({"experts": logs}, {"7_0": Usage("NODE_FAIL", 0, 60, None, None)})
    assert cost.wasted_seconds == 60
    (cost,) = costs.costs({"experts": logs})
    assert (cost.wasted_seconds, cost.gpu_hours) == (0, pytest.approx(4 * 20 / 3600)), "not known, and not negative"


def test_a_shard_written_again_because_it_was_corrupt_is_wasted_time_but_not_one_of_other_settings():
    attempts = [begins(0, 1, 0), ends(0, 1, 10), begins(0, 2, 50), ends(0, 2, 60)]
    again = [line(0, 0, 1, 8), line(0, 0, 2, 9)]
    (cost,) = costs.costs({"rewrite": costs.StepLogs(attempts=attempts, manifest=again)})
    assert (cost.wasted_seconds, cost.interrupted) == (8, 0)
    (cost,) = costs.costs(
        {"rewrite": costs.StepLogs(attempts=attempts, manifest=[again[0] | {"config": "d"}, again[1]])}
    )
    assert cost.wasted_seconds == 0


def test_a_training_wastes_only_the_steps_after_its_last_checkpoint_and_its_start():
    metrics = [{"step": step, "timing": {"seconds": 10.0, "memory_gb": 61.5 - step}} for step in range(6)]
    logs = costs.StepLogs(
        attempts=[begins(0, 1, 0), begins(0, 2, 70), ends(0, 2, 110)],
        manifest=[line(0, 0, 2, 38)],
        metrics=metrics,
        restarts=[{"step": 3, "lost_steps": 2, "lost_seconds": 20.0}],
    )
    (cost,) = costs.costs({"train-ft": logs})
    assert cost.wasted_seconds == 70 - 40, "steps 0 to 3 were kept"
    assert cost.gpu_peak_bytes == 61_500_000_000
