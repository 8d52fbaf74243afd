"""What one task of a job does on its node: takes a pack, skips finished shards, writes the rest, records failures."""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lumen_hpc import progress
from lumen_hpc.cluster import external_files, graph, manifest, orphans, plan, plan_file, repair, slurm, snapshot
from lumen_hpc.cluster.attempts import Attempts, job_id
from lumen_hpc.cluster.ranks import of_this_machine
from lumen_hpc.cluster.shards import Written, sweep, write_shard
from lumen_hpc.cluster.stage import Interrupted, Pipeline, Ranks, Run, Shard, Stage, Step, Task
from lumen_hpc.config import config_file
from lumen_hpc.errors import UserError
from lumen_hpc.files import visibility_delay
from lumen_hpc.scratch import compile_caches
from lumen_hpc.watchdog import Watchdog

EXIT_FAILED, EXIT_INTERRUPTED = 1, 75
SYNC_INTERVAL_S = 1.0
"""How often finished shards are synced: one sync costs milliseconds, one per shard would cost seconds."""
POLL_INTERVAL_S = 0.5
"""How often a task looks for its input."""


def run_pack(
    pipeline: Pipeline, folder: str, submission: str, step_name: str, pack: int, ranks: Ranks | None = None
) -> str:
    """Runs pack `pack` of step `step_name`: returns a message if all its shards are done, exits non-zero if not.

    `ranks`: which process of a Slurm job this is; None on this machine, where submitit tells.
    """
    orphans.end_with_launcher(Path(folder))
    _configure_logging()
    run, step, all_steps = _open_step(pipeline.stages, Path(folder), Path(submission), step_name)
    run.keep_private()
    if ranks is None:
        submitted = plan_file.read(Path(submission))
    else:
        submitted = plan_file.wait_for(Path(submission), job_id().split("_")[0])
    snapshot.require_submitted(run.folder, submitted["code"])
    shards = submitted["packs"][step_name][pack]
    _use_scratch(run.profile.scratch)
    stop = Stop()
    on_slurm, ranks = ranks is not None, ranks or of_this_machine()
    own_submission = Path(submission) if on_slurm and ranks.first else None  # whose successors this process may cancel
    todo = _unfinished_shards(run, step, all_steps, shards, patience_s=visibility_delay(run.folder))
    if not todo:
        _cancel_successors(own_submission)
        if on_slurm and ranks.world_size == 1:  # the log of a task that found nothing to do
            atexit.register((run.folder / step_name / "logs" / f"{job_id()}_0_log.out").unlink, missing_ok=True)
        return f"{step_name}: all {len(shards)} shards of pack {pack} are done"
    attempts = Attempts(run, step, pack, ranks.rank)
    todo = attempts.shards_within_budget(todo)
    if not todo:
        _cancel_successors(own_submission)
        sys.exit(EXIT_FAILED)
    watchdog = Watchdog(
        run.profile.stuck_after_s, attempts.end_stuck, folder=run.folder / step_name / "heartbeats", job=ranks.job,
        rank=ranks.rank, world_size=ranks.world_size,
    )  # fmt: skip
    task = Task(run, step, ranks, stop.requested, watchdog.beat)
    attempts.record_begin()
    stop.on_request(attempts.record_stop_request)
    failed = 0
    if _inputs_verified(pipeline, task, all_steps, todo, Path(submission), attempts):
        failed = _Writer(task, all_steps, attempts, watchdog).write(todo)
    watchdog.stop()
    unfinished = set(_unfinished_shards(run, step, all_steps, shards)) if ranks.first else set()
    if own_submission is not None and unfinished <= attempts.final_shards():
        _cancel_successors(own_submission)
    if failed:
        attempts.record_end("failed")
        print(
            f"{step_name}: {failed} of {len(todo)} shards failed; see {run.folder / step_name / 'failures.jsonl'}",
            flush=True,
        )
        sys.exit(EXIT_FAILED)
    if unfinished:
        attempts.record_end("interrupted")
        _exit_interrupted(run, step, attempts.job, f"stopped by {stop.reason} with {len(unfinished)} shards left")
    attempts.record_end("done")
    return f"{step_name}: {len(todo)} shards written"


class _TaskLog(logging.Handler):
    """What this package logs, in the task's log: information in `.out`, warnings in `.err`."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            print(record.getMessage(), flush=True)
        elif not logging.getLogger().handlers:  # else those have it already
            print(record.getMessage(), file=sys.stderr, flush=True)


def _configure_logging() -> None:
    """Sends this package's log to the task's log; Python's default shows warnings alone."""
    package = logging.getLogger("lumen_hpc")
    package.setLevel(logging.INFO)
    if not package.handlers:
        package.addHandler(_TaskLog())


def _exit_interrupted(run: Run, step: Step, job: str, reason: str) -> NoReturn:
    """Ends a task with work left, and says what continues it; with `profile.requeue` the same job."""
    continuation = "a successor goes on"
    if not step.stage.successors(run.settings):
        continuation = "nothing goes on by itself"
    elif run.profile.requeue and job:
        continuation = _requeue(run, step.name, job)
    print(f"{step.name}: {reason}; {continuation}", flush=True)
    sys.exit(EXIT_INTERRUPTED)


def _requeue(run: Run, step_name: str, job: str) -> str:
    """Queues this job again; in a container, which has no scontrol, its batch script does (sbatch.REQUEUE), which a
    cancellation ends."""
    if run.profile.container.kind == "none":
        return slurm.requeue(job)
    (run.folder / step_name / "logs" / f"{job}.requeue").touch()
    return "Slurm queues it again, unless it was cancelled"


def _use_scratch(setting: str) -> None:
    """Points temporary files and compile caches at the profile's scratch folder, on every node of the job."""
    if not setting:
        return
    folder = os.environ["LUMEN_SCRATCH"] = os.path.expanduser(os.environ.get("LUMEN_SCRATCH", ""))
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder or "/nowhere"):
            pass
    except OSError as error:
        place = f"{socket.gethostname()}, where it is {folder or '(empty)'}"
        raise UserError(
            f"profile.scratch={setting} cannot be used on {place}: {error.strerror}; name a folder that each node has, "
            "or leave it out"
        ) from None
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    caches = compile_caches(Path(folder))
    for name in ("TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ.setdefault(name, f"{caches}/{name.lower()}")


def _cancel_successors(submission: Path | None) -> None:
    """Cancels this task's own successors, if this node may: nothing is left for them to do.

    Otherwise the successors of an array start, find nothing to do, and have cost their turn in the queue. `submission`:
    None where the task has none, or another rank cancels them.
    """
    if submission is None:
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    current_job = array or os.environ["SLURM_JOB_ID"]
    jobs = plan_file.read(submission)["jobs"]
    own_record = next((job for job in jobs if job["id"] == current_job), None)
    if own_record is None:  # the submitting command is still at it: Slurm's dependencies have to do
        return
    successor_ids = [
        job["id"] for job in jobs
        if (job["step"], job["packs"]) == (own_record["step"], own_record["packs"]) and job["link"] > own_record["link"]
    ]  # fmt: skip
    slurm.cancel_pending([f"{id_}_{task}" if task else id_ for id_ in successor_ids])


def _open_step(stages: Sequence[Stage], folder: Path, submission: Path, step_name: str) -> tuple[Run, Step, list[Step]]:
    settings, profile = config_file.load(submission / "config.yaml")
    all_steps = graph.steps(stages, settings, step_name)
    step = next((step for step in all_steps if step.name == step_name), None)
    if step is None:
        step = Step(next(stage for stage in stages if stage.name == step_name))
    return Run(folder, settings, profile), step, all_steps


def _unfinished_shards(
    run: Run, step: Step, all_steps: list[Step], shards: list[int], patience_s: float = 0.0
) -> list[int]:
    """The shards that are not done, once this node sees what they read: another one may have written it just now."""
    deadline = time.monotonic() + patience_s
    while True:
        input_hashes = plan.inputs(run, step, all_steps)
        if all(input_hashes[index] is not None for index in shards):
            break
        if time.monotonic() > deadline:
            raise UserError(f"stage {step.name}: what it reads has not finished: {', '.join(step.after)}")
        time.sleep(POLL_INTERVAL_S)
    unfinished = set(plan.missing_shards(run, step, all_steps))
    return [index for index in shards if index in unfinished]


def _inputs_verified(
    pipeline: Pipeline, task: Task, all_steps: list[Step], todo: list[int], submission: Path, attempts: Attempts
) -> bool:
    """True once what the shards read is verified; False if asked to stop meanwhile."""
    try:
        attempts.wait_seconds = repair.verify_inputs(pipeline, task, all_steps, todo, submission)
    except Interrupted:
        return False
    except UserError as error:
        attempts.record_failure(todo, error)
        attempts.record_end("failed")
        sys.exit(EXIT_FAILED)
    return True


class _Writer:
    """Writes shards of a step, one after the other, and their lines of the manifest."""

    def __init__(self, task: Task, all_steps: list[Step], attempts: Attempts, watchdog: Watchdog) -> None:
        self._task, self._attempts, self._watchdog = task, attempts, watchdog
        self._count = task.step.stage.shards(task.settings)
        self._read_files = external_files.statuses(task.run, task.step)
        self._inputs = plan.inputs(task.run, task.step, all_steps)
        self._shard_start = self._last_sync = time.monotonic()

    def write(self, todo: list[int]) -> int:
        """The number of shards that failed. A stop request lets the current one finish."""
        task = self._task
        if task.ranks.first:
            sweep(task.folder, [Shard(index, self._count) for index in todo])
        gc.disable()  # what a stage imports stays: to look through half a million objects again and again costs seconds
        try:
            process = importlib.import_module(f"jobs.{task.step.stage.name}").work(task)
        except Exception as error:
            self._attempts.record_failure(todo, error)
            return len(todo)
        finally:
            gc.freeze()
            gc.enable()
        failed = 0
        for index in todo:
            if task.should_stop():
                break
            try:
                self._write(process, Shard(index, self._count))
            except Interrupted:
                break
            except Exception as error:
                self._attempts.record_failure([index], error)
                failed += 1
                if task.ranks.world_size > 1:
                    break  # the other processes wait for this one: Slurm ends them when it exits
        try:
            if (task.folder / manifest.NAME).exists():
                manifest.sync(task.folder)
        except OSError as error:  # some file systems say only now that they are full
            self._attempts.record_failure([], error)
            failed = failed or 1
        return failed

    def _write(self, process: Callable[[Shard], Iterator[dict[str, Any]]], shard: Shard) -> None:
        """Writes one shard; ranks other than the first only take part in its work."""
        task = self._task
        files: list[dict[str, Any]] = []
        rows = _observe_rows(process(shard), task.folder, self._watchdog, files)
        if not task.ranks.first:
            for _ in rows:
                pass
            return
        rows = progress.with_progress(rows, f"{task.step.name} shard {shard.index + 1} of {shard.count}",
                                lambda: task.expected)  # fmt: skip
        written = write_shard(task.folder, shard, rows, task.step.stage.volatile)
        external_files.note(task.folder, self._read_files)
        now = time.monotonic()
        manifest.append(task.folder / manifest.NAME, self._line(shard, written, files, now - self._shard_start))
        if now - self._last_sync > SYNC_INTERVAL_S:
            manifest.sync(task.folder)
            self._last_sync = now
        self._shard_start = now

    def _line(self, shard: Shard, written: Written, files: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        """The manifest line of a shard."""
        task, stage = self._task, self._task.step.stage
        resources = task.run.profile.resources[stage.resources]
        return {
            "shard": shard.index, "of": shard.count, "rows": written.rows, "sha256": written.sha256,
            "content": written.content, "bytes": written.bytes, "mtime_ns": written.mtime_ns, "files": files,
            "inputs": str(self._inputs[shard.index]), "config": config_file.digest(task.settings, stage.settings),
            "code": _snapshot_name(), "seconds": round(seconds, 3),
            "gpu_seconds": round(seconds * resources.gpus * resources.nodes, 3), "node": socket.gethostname(),
            "pack": self._attempts.pack, "attempt": self._attempts.number, "finished": manifest.now(),
        }  # fmt: skip


def _observe_rows(
    rows: Iterable[dict[str, Any]], folder: Path, watchdog: Watchdog, files: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The rows, with the watchdog fed and the files that they record collected; their times spare later hashing."""
    for row in rows:
        watchdog.beat()
        if set(row) >= {"file", "bytes", "sha256"}:
            record = {key: row[key] for key in ("file", "bytes", "sha256")}
            files.append(record | {"mtime_ns": (folder / row["file"]).stat().st_mtime_ns})
        yield row


def _snapshot_name() -> str:
    """The snapshot's name: the hash of the code that runs."""
    return Path(__file__).resolve().parents[2].name


class Stop:
    """USR2 (time limit near) and SIGTERM (preemption, scancel) only set a flag; work looks at it at its boundaries."""

    def __init__(self) -> None:
        self.reason = ""
        self._callback: Callable[[], None] = lambda: None
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if not self.reason:
            self.reason = signal.Signals(number).name
            self._callback()

    def on_request(self, callback: Callable[[], None]) -> None:
        """Has `callback` called when the request comes, and now if it has come."""
        self._callback = callback
        if self.reason:
            callback()

    def requested(self) -> bool:
        return bool(self.reason)
