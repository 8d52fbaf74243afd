from __future__ import annotations

from pathlib import Path

from lumen_hpc.cluster import accounting, manifest, triage


def _failed(folder: Path, shards: list[int], error: str, node: str = "n1", **more: object) -> None:
    row = {"shards": shards, "error": error, "node": node, "job": "7_1", "final": False, **more}
    manifest.append(folder / "failures.jsonl", row)


def test_alike_failures_come_together_with_a_cure(tmp_path: Path):
    for index in range(5):
        _failed(tmp_path, [index], f"OutOfMemoryError: CUDA out of memory. Tried {index} GiB at 0x7f{index}")
    _failed(tmp_path, [9], "UserError: question 12: no image", final=True)
    first, second = triage.clusters(tmp_path, range(10))
    assert (first.count, sorted(first.shards), second.count) == (5, [0, 1, 2, 3, 4], 1)
    assert "mem_gb" in first.fix and "message says" in second.fix
    assert first.log.endswith("logs/7_1_0_log.out")


def test_failures_of_shards_that_are_done_meanwhile_are_past(tmp_path: Path):
    _failed(tmp_path, [1], "RuntimeError: x")
    assert triage.clusters(tmp_path, [2]) == [] == triage.clusters(tmp_path, [])


def test_a_task_killed_from_outside_is_told(tmp_path: Path):
    for pack, event in ((0, "began"), (1, "began"), (1, "done")):
        row = {"pack": pack, "attempt": 1, "event": event, "chain": "0001", "job": "7_0", "node": "n2"}
        manifest.append(tmp_path / "attempts.jsonl", row)
    (kind,) = triage.clusters(tmp_path, [0])
    assert kind.count == 1 and kind.nodes == {"n2"} and "killed" in kind.error


def test_a_node_is_left_out_when_different_shards_fail_there_alone(tmp_path: Path):
    for index in (1, 2):
        _failed(tmp_path, [index], "RuntimeError: CUDA error", node="bad")
    assert triage.bad_nodes(tmp_path) == (), "no other node has shown that the work can be done"
    manifest.append(tmp_path / manifest.NAME, {"shard": 3, "node": "good"})
    assert triage.bad_nodes(tmp_path) == ("bad",)


def test_bad_input_blames_no_node(tmp_path: Path):
    for index in (1, 2):
        _failed(tmp_path, [index], "UserError: x", node="fine", final=True)
    manifest.append(tmp_path / manifest.NAME, {"shard": 3, "node": "good"})
    assert triage.bad_nodes(tmp_path) == ()


def test_slurm_is_asked_how_a_task_ended_that_recorded_nothing(tmp_path: Path):
    for pack, job in enumerate(("7_0", "7_1", "7_2", "7_3")):
        row = {"pack": pack, "attempt": 1, "event": "began", "chain": "0001", "job": job, "node": "n2"}
        manifest.append(tmp_path / "attempts.jsonl", row)
    accounted = accounting.read(
        "7_0|OUT_OF_MEMORY|0:125|61||\n7_0.batch|OUT_OF_MEMORY|0:125|61|1000K|\n"
        + "7_1|CANCELLED by 1000|0:15|9||\n7_2|FAILED|0:9|9||\n7_3|RUNNING|0:0|9||\n"
    )
    requested: list[str] = []

    def usage(jobs: list[str]) -> dict[str, accounting.Usage]:
        requested.extend(jobs)
        return accounted

    found = {kind.error: kind.fix for kind in triage.clusters(tmp_path, [0], {"7_3"}, usage)}
    assert requested == ["7_0", "7_1", "7_2"], "what runs is no failure"
    assert len(found) == 3 and "mem_gb" in found["a task was killed for exceeding its memory"]
    assert {"a task was cancelled in mid-work", "a task was killed by signal 9"} <= found.keys()


def test_memory_and_energy_come_from_a_jobs_steps_and_marks_for_no_value_are_none():
    lines = (
        "5|COMPLETED|0:0|100||", "5.batch|COMPLETED|0:0|100|2048K|700", "5.extern|COMPLETED|0:0|100|9G|99",
        "5.0|COMPLETED|0:0|90|1.5G|500", "6_3|COMPLETED|0:0|8||18446744073709551614", "6_3.batch|COMPLETED|0:0|8||0",
        "6_[4-9]|PENDING|0:0|0||",
    )  # fmt: skip
    found = accounting.read("\n".join(lines))
    assert (found["5"].peak_bytes, found["5"].joules, found["5"].seconds) == (1.5 * 2**30, 700, 100)
    assert (found["6_3"].peak_bytes, found["6_3"].joules) == (None, None)
