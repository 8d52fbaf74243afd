"""Failures of a cluster, caused on a real one. Afterwards the outputs must equal an undisturbed run's byte for
byte, and nothing that was done may have been computed again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.slurm import Cluster
from tests.cluster.conftest import ALL, SHARDS, RunOnDisk, Site, assert_whole, submitted


def begin_and_hold(site: Site, name: str, what: str, *words: str) -> RunOnDisk:
    """Submit a run and return once shard `what` (STAGE-SHARD) is held in mid-write."""
    run = site.run(name)
    run.steer(f"hold-{what}")
    site.submit(name, *words)
    site.wait(lambda: what in run.begun(), 180, f"{what} to begin")
    site.wait(lambda: list(run.folder.glob(f"{what.split('-')[0]}/*.tmp")), 60, f"{what} to be half written")
    return run


def where(run: RunOnDisk, what: str) -> tuple[str, int]:
    """Node and pid that last began a shard."""
    _, node, pid = next(entry for entry in reversed(run.reported("begin")) if entry[0] == what)
    return node, pid


SECOND = [f"squares-{shard}" for shard in range(4, 8)]
"""The second shard of each of the four packs (0, 4, 8; 1, 5, 9; …): a task that stops there leaves one."""


def begin_and_hold_all(site: Site, name: str, *words: str) -> RunOnDisk:
    """Submit a run and return once every task of `squares` is held in its second shard."""
    run = site.run(name)
    for what in SECOND:
        run.steer(f"hold-{what}")
    site.submit(name, *words)
    site.wait(lambda: set(SECOND) <= set(run.begun()), 180, "every pack to be at its second shard")
    return run


def release_once_asked(site: Site, run: RunOnDisk) -> None:
    """Wait until every held task has learnt that it should stop, and let them end their shards."""
    site.wait(lambda: len(run.reported("asked")) == len(SECOND), 60, "every task to be asked to stop")
    release(run)


def release(run: RunOnDisk) -> None:
    for hold in run.control.glob("hold-*"):
        hold.unlink()


def test_a_failed_shard_stops_what_depends_on_it_and_a_rerun_does_only_that_shard(
    site: Site, undisturbed: RunOnDisk
) -> None:
    run = site.run("failed")
    fault = run.steer("fail-squares-5")
    site.submit("failed")
    site.wait_until_left("failed")
    assert "squares-5" not in run.ends()
    assert all(f"squares-{shard}" in run.ends() for shard in range(SHARDS) if shard != 5)
    assert "checks-5" not in run.begun() and "total-0" not in run.begun()
    assert "squares-5 fails by order of its test" in site.launch("status", "run=failed", code=1)

    fault.unlink()
    done = set(run.ends())
    tries = run.begun()
    site.submit("failed")
    site.wait_until_left("failed")
    assert_whole(run, undisturbed)
    assert not done & set(run.begun() - tries)


KEEPS_DEAD_JOBS = "profile.kill_on_invalid_dep=false"


def test_a_site_that_keeps_jobs_that_can_never_start_is_swept_by_the_gates(site: Site) -> None:
    run = site.run("swept")
    run.steer("fail-squares-5")
    site.submit("swept", KEEPS_DEAD_JOBS)
    site.wait_until_left("swept", 120)
    assert "squares-4" in run.ends() and "checks-4" not in run.begun()


def test_where_nodes_cannot_cancel_jobs_a_rerun_clears_those_that_can_never_start(
    site: Site, undisturbed: RunOnDisk, tmp_path: Path
) -> None:
    run = site.run("kept")
    fault = run.steer("fail-squares-5")
    (tmp_path / "srun").symlink_to(str(shutil.which("srun")))
    words = (KEEPS_DEAD_JOBS, f"profile.setup=['export PATH={tmp_path}']")
    site.submit("kept", *words)

    def checks_are_stuck() -> bool:
        return any(name == "kept.checks" and "NeverSatisfied" in reason for _, name, _, reason in site.jobs("kept"))

    site.wait(checks_are_stuck, 180, "checks to be stuck")
    assert "stuck" in site.launch("status", "run=kept", code=1)
    stuck = {id_ for id_, *_ in site.jobs("kept")}
    fault.unlink()
    site.submit("kept", *words)
    assert not stuck & {id_ for id_, *_ in site.jobs("kept")}
    site.wait(lambda: "total-0" in run.ends(), 180, "the end of total")
    site.launch("cancel", "run=kept")  # successors that can never start, which nobody removes here
    site.wait_until_left("kept")
    assert_whole(run, undisturbed)


def test_nothing_but_the_profile_decides_what_a_job_gets(site: Site, cluster: Cluster, undisturbed: RunOnDisk) -> None:
    inherited = {
        "SBATCH_ACCOUNT": "nobody", "SBATCH_PARTITION": "nowhere", "SBATCH_TIMELIMIT": "0:01", "SBATCH_EXPORT": "NONE",
        "SBATCH_JOB_NAME": "mine", "SLURM_EXPORT_ENV": "NONE", "SLURM_GPU_BIND": "single:1", "SQUEUE_STATES": "RUNNING",
        "SBATCH_GRES": "gpu:h100:99", "SBATCH_ARRAY_INX": "0-99", "SBATCH_DEPENDENCY": "afterok:1",
        "SBATCH_NO_REQUEUE": "1", "GOMP_CPU_AFFINITY": "0", "OMP_PROC_BIND": "true", "RANK": "5", "WORLD_SIZE": "9",
        "PMI_RANK": "5", "OMPI_COMM_WORLD_RANK": "5", "POSIXLY_CORRECT": "1", "SHELLOPTS": "braceexpand:errexit",
        "BASH_FUNC_exec%%": "() {  echo stolen; }", "BASH_FUNC_export%%": "() {  echo stolen; }",
    }  # fmt: skip
    cluster_with_them = copy(cluster)
    cluster_with_them.environment = cluster.environment | inherited
    within = replace(site, cluster=cluster_with_them, prefix=("srun", "-p", "cpu", "-n1", "-c2", "--export=ALL"))
    output = within.submit("inherited")
    assert "decides: SBATCH_ACCOUNT, SBATCH_ARRAY_INX, SBATCH_DEPENDENCY, SBATCH_EXPORT" in output
    assert "its variables are not passed to the new jobs" in output
    assert all(name.startswith("inherited.") for _, name, *_ in site.jobs("inherited"))
    site.wait_until_left("inherited")
    assert_whole(site.run("inherited"), undisturbed)


def test_a_setup_line_that_fails_stops_the_job_and_is_named(site: Site) -> None:
    wrong = "profile.setup=['source /no/such/file  # a comment']"
    site.submit("unset", "profile.modules=[cuda/12.8]", wrong, "profile.resources.cpu.successors=0")
    site.wait_until_left("unset")
    (log,) = (site.run("unset").folder / "numbers" / "logs").glob("*.out")
    assert "a line of the setup failed (exit 127): profile.modules: module load cuda/12.8" in log.read_text()
    shown = site.launch("status", "run=unset", code=1)
    assert "a job ended before its work began" in shown and "module load cuda/12.8" in shown and str(log) in shown
    site.submit("unset", wrong, "profile.resources.cpu.successors=0")
    site.wait_until_left("unset")
    log = max((site.run("unset").folder / "numbers" / "logs").glob("*.out"), key=lambda path: path.stat().st_mtime)
    assert "profile.setup: source /no/such/file" in log.read_text()
    assert site.run("unset").begun() == Counter()


def test_an_edit_after_submission_does_not_reach_the_jobs(
    checkout: Path, cluster: Cluster, undisturbed: RunOnDisk, tmp_path: Path
) -> None:
    own = shutil.copytree(checkout, tmp_path / "checkout")
    site = Site(own, cluster, tmp_path / "runs")
    run = begin_and_hold(site, "edited", "squares-5")
    for name in ("total", "checks"):
        (own / "jobs" / f"{name}.py").write_text("raise RuntimeError('edited')\n")
    release(run)
    site.wait_until_left("edited")
    assert_whole(run, undisturbed)


def test_scratch_is_where_temporary_files_go(site: Site, tmp_path: Path) -> None:
    site.submit("scratch", f"profile.scratch={tmp_path}/$SLURM_JOB_ID", stage="numbers")
    site.wait_until_left("scratch")
    assert {path.name for path in tmp_path.iterdir()} == {
        job["id"] for job in submitted(site.run("scratch")) if not job["link"] and not job.get("gate")
    }


def test_kill_9_of_a_task(site: Site, undisturbed: RunOnDisk) -> None:
    run = begin_and_hold(site, "killed", "squares-5")
    os.kill(where(run, "squares-5")[1], signal.SIGKILL)
    release(run)
    site.wait_until_left("killed")
    assert_whole(run, undisturbed)


def test_scancel_of_a_task_in_mid_write(site: Site, cluster: Cluster, undisturbed: RunOnDisk) -> None:
    run = begin_and_hold(site, "scancelled", "squares-5", "profile.crashes=0")  # it was asked before it was killed
    for task in site.running("scancelled", "squares"):
        cluster.run("scancel", task)
    site.wait(lambda: run.begun()["squares-5"] == 2, 180, "a successor to take squares-5 up")
    release(run)
    site.wait_until_left("scancelled")
    assert_whole(run, undisturbed)


def test_cancel_ends_the_whole_chain_and_a_rerun_goes_on(site: Site, undisturbed: RunOnDisk) -> None:
    run = begin_and_hold(site, "cancelled", "squares-5")
    site.launch("cancel", "run=cancelled")
    site.wait_until_left("cancelled", 60)
    assert run.reported("end", "total") == []
    ending = "a task was cancelled in mid-work"  # from sacct: the task itself recorded nothing
    site.wait(lambda: ending in site.launch("status", "run=cancelled", code=1), 60, "Slurm's account of it")
    release(run)
    site.submit("cancelled")
    site.wait_until_left("cancelled")
    assert_whole(run, undisturbed)


def test_preemption(site: Site, cluster: Cluster, undisturbed: RunOnDisk) -> None:
    run = begin_and_hold_all(site, "preempted", "profile.resources.gpu.partition=preempt")
    cluster.run("sbatch", "-p", "h100", "-N3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    release_once_asked(site, run)
    site.wait_until_left("preempted")
    assert_whole(run, undisturbed)
    assert run.begun() == run.ends(), "a preempted task should finish the shard it is at"


def test_a_site_that_requeues_interrupted_tasks_instead_of_queueing_successors(
    site: Site, cluster: Cluster, undisturbed: RunOnDisk
) -> None:
    run = begin_and_hold_all(site, "requeued", "profile.requeue=true")
    tasks = site.running("requeued", "squares")
    for task in tasks:
        cluster.run("scancel", "--batch", "--signal=USR2", task)
    release_once_asked(site, run)
    site.wait(lambda: run.events("squares").count("interrupted") == len(tasks), 60, "every task to be interrupted")
    site.wait(lambda: all(state == "PENDING" for *_, state, _ in site.jobs("requeued")), 60, "the tasks to be requeued")
    for task in tasks:
        # Slurm waits two minutes, since nodes refuse a job that comes back in the second in which they ended it.
        cluster.run("scontrol", "update", f"JobId={task}", "StartTime=now+5")
    site.wait_until_left("requeued")
    assert_whole(run, undisturbed)
    assert run.begun() == run.ends(), "a task asked to stop should finish its current shard"


def test_a_cancelled_run_is_not_requeued_by_its_own_tasks(site: Site) -> None:
    run = begin_and_hold_all(site, "recalled", "profile.requeue=true")
    site.launch("cancel", "run=recalled")
    site.wait(lambda: run.reported("asked"), 60, "a task to be asked to stop")
    release(run)  # Slurm leaves them KillWait, five seconds
    site.wait(lambda: not site.jobs("recalled"), 20, "the queue to be empty")  # a requeued one stays longer
    logs = "".join(path.read_text() for path in run.folder.glob("squares/logs/*"))
    assert logs.count("it was cancelled, and nothing goes on by itself") == run.events("squares").count("interrupted")


INSIDE = """\
#!/bin/sh
# Stands in for apptainer: `exec --nv IMAGE python …` in a world without Slurm's commands.
shift 3
shift
PATH=/nowhere exec {python} "$@"
"""


def test_a_container_without_scontrol_is_requeued_all_the_same(
    site: Site, cluster: Cluster, undisturbed: RunOnDisk, tmp_path: Path
) -> None:
    (tmp_path / "apptainer").write_text(INSIDE.format(python=sys.executable))
    (tmp_path / "apptainer").chmod(0o755)
    (tmp_path / "x.sif").touch()
    container = f"profile.container={{kind: apptainer, image: {tmp_path / 'x.sif'}}}"
    words = ("profile.requeue=true", container, f"profile.setup=['export PATH={tmp_path}:$PATH']")
    run = begin_and_hold_all(site, "contained", *words)
    tasks = site.running("contained", "squares")
    for task in tasks:
        cluster.run("scancel", "--signal=USR2", task)
    release_once_asked(site, run)
    site.wait(lambda: run.events("squares").count("interrupted") == len(tasks), 60, "every task to be interrupted")
    site.wait(lambda: not site.running("contained", "squares"), 60, "the tasks to end")
    assert {id_ for id_, name, *_ in site.jobs("contained") if name == "contained.squares"} == set(tasks)
    for task in tasks:
        cluster.run("scontrol", "update", f"JobId={task}", "StartTime=now+5")
    site.wait_until_left("contained")
    assert_whole(run, undisturbed)
    assert list(run.folder.glob("*/logs/*.requeue")) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], check=True)
    try:
        output = replace(site, runs=disk).launch("stage=full", "run=full", code=2)
        assert output.strip().splitlines()[-1] == (
            f"lumen: {disk / 'full'}: No space left on device; free some space or choose runs=FOLDER"
        )
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
    assert site.jobs("full") == []


def test_a_real_time_limit(site: Site, undisturbed: RunOnDisk) -> None:
    # Slurm looks at limits twice a minute and signals up to 30 s early: between 60 and 90 s after the start here.
    run = begin_and_hold_all(site, "limit", "profile.resources.gpu.time_min=2", "profile.signal_before_s=30")
    release_once_asked(site, run)
    site.wait(lambda: "interrupted" in run.events("squares"), 60, "a pack to be interrupted")
    site.wait_until_left("limit")
    assert_whole(run, undisturbed)
    assert run.begun() == run.ends(), "a task asked to stop should finish its current shard"
    assert len({pid for _, _, pid in run.reported("begin", "squares")}) > 4, "no successor went on"


def test_shards_corrupted_and_deleted_afterwards(site: Site, undisturbed: RunOnDisk) -> None:
    site.submit("rotten")
    site.wait_until_left("rotten")
    run = site.run("rotten")
    corrupted = run.folder / "squares" / f"shard-00003-of-{SHARDS:05d}.jsonl"
    content = corrupted.read_bytes()
    corrupted.write_bytes(content.replace(b"1", b"7", 1))
    (run.folder / "checks" / f"shard-00007-of-{SHARDS:05d}.jsonl").unlink()
    site.submit("rotten")
    site.wait_until_left("rotten")
    assert_whole(run, undisturbed, again=Counter(["squares-3", "checks-7"]))


def test_a_shard_corrupted_during_a_run_is_written_again_at_its_readers_request(
    site: Site, undisturbed: RunOnDisk
) -> None:
    run = begin_and_hold(site, "rotting", "squares-0", "profile.throttle=1")  # the other packs begin after this one
    (corrupted,) = (run.folder / "numbers").glob("shard-*")
    content = corrupted.read_bytes()
    corrupted.write_bytes(content.replace(b"1", b"7", 1))
    release(run)
    site.wait_until_left("rotting")
    assert_whole(run, undisturbed, again=Counter(["numbers-0"]))
    assert {path.name for path in (run.folder / "submissions").iterdir()} == {"0001", "0002"}
    assert f"{corrupted}: not the file" in "".join(
        log.read_text() for log in (run.folder / "squares" / "logs").glob("*.out")
    )
    before = run.begun()
    site.submit("rotting")
    assert site.jobs("rotting") == [] and run.begun() == before


@pytest.fixture
def site_of_its_own(can_run_slurm: None, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Slurm 22.05 never gives back the GPUs of tasks that end while its controller is away: later tests need theirs."""
    cluster = Cluster(tmp_path_factory.mktemp("own")).up()
    yield Site(checkout, cluster, tmp_path_factory.mktemp("own-runs"))
    cluster.down()


def test_slurmctld_restarted_in_between(site_of_its_own: Site, undisturbed: RunOnDisk) -> None:
    run = begin_and_hold(site_of_its_own, "restarted", "squares-5")
    # Each task that runs meanwhile costs its node GPUs for good: only one may, or too few nodes are left for `total`.
    others = ALL - {"squares-5", "squares-9", "checks-1", "checks-5", "checks-9", "total-0"}

    def alone() -> bool:
        begun = [name for _, name, state, _ in site_of_its_own.jobs("restarted") if state != "PENDING"]
        return others <= set(run.ends()) and begun == ["restarted.squares"]

    site_of_its_own.wait(alone, 180, "all that does not wait for squares-5 to end")
    site_of_its_own.cluster.restart_controller()
    release(run)
    site_of_its_own.wait_until_left("restarted")
    assert_whole(run, undisturbed)
    assert run.begun() == run.ends()


def test_a_task_that_makes_no_progress_ends_itself_and_its_successor_goes_on(
    site: Site, undisturbed: RunOnDisk
) -> None:
    run = begin_and_hold(site, "stuck", "squares-5", "profile.stuck_after_s=15")
    site.wait(lambda: run.begun()["squares-5"] == 2, 180, "a successor to take squares-5 up")
    release(run)
    site.wait_until_left("stuck")
    assert_whole(run, undisturbed)


def test_a_node_on_which_different_shards_fail_is_left_out(site: Site, undisturbed: RunOnDisk) -> None:
    run = site.run("sick")
    fault = run.steer("fail-squares-on-n2")
    site.submit("sick", "profile.resources.gpu.successors=0", "profile.resources.gpu.gpus=4")
    site.wait_until_left("sick")
    assert "n2" not in {node for _, node, _ in run.reported("end", "squares")}
    assert len(run.reported("begin", "squares")) > len(run.reported("end", "squares")), "n2 got nothing to spoil"
    site.submit("sick")
    site.wait_until_left("sick")
    assert fault.exists()
    assert_whole(run, undisturbed)
