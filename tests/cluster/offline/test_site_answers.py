"""Answers of sites whose Slurm, file system or user database is unlike the usual, at the subprocess boundary."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import launch
from lumen_hpc import files
from lumen_hpc.cluster import (
    accounting,
    attempts,
    gate,
    graph,
    live,
    manifest,
    partitions,
    preflight,
    slurm,
    status,
    worker,
)
from lumen_hpc.cluster.stage import Run, Stage
from lumen_hpc.config import profile as profiles
from lumen_hpc.config.request import Request
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError
from tests.cluster.offline.offline_graph import finish, submit_chain


def answer(fake: Path, program: str, text: str) -> None:
    tool = fake / "bin" / program
    tool.write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}\nEOF\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("line", "nodes", "cpus", "gpus"),
    [
        ("gpu*|1.2K|64|gpu:a100:4(S:0-1)|2-00:00:00|512000|up|0/1.1K/100/1.2K", 1200, 64, 4),
        ("gpu|8|64+|gpu:h100:no_consume:8|2-00:00:00|512000+|up|0/8/0/8", 8, 64, 8),
        ("gpu|8|64|gpu:a100:3,gpu:1g.10gb:7(S:0),mps:a100:300|1:00:00|512000|up|0/8/0/8", 8, 64, 10),
        ("gpu|8|64|shard:h100:32,gpu:h100:4,gpu_mem:80G|1:00:00|512000|up|0/8/0/8", 8, 64, 4),
        ("gpu|0|0|(null)|infinite|0|up|0/0/0/0", 0, 0, 0),
        ("gpu|2|N/A|(null)|n/a|N/A|up|0/2/0/2", 2, 0, 0),
    ],
)
def test_partitions_of_many_kinds_of_sites(fake: Path, line: str, nodes: int, cpus: int, gpus: int) -> None:
    answer(fake, "sinfo", f"CLUSTER: here\n{line}\n")
    (found,) = partitions.query()
    assert (found.name, found.nodes, found.cpus, found.gpus) == ("gpu", nodes, cpus, gpus)
    assert (found.default, found.unavailable_nodes) == ("*" in line, 100 if "/100/" in line else 0)


def test_a_partition_whose_nodes_come_when_they_are_needed_refuses_nothing(fake: Path, request_here: Request) -> None:
    answer(fake, "sinfo", "h100*|0|0|(null)|infinite|0|up|0/0/0/0\ncpu|3|96|(null)|infinite|1000000|up|0/3/0/3")
    assert list(preflight.unfit_resources(request_here.profile, ["gpu", "train", "cpu"])) == []
    results = preflight.check_cluster(request_here.profile)
    shown = [result for result in results if "shows no nodes now" in result.message]
    assert {result.level for result in shown} == {"warn"}


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (["profile.resources.gpu.partition=cpu"], "bad"),
        (["profile.resources.gpu.partition="], "warn"),
        (["profile.resources.gpu.partition=cpu", "profile.additional.partition=h100"], "warn"),
    ],
)
def test_a_default_partition_without_gpus_is_bad_only_where_the_profile_names_it(
    fake: Path, words: list[str], level: str
) -> None:
    """Jean Zay and Perlmutter choose a partition by account and features, and their default one has no GPU."""
    answer(fake, "sinfo", "cpu*|3|96|(null)|infinite|1000000|up|0/3/0/3\nh100|3|96|gpu:4|infinite|1000000|up|0/3/0/3")
    profile = resolve(["stage=full", "profile=h100", *words]).profile
    results = [result for result in preflight.check_cluster(profile) if "resources.gpu.gpus=1" in result.message]
    assert [result.level for result in results] == [level]
    assert bool(preflight.why_refused(profile)) == (level == "bad")
    assert bool(list(preflight.unfit_resources(profile, ["gpu"]))) == (level == "bad")


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("2-12", 3600), ("2-12:30", 3630), ("1-00:00:00", 1440), ("12:30:00", 750), ("30:00", 30), ("45", 45),
     ("infinite", 525_600), ("n/a", 525_600), ("", 525_600)],
)  # fmt: skip
def test_time_limits_in_every_spelling(limit: str, minutes: int) -> None:
    assert profiles.minutes(limit) == minutes


@pytest.mark.parametrize(
    ("config", "largest"),
    [
        ("MaxArraySize = 4000001\nSchedulerParameters = bf_interval=30,max_array_tasks=500,defer", 500),
        ("MaxArraySize = 100\nSchedulerParameters = max_array_tasks=500", 100),
        ("MaxArraySize = N/A\nSchedulerParameters = (null)", 1001),
        ("MaxArraySize            = 1", 1),
        ("Configuration data as of 2026-11-27T09:00:00", 1001),
    ],
)
def test_the_longest_array_of_a_site(fake: Path, config: str, largest: int) -> None:
    answer(fake, "scontrol", config)
    assert slurm.largest_array() == largest


@pytest.mark.parametrize(
    "message",
    [
        "Socket timed out on send/recv operation", "Unable to contact slurm controller (connect failure)",
        "Slurm backup controller in standby mode", "Zero Bytes were transmitted or received", "No route to host",
        "Protocol authentication error", "Rate limit exceeded, please retry momentarily", "Message receive failure",
        "Resource temporarily unavailable", "Unable to contact slurm controller: Connection timed out",
    ],
)  # fmt: skip
def test_a_controller_that_is_away_is_told_from_a_refusal(fake: Path, message: str) -> None:
    (fake / "bin" / "sbatch").write_text(f"#!/bin/sh\necho 'sbatch: error: {message}' >&2; exit 1\n")
    with pytest.raises(slurm.Unreachable):
        slurm.submit(fake / "script.sh")


@pytest.mark.parametrize(("clusters", "option"), [("", "--clusters=here "), ("there", "")])
def test_in_a_federation_jobs_stay_on_the_cluster_whose_queue_is_asked(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, clusters: str, option: str
) -> None:
    """Else the first to have room takes them; there they are neither seen nor cancelled."""
    if clusters:
        monkeypatch.setenv("SLURM_CLUSTERS", clusters)
    answer(
        fake, "scontrol", "Federation: all\nSelf:       here:10.0.0.1:6817 ID:1\nSibling:    there:10.0.0.2:6817 ID:2"
    )
    (fake / "bin" / "sbatch").write_text(
        '#!/bin/sh\necho "$@" >&2; echo Submitted batch job 67108865 on cluster here\n'
    )
    assert slurm.submit(fake / "script.sh") == "67108865"
    assert capsys.readouterr().err == f"lumen: {option}{fake}/script.sh\n"


def test_what_a_site_says_to_whoever_submits_is_shown_once(fake: Path, capsys: pytest.CaptureFixture) -> None:
    """As of a job_submit plugin that charges another account."""
    message = "sbatch: Submitted batch job 9? No: account x is closed, y is charged"
    (fake / "bin" / "sbatch").write_text(f"#!/bin/sh\necho '{message}' >&2; echo hello; echo Submitted batch job 7\n")
    assert [slurm.submit(fake / "script.sh") for _ in range(3)] == ["7"] * 3
    assert capsys.readouterr().err == f"lumen: {message}\n"


def test_colours_of_a_sites_wrappers_are_not_part_of_an_answer(fake: Path) -> None:
    for program, text in (
        ("sbatch", "Submitted batch job \033[1;32m7\033[0m"),
        ("squeue", "\033[32m7\033[m|\033[33mRUNNING\033[0m|None|n1|N/A|0|r.first"),
    ):
        answer(fake, program, text)
    assert slurm.submit(fake / "script.sh") == "7"
    assert {id_: job.state for id_, job in slurm.queue().items()} == {"7": "RUNNING"}


def test_jobs_whose_names_a_site_lengthens_are_the_runs(fake: Path, request_here: Request, stages: list[Stage]):
    run, submitted = submit_chain(request_here, stages)
    gates = [job for job in submitted if "gate" in job]
    lines = [f"{job['id']}|RUNNING|None|n1|N/A|{os.getuid()}|chest-{job['name']}-x" for job in gates]
    (fake / "queue").write_text("\n".join(lines))
    found = live.in_queue(live.submissions(run.folder), slurm.queue())
    assert [job["id"] for _, job, _ in found] == [job["id"] for job in gates]


def test_a_job_that_somebody_renamed_is_the_runs(fake: Path, request_here: Request, stages: list[Stage]):
    """Its shards were submitted again beside it, `status` took it for killed, and `cancel` left it running."""
    run, submitted = submit_chain(request_here, stages)
    array = next(job for job in submitted if len(job["packs"]) > 1)
    (fake / "queue").write_text(f"{array['id']}_1|RUNNING|None|n1|N/A|{os.getuid()}|urgent")
    assert live.shards(run, live.queue(run)) == ({}, {}), "another job of the same number"
    (fake / f"job-{array['id']}").write_text(f"   StdOut={run.folder}/{array['step']}/logs/7_0_log.out\n")
    assert live.shards(run, live.queue(run))[0] == {array["step"]: {array["packs"][1]}}


def test_a_lost_job_is_found_where_users_have_no_scontrol(fake: Path, request_here: Request, stages: list[Stage]):
    run, _ = submit_chain(request_here, stages)
    (fake / "bin" / "scontrol").write_text("#!/bin/sh\nexit 127\n")
    line = f"77|PENDING|Priority||N/A|{os.getuid()}|r.answer-a"
    script = f'[ "$6" = "%o" ] && echo {run.folder}/submissions/0001/answer-a.sh || echo "{line}"'
    (fake / "bin" / "squeue").write_text(f"#!/bin/sh\n{script}\n")
    assert live.unrecorded_ids(run, slurm.queue()) == ["77"]


@pytest.mark.parametrize("state", ["SUSPENDED", "STOPPED", "CONFIGURING", "SIGNALING", "RESIZING", "STAGE_OUT"])
def test_a_job_that_holds_nodes_runs_and_a_suspended_one_says_so(
    fake: Path, request_here: Request, stages: list[Stage], state: str
):
    run, submitted = submit_chain(request_here, stages)
    first = submitted[0]
    (fake / "queue").write_text(f"{first['id']}|{state}|None|n1|N/A|{os.getuid()}|{first['name']}")
    shown = status.read(run, stages)[0]
    assert (shown.state, shown.running) == ("running", 1)
    assert ("suspended" in " ".join(shown.waits)) == (state in ("SUSPENDED", "STOPPED"))


def test_what_a_requeued_task_has_finished_counts_as_done(fake: Path, request_here: Request, stages: list[Stage]):
    run, submitted = submit_chain(request_here, stages)
    steps = graph.steps(stages, run.settings)
    array = next(job for job in submitted if len(job["packs"]) > 1)
    for step in steps:
        if step.name == array["step"]:
            finish(run, step, steps, shards=[0])
            break
        finish(run, step, steps)
    row = {"pack": 0, "attempt": 1, "event": "interrupted", "chain": "0001", "job": f"{array['id']}_0", "node": "n1"}
    manifest.append(run.folder / array["step"] / "attempts.jsonl", row)
    ids = [(f"{array['id']}_{position}", array["name"]) for position in range(len(array["packs"]))]
    (fake / "queue").write_text("\n".join(f"{id_}|PENDING|BeginTime||N/A|{os.getuid()}|{name}" for id_, name in ids))
    (shown,) = [item for item in status.read(run, stages) if item.step == array["step"]]
    assert shown.done == 1


@pytest.mark.parametrize(
    ("state", "reason"), [("PENDING", "JobHeldUser"), ("RESV_DEL_HOLD", "Reservation ours was deleted")]
)
def test_a_held_task_is_shown_while_others_of_its_step_run(
    fake: Path, request_here: Request, stages: list[Stage], state: str, reason: str
):
    run, submitted = submit_chain(request_here, stages)
    array = next(job for job in submitted if len(job["packs"]) > 1)
    states = [("RUNNING", "None"), *[(state, reason)] * (len(array["packs"]) - 1)]
    lines = [
        f"{array['id']}_{position}|{state}|{reason}|n1|N/A|{os.getuid()}|{array['name']}"
        for position, (state, reason) in enumerate(states)
    ]
    (fake / "queue").write_text("\n".join(lines))
    (shown,) = [item for item in status.read(run, stages) if item.step == array["step"]]
    assert (shown.state, shown.running, shown.queued) == ("running", 1, len(array["packs"]) - 1)
    assert [wait.partition(":")[0] for wait in shown.waits] == [f"{shown.queued} task(s) pending ({reason})"]


@pytest.mark.parametrize(
    ("limit", "fix"),
    [
        ("QOSMaxWallDurationPerJobLimit", "a smaller request, or another qos"),
        ("QOSMaxNodePerJobLimit", "a smaller request, or another qos"),
        ("QOSMaxSubmitJobPerUserLimit", "fewer tasks (profile.resources.KIND.tasks) or successors, one stage"),
    ],
)
def test_what_helps_against_a_refusal_depends_on_the_limit(
    fake: Path, request_here: Request, stages: list[Stage], limit: str, fix: str
) -> None:
    """Of a qos with DenyOnLimit, and of one that counts jobs: Slurm's second line is the same for both."""
    tool = fake / "bin" / "sbatch"
    same = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time)"
    tool.write_text(f'#!/bin/sh\necho "sbatch: error: {limit}" >&2\necho "sbatch: error: {same}" >&2\nexit 1\n')
    with pytest.raises(UserError, match=limit) as caught:
        submit_chain(request_here, stages)
    assert fix in str(caught.value)


def test_a_refusal_that_the_check_cannot_explain_does_not_send_to_the_check(
    fake: Path, request_here: Request, stages: list[Stage]
) -> None:
    refusal = "Batch job submission failed: Access denied to requested reservation"
    (fake / "bin" / "sbatch").write_text(f'#!/bin/sh\necho "sbatch: error: {refusal}" >&2\nexit 1\n')
    with pytest.raises(UserError, match=refusal) as caught:
        submit_chain(request_here, stages)
    assert "launch.py check finds no fault" in str(caught.value) and "scontrol show reservation" in str(caught.value)


def test_a_gate_that_cannot_start_now_says_why_its_readers_wait(
    fake: Path, request_here: Request, stages: list[Stage]
) -> None:
    run, submitted = submit_chain(request_here, stages)
    steps = graph.steps(stages, run.settings)
    finish(run, steps[0], steps)
    gate_, reader = (next(job for job in submitted if job["step"] == name and bool(job.get("gate")) is own)
                     for name, own in (("first", True), ("answer-a", False)))  # fmt: skip
    (fake / "queue").write_text(
        f"{gate_['id']}|PENDING|JobHeldUser||N/A|{os.getuid()}|{gate_['name']}\n"
        f"{reader['id']}_0|PENDING|Dependency||N/A|{os.getuid()}|{reader['name']}\n"
    )
    first, answer_a, *_ = status.read(run, stages)
    assert (first.state, answer_a.state, answer_a.waits) == ("done", "queued", [])
    (line,) = first.waits
    assert line.startswith("what reads it waits for its gate: ") and f"scontrol release {gate_['id']}" in line


def test_words_of_sacct_where_a_number_should_be_say_nothing() -> None:
    found = accounting.parse(
        "7|FAILED|x|INVALID|||n1\n7.batch|FAILED|1:INVALID|4|10K|INVALID|n1\n8|NODE_FAIL|1:0|||2.5|n1\n"
    )
    assert (found["7"].seconds, found["7"].signal, found["7"].peak_bytes, found["7"].joules) == (0, 0, 10240, None)
    assert found["8"].joules == 2.5


def test_a_run_on_this_machine_within_an_allocation_is_not_the_allocations_job() -> None:
    """Else `status` would ask Slurm of it, every task would be one attempt, and a requeue would end the session."""
    allocation = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1"}
    assert attempts.job_id(allocation) == "6_1"
    assert attempts.job_id(allocation | {"SUBMITIT_EXECUTOR": "local"}) == ""


@pytest.mark.parametrize(("kind", "seconds"), [("nfs4", 65), ("lustre", 65), ("panfs", 65), ("ext4", 5)])
def test_a_network_file_system_is_given_a_minute_to_show_what_others_wrote(
    tmp_path: Path, kind: str, seconds: float
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")
    assert files.visibility_delay(tmp_path / "runs" / "r", mounts) == seconds


@pytest.fixture
def at_the_first_pause(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, Callable[[], None]], list[float]]:
    """Has something happen once a module that waits for it pauses; gives the pauses."""

    def happens(module: ModuleType, action: Callable[[], None]) -> list[float]:
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 1:
                action()

        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
        return pauses

    return happens


def test_a_gate_waits_for_a_manifest_that_its_node_sees_late(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, at_the_first_pause
):
    run, jobs = submit_chain(request_here, stages)
    own = next(job for job in jobs if job["step"] == "first" and job.get("gate"))
    monkeypatch.setenv("SLURM_JOB_ID", own["id"])
    steps = graph.steps(stages, run.settings)
    pauses = at_the_first_pause(gate, lambda: finish(run, steps[0], steps))
    assert gate.main(run.folder, next((run.folder / "submissions").iterdir())) == 0
    assert len(pauses) == 1


def test_a_task_waits_for_input_that_its_node_sees_late(run: Run, stages: list[Stage], at_the_first_pause) -> None:
    steps = graph.steps(stages, run.settings)
    pauses = at_the_first_pause(worker, lambda: finish(run, steps[0], steps))
    assert worker._unfinished_shards(run, steps[1], steps, [0, 2], patience_s=600) == [0, 2]
    assert len(pauses) == 1
    (run.folder / "first" / "manifest.jsonl").unlink()
    with pytest.raises(UserError, match="what it reads has not finished: first"):
        worker._unfinished_shards(run, steps[1], steps, [0, 2])


def _unknown(*_: object) -> None:
    raise KeyError("no such user")


def test_a_user_without_a_name_on_this_machine_is_not_a_traceback(
    fake: Path, request_here: Request, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pwd, "getpwuid", _unknown)
    results = preflight.check_cluster(request_here.profile)
    assert any("has no name on this machine" in result.message for result in results)


def test_a_user_without_a_home_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(pwd, "getpwuid", _unknown)
    monkeypatch.delenv("HOME")
    words = ["stage=full", "profile=local", "recipe=demo", f"runs={tmp_path}", "run=r", "dry_run=true"]
    assert launch.main(words) == 2
    assert capsys.readouterr().err == (
        "lumen: a folder begins with ~, and this user has no home folder here, or with ~NAME, and nobody has that "
        "name; set HOME, or give whole paths (profile.cache=FOLDER)\n"
    )
    assert launch.main([*words, f"profile.cache={tmp_path}"]) == 0


def test_a_folder_of_a_user_who_is_not_known_is_one_line(capsys: pytest.CaptureFixture):
    assert launch.main(["stage=full", "profile=local", "recipe=demo", "runs=~nobody.here/x", "run=r"]) == 2
    assert "with ~NAME, and nobody has that name" in capsys.readouterr().err
