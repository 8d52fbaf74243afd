"""A whole run on a real Slurm: dependent arrays, reruns, and what a second submission must not do."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime

import pytest

from sandbox.slurm import Cluster
from tests.cluster.conftest import ALL, SHARDS, RunOnDisk, Site, assert_whole, submitted


def position(run: RunOnDisk, line: str) -> int:
    """Where a report stands in the order of events."""
    reports = [" ".join(text.split()[:3]) for text in (run.control / "computed.txt").read_text().splitlines()]
    return reports.index(line)


def test_a_chain_of_dependent_arrays_runs_in_order_and_computes_everything_once(undisturbed: RunOnDisk) -> None:
    assert undisturbed.done() == dict.fromkeys(ALL, 1)
    numbers_end = position(undisturbed, "end numbers 0")
    total_begin = position(undisturbed, "begin total 0")
    for shard in range(SHARDS):
        squares_end = position(undisturbed, f"end squares {shard}")
        checks_begin = position(undisturbed, f"begin checks {shard}")
        checks_end = position(undisturbed, f"end checks {shard}")
        assert numbers_end < squares_end < checks_begin < checks_end < total_begin
    squares = sum(number**2 for number in range(10 * SHARDS))
    assert undisturbed.outputs()["total/shard-00000-of-00001.jsonl"] == (
        f'{{"rows":{10 * SHARDS},"processes":2}}\n{{"sum":{squares}}}\n'.encode()
    )
    assert undisturbed.leftovers() == []


def test_a_job_of_two_nodes_has_a_process_on_each(undisturbed: RunOnDisk) -> None:
    processes = sorted(path.name.split("-")[1:] for path in undisturbed.control.glob("process-*"))
    assert [rank for rank, _ in processes] == ["0", "1"]
    assert len({node for _, node in processes}) == 2


def test_an_array_is_spread_over_the_nodes(undisturbed: RunOnDisk) -> None:
    packs = {(node, pid) for _, node, pid in undisturbed.reported("begin", "squares")}
    assert len(packs) == 4
    assert {node for node, _ in packs} <= {"n1", "n2", "n3"}


def test_a_finished_step_leaves_a_log_for_each_task_and_little_else(undisturbed: RunOnDisk) -> None:
    files = Counter(path.suffix for path in (undisturbed.folder / "squares").rglob("*") if path.is_file())
    assert files == {".jsonl": SHARDS + 2, ".out": 4}  # manifest and attempts; scripts lie with the submission


def test_a_rerun_of_a_finished_run_submits_nothing(site: Site, undisturbed: RunOnDisk) -> None:
    before = undisturbed.begun()
    site.submit("undisturbed")
    assert site.jobs("undisturbed") == []
    assert undisturbed.begun() == before


def test_shard_k_is_checked_while_another_shard_is_still_being_squared(site: Site, undisturbed: RunOnDisk) -> None:
    run = site.run("pipelined")
    hold = run.steer("hold-squares-0")
    site.submit("pipelined")
    site.wait(lambda: run.reported("end", "checks"), 180, "a check to end while squares-0 is held")
    assert "squares-0" not in run.ends()
    hold.unlink()
    site.wait_until_left("pipelined")
    assert_whole(run, undisturbed)


def test_a_second_submission_of_a_live_run_starts_no_duplicates(site: Site, undisturbed: RunOnDisk) -> None:
    run = site.run("twice")
    hold = run.steer("hold-squares-5")
    site.submit("twice")
    site.wait(lambda: "squares-5" in run.begun(), 180, "squares-5 to begin")
    for checked in (0, 9):  # at once, and when every check whose square is there has left the queue
        site.wait(lambda: len([what for what in run.done() if what.startswith("checks")]) >= checked, 120, "checks")  # noqa: B023
        site.wait(lambda: not checked or not site.running("twice", "checks"), 60, "the tasks of checks to end")  # noqa: B023
        before = {id_ for id_, *_ in site.jobs("twice")}
        assert "nothing to submit: full of run twice is under way" in site.submit("twice")
        assert {id_ for id_, *_ in site.jobs("twice")} <= before
    hold.unlink()
    site.wait_until_left("twice")
    assert_whole(run, undisturbed)
    assert run.begun() == run.ends()


def test_a_changed_setting_reruns_only_the_stages_that_read_it(site: Site) -> None:
    site.submit("changed")
    site.wait_until_left("changed")
    run = site.run("changed")
    first = run.outputs()
    assert "judge.canaries: 10 -> 7" in site.launch("stage=full", "run=changed", "judge.canaries=7", code=2)
    assert site.jobs("changed") == []
    site.submit("changed", "judge.canaries=7", "confirm=true")
    site.wait_until_left("changed")
    second = run.outputs()
    changed = {path for path in second if first[path] != second[path]}
    assert changed == {path for path in first if path.startswith("checks")}
    assert {what for what, times in run.done().items() if times == 2} == {
        "total-0",
        *(f"checks-{shard}" for shard in range(SHARDS)),
    }


def test_on_a_full_partition_dependants_start_at_once_and_successors_never_run(site: Site, cluster: Cluster) -> None:
    run = site.run("crowded")
    hold = run.steer("hold-squares-0")
    elsewhere = ("partition=cpu", "gpus=0", "tasks=1")  # other packs than squares', so that it waits for the gate
    words = [f"profile.resources.judge.{word}" for word in elsewhere]
    site.submit("crowded", "profile.resources.gpu.successors=3", "profile.resources.train.gpus=0", *words)
    site.wait(lambda: "squares-0" in run.begun(), 180, "squares-0 to begin")
    others = ("sbatch", "-p", "h100", "--gpus-per-node=1", "-n1", "--mem=1", "-t", "30", "-o", "/dev/null")
    for _ in range(24):  # more than the partition's 12 GPUs: some wait and take what becomes free
        cluster.run(*others, "--wrap", "sleep 1000")
    table = json.loads(site.launch("status", "run=crowded", "json=true"))
    squares = next(step for step in table["steps"] if step["step"] == "squares")
    assert squares["queued"] == 0 and squares["successors"] >= 3, squares
    hold.unlink()
    site.wait_until_left("crowded", 500)
    jobs = {job["id"]: job for job in submitted(run)}
    rows = site.accounted(run, jobs, "JobName", "JobID", "Start", "End", "NodeList")
    nodes = {job: node for _, job, _, _, node in rows if jobs[job.split("_")[0]]["link"]}
    assert nodes and set(nodes.values()) == {"None assigned"}, nodes
    times = {job: (name, start, end) for name, job, start, end, node in rows if job not in nodes}
    squares_end = max(end for name, _, end in times.values() if name == "crowded.squares")
    checks_start = min(start for name, start, _ in times.values() if name == "crowded.checks")
    waited = datetime.fromisoformat(checks_start) - datetime.fromisoformat(squares_end)
    assert waited.total_seconds() < 500, "a turn in the queue is 1000 s"


def test_one_failed_pack_lets_only_its_own_successor_run(site: Site, undisturbed: RunOnDisk) -> None:
    """The others cancel their own successors when they end; one whose scancel got no answer would run for nothing."""
    run = site.run("one-pack")
    fault = run.steer("fail-squares-5")
    # A pack that ends before the submission does knows no successors yet.
    first, *others = [run.steer(f"hold-squares-{pack}") for pack in range(4)]
    site.submit("one-pack", "profile.resources.gpu.successors=2")
    for hold in others:
        hold.unlink()
    site.wait(lambda: "failed" in run.events("squares"), 180, "a pack to fail")
    fault.unlink()
    first.unlink()  # the first array was still running when the fault was repaired
    site.wait_until_left("one-pack")
    assert_whole(run, undisturbed)
    attempts = [json.loads(line) for line in (run.folder / "squares" / "attempts.jsonl").read_text().splitlines()]
    (failed,) = [row["pack"] for row in attempts if row["event"] == "failed"]
    later = {job["id"] for job in submitted(run) if job["step"] == "squares" and job["link"]}
    ran = site.accounted(run, later, "JobID", "State")
    completed = [id_.split("_")[1] for id_, state in ran if state == "COMPLETED"]
    assert completed == [str(failed)], (ran, [(row["job"], row["event"], row["at"]) for row in attempts])


@pytest.mark.parametrize(
    "words, expected",
    [
        (["profile.resources.gpu.partition=nowhere"], "step squares cannot run"),
        (["profile.resources.judge.time_min=100000"], "its limit is 1440 min"),
        (["profile.resources.gpu.cpus=97"], "96 cores a node"),
        (["profile.resources.cpu.mem_gb=2000"], "976 GB a node"),
        (["profile.resources.train.nodes=9"], "it has 3 nodes"),
        (["profile.account=nobody"], "lumen: Slurm refused step numbers (profile."),
        (["profile.resources.gpu.qos=gold"], "gold"),
    ],
    ids=lambda value: value[0].split("=")[0] if isinstance(value, list) else "",
)
def test_what_can_never_run_leaves_nothing_in_the_queue(
    site: Site, cluster: Cluster, words: list[str], expected: str
) -> None:
    def jobs_known() -> int:
        return cluster.run("scontrol", "show", "job", "--oneliner", check=False).stdout.count("JobId=")

    before = jobs_known()
    output = site.launch("stage=full", "run=refused", *words, code=2)
    assert expected in output
    assert [line.startswith("lumen: ") for line in output.strip().splitlines()] == [False, True], (
        "what runs where, and one clear line; no traceback"
    )
    assert jobs_known() == before or "Slurm refused" in output, "refused by comparison, before a job was there"
    assert site.jobs("refused") == []
    assert not site.run("refused").folder.exists()


def test_a_refused_rerun_leaves_the_run_as_it_was(site: Site, undisturbed: RunOnDisk) -> None:
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in undisturbed.folder.rglob("*") if path.is_file()}

    before = files()
    wrong = ("judge.canaries=7", "confirm=true", "profile.resources.judge.partition=nowhere")
    site.launch("stage=full", "run=undisturbed", *wrong, code=2)
    assert files() == before
