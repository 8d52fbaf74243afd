"""Groups failures by kind, each with its count, nodes, a log and the likely fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import accounting, full_disk, live, manifest, plan, slurm
from lumen_hpc.cluster.accounting import Usage
from lumen_hpc.cluster.attempts import UNENDED_EVENTS
from lumen_hpc.cluster.stage import Run, Step
from lumen_hpc.config import config_file
from lumen_hpc.files import last_lines

MESSAGE_SAYS = "the message says what to change"
FIXES: Sequence[tuple[str, str]] = (
    (r"^lumen_hpc\.errors\.", MESSAGE_SAYS),  # the last line of a log whose job ended before it could record it
    (
        "File too large",
        "profile.setup: ['ulimit -f unlimited']; Slurm takes the limits of the shell that submits over to the jobs",
    ),
    (full_disk.MESSAGES.pattern, full_disk.FIX),
    (full_disk.READ_ONLY_MESSAGE, full_disk.READ_ONLY_FIX),
    (
        r"out of memory|OutOfMemory|MemoryError|Cannot allocate",
        "more memory: profile.resources.KIND.mem_gb, or a smaller batch",
    ),
    (r"no progress for", "the task hung; see its stacks in the log, then profile.stuck_after_s or train.stuck_after"),
    (r"NCCL|gloo|Connection (refused|reset)|rendezvous", "a node or its network; rerun, bad nodes are left out"),
    (r"marshal data", "bytecode that a full disk cut off, which the same command removes"),
    (
        r"No module named|ImportError",
        "the environment of the jobs, which run the Python that submitted them (pip install '.[gpu]' in the checkout): "
        "profile.modules, profile.setup or the container",
    ),
    (r"Permission denied|Read-only file system", "access rights of the file named; of a cache, profile.scratch"),
    (
        r"a line of the setup|command not found",
        "that line of the profile (`|| true` lets a command fail), or the node's environment",
    ),
    (r"\*\*\* JOB \d+ ON \S+ CANCELLED", "Slurm ended it, or somebody did; the same command goes on"),
    (r"No such file or directory", "that path on the nodes: profile.runs, the container image or Python there"),
    (r"CUDA|device-side|ECC", "the GPU of that node; rerun, bad nodes are left out"),
)


LOCAL_END = (
    "a task ended without a message: the command that ran it was interrupted, or it was killed",
    "run the same command again, which goes on; if it ends so by itself, memory is short",
)
KILLED_END = (
    "a task ended without a message (killed from outside)",
    "memory (mem_gb), its node, or a kill: rerun goes on",
)
STATE_ENDS = {
    "OUT_OF_MEMORY": (
        "a task was killed for exceeding its memory",
        "profile.resources.KIND.mem_gb, or a smaller batch",
    ),
    "TIMEOUT": (
        "a task reached its time limit before it had saved",
        "profile.resources.KIND.time_min, or a longer profile.signal_before_s",
    ),
    "NODE_FAIL": ("a node failed under a task", "rerun goes on, on another node"),
    "PREEMPTED": ("a task was preempted before it had saved", "rerun goes on; a partition that preempts less"),
    "CANCELLED": ("a task was cancelled in mid-work", "rerun goes on"),
}
"""What Slurm's state of a killed task says, with the likely fix."""
CANCELLED_BEFORE_START = "it was cancelled, or the gate that it waited for was"
LOST = "it is not in the queue and left no log, and Slurm tells no end of it: cancelled, or lost when slurmctld crashed"


@dataclass
class FailureKind:
    """Failures whose messages differ in numbers alone."""

    error: str
    shards: set[int] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    count: int = 0
    log: str = ""
    fix: str = ""


def failure_kinds(
    folder: Path,
    missing: Sequence[int],
    live_ids: Collection[str] = (),
    usage: Callable[[list[str]], Mapping[str, Usage] | None] = accounting.usage,
    step_submissions: Mapping[int, str] | None = None,
) -> list[FailureKind]:
    """Failures of shards that are still missing, the most frequent kind first.

    `live_ids` are of jobs that run; `usage` asks Slurm how others ended that recorded nothing. `step_submissions`
    is the last submission of each shard: a failure in an earlier one is past, its cause may be repaired.
    """
    unexplained_shards, submissions = set(missing), step_submissions or {}
    if not unexplained_shards:
        return []
    kinds: dict[str, FailureKind] = {}
    for row in reversed(manifest.read(folder / "failures.jsonl")):
        shards = {
            index for index in unexplained_shards & set(row["shards"]) if _is_current(row, submissions.get(index, ""))
        }
        if not shards and (row["shards"] or not _is_current(row, max(submissions.values(), default=""))):
            continue  # done meanwhile, explained by a later failure, or of an earlier submission
        unexplained_shards = unexplained_shards - shards
        kind = kinds.setdefault(
            _without_numbers(row["error"]), FailureKind(row["error"], fix=fix(row["error"], bool(row.get("final"))))
        )
        kind.shards |= shards
        kind.nodes.add(row["node"])
        kind.count += 1
        kind.log = kind.log or _log(folder, row["job"])
    killed_attempts = [
        row
        for row in unended_attempts(folder)
        if row["job"] not in live_ids and _is_current(row, max(submissions.values(), default=""))
    ]
    usage_by_job = usage([row["job"] for row in killed_attempts if row["job"]]) or {}
    # On a disk that takes nothing a task could not even record its end.
    unwritable_message = full_disk.unwritable_message(folder) if killed_attempts else ""
    for row in killed_attempts:
        if unwritable_message:
            error, fix_text = unwritable_message, fix(unwritable_message)
        else:
            error, fix_text = _explain_end(usage_by_job.get(row["job"])) if row["job"] else LOCAL_END
        kind = kinds.setdefault(error, FailureKind(error, fix=fix_text))
        kind.nodes.add(row["node"])
        kind.count += 1
        kind.log = _log(folder, row["job"])
    return sorted(kinds.values(), key=lambda kind: -kind.count)


def _without_numbers(message: str) -> str:
    """What messages of one kind share."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", message)


def _is_current(row: Mapping[str, Any], submission_name: str) -> bool:
    """Whether a line is of this submission or a later one; one without a name is of none, and counts."""
    return not row.get("chain") or str(row["chain"]) >= submission_name


def unended_attempts(folder: Path) -> list[dict[str, Any]]:
    """Attempts of the newest submission that began, never ended, and were followed by no other of their pack."""
    rows = manifest.read(folder / "attempts.jsonl")
    newest = max((row["chain"] for row in rows), default="")
    last_rows: dict[int, dict[str, Any]] = {row["pack"]: row for row in rows if row["chain"] == newest}
    return [row for row in last_rows.values() if row["event"] in UNENDED_EVENTS]


def missing_gpu_warnings(folder: Path) -> list[str]:
    """What the last attempts of the newest submission say of GPUs that they asked for and did not see, each once."""
    rows = manifest.read(folder / "attempts.jsonl")
    newest = max((row["chain"] for row in rows), default="")
    last_warnings = {
        row["pack"]: row.get("blind") for row in rows if row["chain"] == newest and row["event"] not in UNENDED_EVENTS
    }
    return sorted({text for text in last_warnings.values() if text})


def resubmitted_shards(folder: Path, step_submissions: Mapping[int, str]) -> set[int]:
    """Finished shards that a later submission, the one in `step_submissions`, took on again: their loss is known."""
    rows = manifest.read(folder / "attempts.jsonl")
    submission_by_attempt = {(row["pack"], row["attempt"]): str(row.get("chain", "")) for row in rows}
    lines = manifest.latest(folder)
    submission_by_shard = {
        index: submission_by_attempt.get((line.get("pack"), line.get("attempt")), "") for index, line in lines.items()
    }
    return {
        index
        for index, submission_name in submission_by_shard.items()
        if submission_name and submission_name < step_submissions.get(index, "")
    }


def corruption(run: Run, step: Step, all_steps: list[Step], missing: Sequence[int]) -> list[FailureKind]:
    """Finished shards that are missing only because their files are no longer those of their manifest lines."""
    folder, count = run.folder / step.name, step.stage.shards(run.settings)
    lines, config = manifest.latest(folder), config_file.digest(run.settings, step.stage.settings)
    input_hashes = plan.inputs(run, step, all_steps)
    mismatches: dict[int, str] = {}
    for index in missing:
        line = lines.get(index)
        if line and (line["of"], line["config"], line["inputs"]) == (count, config, input_hashes[index]):
            mismatches[index] = manifest.first_mismatch(folder, line)
    mismatches = {index: name for index, name in mismatches.items() if name}
    if not mismatches:
        return []
    error = (
        f"{folder / next(iter(mismatches.values()))}: not the file that {manifest.NAME} records (corrupt or deleted)"
    )
    fix = f"the same command writes it again: python launch.py stage={step.stage.name} {run.arguments}"
    return [FailureKind(error, set(mismatches), count=len(mismatches), fix=fix)]


def _explain_end(usage: Usage | None) -> tuple[str, str]:
    """How a task ended that recorded nothing, and what would help."""
    if usage and usage.state in STATE_ENDS:
        return STATE_ENDS[usage.state]
    if usage and usage.state == "FAILED" and not usage.signal:
        return "a task failed and could not record why", "read its log; was the disk full? rerun goes on"
    if usage and usage.signal:
        return f"a task was killed by signal {usage.signal}", KILLED_END[1]
    return KILLED_END


def early_failures(
    run: Run,
    step: Step,
    missing: Sequence[int],
    inputs_done: bool,
    usage: Callable[[list[str]], Mapping[str, Usage] | None] = accounting.usage,
) -> list[FailureKind]:
    """Jobs of the newest submission that ended before their work began, by the end of their logs.

    The worker records every attempt; these have a log, or an account of Slurm's, and no attempt. `inputs_done`: where
    neither exists, a job whose inputs are there should have started.
    """
    folder, idle_tasks = run.folder / step.name, _unattempted_tasks(run, step, missing)
    if not idle_tasks:
        return []
    usage_by_job = {  # of a job that a controller forgot in a crash, the account never ends
        name: entry
        for name, entry in (usage([name for name, _ in idle_tasks]) or {}).items()
        if entry.state in slurm.ENDED_STATES
    }
    unwritable_message = full_disk.unwritable_message(folder) if folder.is_dir() else ""
    blocker, gate_log = _find_blocker(run, step) if inputs_done else ("", None)
    kinds: dict[str, FailureKind] = {}
    for name, pack_begun in idle_tasks:
        log = Path(_log(folder, name))
        task_usage = _usage_of(usage_by_job, name)
        if log.is_file():
            ending = _last_line(log) or unwritable_message or "its log is empty"
        elif task_usage and task_usage.node and task_usage.state != "COMPLETED":
            ending = unwritable_message or f"it ended as {task_usage.state} on {task_usage.node} and left no log"
        elif not pack_begun and gate_log:
            ending, log = blocker, gate_log
        elif not pack_begun and blocker and task_usage and task_usage.state == "CANCELLED":
            ending = blocker
        elif not task_usage and inputs_done and not usage_by_job:
            ending = LOST
        else:  # cancelled before it started, as what waits for a failed step is
            continue
        kind = kinds.setdefault(
            _without_numbers(ending),
            FailureKind(f"a job ended before its work began: {ending}", fix=fix(ending), log=str(log)),
        )
        kind.count += 1
        kind.nodes |= {task_usage.node} if task_usage and task_usage.node else set()
        if "left no log" in ending:
            kind.log, kind.fix = "", f"does every node see {folder}? (profile.runs)"
        if ending in (CANCELLED_BEFORE_START, LOST):
            rerun = f"the same command goes on: python launch.py stage=full {run.arguments}"
            kind.log, kind.fix = "", f"{rerun}; if it ends so again: {kind.fix}" if ending == LOST else rerun
    for kind in kinds.values():
        if kind.count > 1 and len(kind.nodes) == 1:  # it is free again at once, and draws the next task
            (node,) = kind.nodes
            kind.fix += f"; where {node} alone is the cause: profile.additional.exclude={node}"
    return sorted(kinds.values(), key=lambda kind: -kind.count)


def _usage_of(usage_by_job: Mapping[str, Usage], name: str) -> Usage | None:
    """The account of a job or a task; tasks that never began share one, as 7_[0-3]."""
    array = name.split("_")[0]
    array_usage = (usage for job, usage in usage_by_job.items() if job.startswith(f"{array}_["))
    return usage_by_job.get(name) or usage_by_job.get(array) or next(array_usage, None)


def _find_blocker(run: Run, step: Step) -> tuple[str, Path | None]:
    """Why a step's jobs did not start though what they read is there, and the log that says so, if one does.

    A gate that succeeds leaves no log. Nothing is said where what they read was submitted again after them.
    """
    last_records: dict[str, dict[str, Any]] = {}
    for record in live.submissions(run.folder):
        last_records |= {job["step"]: record for job in record["jobs"]}
    newest_record = last_records[step.name]
    if any(last_records.get(name, newest_record)["folder"].name > newest_record["folder"].name for name in step.after):
        return "", None
    gates = [job for job in newest_record["jobs"] if job.get("gate") and job["step"] in step.after]
    logs = [(job["step"], Path(_log(run.folder / job["step"], job["id"]))) for job in gates]
    name, log = next(((name, log) for name, log in logs if log.is_file()), ("", None))
    return (f"the gate of {name} failed: {_last_line(log)}", log) if log else (CANCELLED_BEFORE_START, None)


def _unattempted_tasks(run: Run, step: Step, missing: Sequence[int]) -> list[tuple[str, bool]]:
    """Jobs of the newest submission of a step that were for missing shards and recorded no attempt at them.

    With each, whether another link of it did: then this one stood by, and the shards are missing since.
    """
    step_jobs = [
        (record, job) for record in live.submissions(run.folder) if not record.get("cancelled")
        for job in record["jobs"] if job["step"] == step.name and not job.get("gate")
    ]  # fmt: skip
    attempted_jobs = {row["job"] for row in manifest.read(run.folder / step.name / "attempts.jsonl")}
    tasks = [
        (name, pack) for record, job in step_jobs if record["folder"] == step_jobs[-1][0]["folder"]
        for name, pack in zip(slurm.task_ids(job["id"], len(job["packs"])), job["packs"], strict=True)
        if set(record["packs"][step.name][pack]) & set(missing)
    ]  # fmt: skip
    attempted_packs = {pack for name, pack in tasks if name in attempted_jobs}
    return [(name, pack in attempted_packs) for name, pack in tasks if name not in attempted_jobs]


def _last_line(log: Path) -> str:
    """The last line of a log that says something; empty where none does."""
    lines = [line.strip() for line in last_lines(log, 50)]
    lines = [line for line in lines if line and not re.match(r"srun: |slurmstepd[^:]*: .*CANCELLED", line)] or lines
    return lines[-1][:300] if lines else ""


def _log(folder: Path, job: str) -> str:
    return str(folder / "logs" / f"{job}_0_log.out") if job else str(folder / "logs")


def fix(error: str, final: bool = False) -> str:
    """What would likely help."""
    for pattern, text in FIXES:
        if re.search(pattern, error, re.IGNORECASE):
            return text
    return MESSAGE_SAYS if final else "read the log"


def bad_nodes(folder: Path) -> tuple[str, ...]:
    """Nodes on which different shards failed for other reasons than their input, while other nodes finished shards."""
    failed_shards: dict[str, set[int]] = {}
    for row in manifest.read(folder / "failures.jsonl"):
        if not row.get("final"):
            failed_shards.setdefault(row["node"], set()).update(row["shards"])
    good_nodes = {row["node"] for row in manifest.read(folder / manifest.NAME)}
    return tuple(
        sorted(
            node
            for node, shards in failed_shards.items()
            if len(shards) >= 2 and good_nodes - {node} and node not in good_nodes
        )
    )
