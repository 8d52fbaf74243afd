"""The attempts at a pack: records each beginning, end and failure, and keeps the budget of crashes.

The lines are in `attempts.jsonl` and `failures.jsonl` of the step's folder.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from lumen_hpc.cluster import full_disk, manifest, redaction
from lumen_hpc.cluster.stage import Run, Step
from lumen_hpc.errors import UserError

EXIT_STUCK = 76
UNENDED_EVENTS = ("began", "asked")
"""Events of an attempt that has not ended: it began, or it was asked to stop."""


class Attempts:
    """The history of one pack: lines of `attempts.jsonl` and `failures.jsonl` in the step's folder."""

    def __init__(self, run: Run, step: Step, pack: int, rank: int) -> None:
        self.folder, self.profile, self.pack = run.folder / step.name, run.profile, pack
        self.rank, self.restricted = rank, run.restricted
        self.job = job_id()
        earlier_rows = [row for row in manifest.read(self.folder / "attempts.jsonl") if self._is_earlier(row)]
        self.number = 1 + sum(1 for row in earlier_rows if row["event"] == "began")
        self.earlier_rows = earlier_rows
        resources = run.profile.resources[step.stage.resources]
        self.requested_resources = {
            "cpus": resources.cpus * resources.tasks_per_node * resources.nodes,
            "gpus": resources.gpus * resources.nodes,
        }
        self.wait_seconds = 0.0
        """Seconds spent waiting for corrupt input to be written again."""
        self._is_over = False

    def _is_earlier(self, row: dict[str, Any]) -> bool:
        """Whether a line is of an earlier attempt at this pack: another rank of this one may have written already."""
        return row["pack"] == self.pack and row.get("try") != _try_id()

    def shards_within_budget(self, todo: list[int]) -> list[int]:
        """The shards worth another try: none once this submission has spent its budget of crashes or preemptions.

        The answer is the same for each rank, however late it asks. A task that was killed after a request to stop,
        because it could not save in time, is no crash.
        """
        chain_rows = [row for row in self.earlier_rows if row["chain"] == _submission_name()]
        last_events = {row["attempt"]: row["event"] for row in chain_rows if row["event"] != "began"}
        outcomes = [last_events.get(row["attempt"], "killed") for row in chain_rows if row["event"] == "began"]
        crashes = sum(outcome in ("failed", "stuck", "killed") for outcome in outcomes)
        stops = sum(outcome in ("interrupted", "asked") for outcome in outcomes)
        if crashes > self.profile.crashes or stops > self.profile.preemptions:
            print(f"pack {self.pack}: {crashes} crashes and {stops} interruptions; the budget is "
                  f"{self.profile.crashes} and {self.profile.preemptions}", flush=True)  # fmt: skip
            return []
        final_shards = self.final_shards(before=True)
        if final_shards & set(todo):
            print("an input error does not go away by trying again; see failures.jsonl", flush=True)
        return [index for index in todo if index not in final_shards]

    def final_shards(self, before: bool = False) -> set[int]:
        """Shards of this pack that failed for their input in this chain; only in earlier attempts if `before`."""
        rows = [row for row in manifest.read(self.folder / "failures.jsonl") if row["chain"] == _submission_name()]
        return {
            index for row in rows if row.get("final") and row["pack"] == self.pack
            and (not before or self._is_earlier(row)) for index in row["shards"]
        }  # fmt: skip

    def record_begin(self) -> None:
        self._record("began", **self.requested_resources)

    def record_stop_request(self) -> None:
        """Records that the attempt was asked to stop; called from within a signal's handler."""
        if not self._is_over:
            self._record("asked")

    def record_end(self, event: str) -> None:
        self._is_over = True
        details: dict[str, Any] = {"waited": round(self.wait_seconds, 3)} if self.wait_seconds else {}
        # Last, since the question could start CUDA before the work forks; not if stuck, since the driver may hang.
        if event != "stuck" and (warning := self._missing_gpu_warning()):
            print(f"pack {self.pack}: {warning}", file=sys.stderr, flush=True)
            details["blind"] = warning
        self._record(event, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, **details)

    def _missing_gpu_warning(self) -> str:
        """A warning where a task has GPUs and the torch that it loaded sees none; else empty.

        An environment whose torch does not fit the node's driver computes on the CPU, right and for days.
        """
        torch = sys.modules.get("torch")
        if not self.requested_resources["gpus"] or torch is None or torch.cuda.is_available():
            return ""
        return f"it asks for GPUs, and torch {torch.__version__} sees none on {socket.gethostname()}"

    def record_failure(self, shards: list[int], error: Exception) -> None:
        """Records a failure with its traceback; the log has it too.

        With restricted data, only a UserError keeps its message, which by rule carries ids and no text of a record; of
        any other error, such as a KeyError by a text, the type and the places in the code remain.
        """
        message, text = redaction.describe(error, self.restricted)
        if full_disk_message := full_disk.explain(error, self.folder):
            message, text = full_disk_message, f"{text}{full_disk_message}\n"
        print(text, file=sys.stderr, flush=True)
        row = {
            "shards": shards, "pack": self.pack, "attempt": self.number, "chain": _submission_name(), "job": self.job,
            "try": _try_id(), "node": socket.gethostname(), "error": message[:600],
            "final": isinstance(error, UserError), "traceback": text[-4000:], "at": manifest.now(),
        }  # fmt: skip
        self._append("failures.jsonl", row)

    def end_stuck(self, reason: str) -> None:
        """Ends the process of a task that makes no progress; its successor may try again."""
        self.record_failure([], TimeoutError(reason))
        self.record_end("stuck")
        os._exit(EXIT_STUCK)

    def _record(self, event: str, **more: Any) -> None:
        if self.rank != 0:
            return
        row = {
            "pack": self.pack, "attempt": self.number, "event": event, "chain": _submission_name(), "job": self.job,
            "try": _try_id(), "node": socket.gethostname(), "at": manifest.now(), "time": round(time.time(), 3), **more,
        }  # fmt: skip
        self._append("attempts.jsonl", row)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        """Appends a line of the history; on a full disk, where `status` finds the reason itself, the log has to do."""
        try:
            manifest.append(self.folder / name, row)
        except OSError as error:
            print(f"{name}: {full_disk.explain(error, self.folder) or error}", file=sys.stderr, flush=True)


def job_id(environment: Mapping[str, str] = os.environ) -> str:
    """This job as Slurm's logs name it: 123, or 123_4 in an array; empty for a run on this machine.

    Such a run may be within an allocation, whose job is none of the run's.
    """
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        return ""
    array, index = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array else environment.get("SLURM_JOB_ID", "")


def _try_id() -> str:
    """One start of a job, the same for all its ranks: a requeued job keeps its id."""
    return f"{job_id() or os.environ.get('SUBMITIT_LOCAL_JOB_ID', '')}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _submission_name() -> str:
    """The submission that this job belongs to: budgets count within it."""
    return os.environ.get("LUMEN_SUBMISSION", "")
