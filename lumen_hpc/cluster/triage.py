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

FIXES: Sequence[tuple[str, str]] = (
    (
        "File too large",
        "profile.setup: ['ulimit -f unlimited']; Slurm takes the limits of the shell that submits over to the jobs",
    ),
    (full_disk.MESSAGES.pattern, full_disk.FIX),
    (
        r"out of memory|OutOfMemory|MemoryError|Cannot allocate",
        "more memory: profile.resources.KIND.mem_gb, or a smaller batch",
    ),
    (r"no progress for", "the task hung; see its stacks in the log, then profile.stuck_after_s or train.stuck_after"),
    (r"NCCL|gloo|Connection (refused|reset)|rendezvous", "a node or its network; rerun, bad nodes are left out"),
    (r"marshal data", "bytecode that a full disk cut off, which the same command removes"),
    (r"No module named|ImportError", "the environment of the jobs: profile.modules, profile.setup or the container"),
    (r"Permission denied|Read-only file system", "access rights of the file named; of a cache, profile.scratch"),
    (r"a line of the setup failed|command not found", "that line of the profile, or the node's environment"),
    (r"No such file or directory", "that path on the nodes: profile.runs, the container image or Python there"),
    (r"CUDA|device-side|ECC", "the GPU of that node; rerun, bad nodes are left out"),
)


ENDED_HERE = (
    "a task ended without a message: the command that ran it was interrupted, or it was killed",
    "run the same command again, which goes on; if it ends so by itself, memory is short",
)
KILLED = ("a task ended without a message (killed from outside)", "memory (mem_gb), its node, or a kill: rerun goes on")
ENDS = {
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
CANCELLED_EARLY = "it was cancelled, or the gate that it waited for was"


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
    live: Collection[str] = (),
    usage: Callable[[list[str]], Mapping[str, Usage] | None] = accounting.usage,
    newest: Mapping[int, str] | None = None,
) -> list[FailureKind]:
    """Failures of shards that are still missing, the most frequent kind first.

    `live` are the ids of jobs that run; `usage` asks Slurm how others ended that recorded nothing themselves. `newest`
    is the last submission of each shard: a failure in an earlier one is past, its cause may be repaired.
    """
    unexplained, last = set(missing), newest or {}
    if not unexplained:
        return []
    found: dict[str, FailureKind] = {}
    for row in reversed(manifest.read(folder / "failures.jsonl")):
        shards = {index for index in unexplained & set(row["shards"]) if _is_of(row, last.get(index, ""))}
        if not shards and (row["shards"] or not _is_of(row, max(last.values(), default=""))):
            continue  # done meanwhile, explained by a later failure, or of an earlier submission
        unexplained = unexplained - shards
        key = re.sub(r"0x[0-9a-f]+|\d+", "#", row["error"])
        kind = found.setdefault(key, FailureKind(row["error"], fix=fix(row["error"], bool(row.get("final")))))
        kind.shards |= shards
        kind.nodes.add(row["node"])
        kind.count += 1
        kind.log = kind.log or _log(folder, row["job"])
    killed = [row for row in unended(folder) if row["job"] not in live and _is_of(row, max(last.values(), default=""))]
    known = usage([row["job"] for row in killed if row["job"]]) or {}
    full = full_disk.full(folder) if killed else ""  # so that a task could not even record its end
    for row in killed:
        error, helps = (full, full_disk.FIX) if full else _ending(known.get(row["job"])) if row["job"] else ENDED_HERE
        kind = found.setdefault(error, FailureKind(error, fix=helps))
        kind.nodes.add(row["node"])
        kind.count += 1
        kind.log = _log(folder, row["job"])
    return sorted(found.values(), key=lambda kind: -kind.count)


def _is_of(row: Mapping[str, Any], submission: str) -> bool:
    """Whether a line is of this submission or a later one; one without a name is of none, and counts."""
    return not row.get("chain") or str(row["chain"]) >= submission


def unended(folder: Path) -> list[dict[str, Any]]:
    """Attempts of the newest submission that began, never ended, and were followed by no other of their pack."""
    rows = manifest.read(folder / "attempts.jsonl")
    newest = max((row["chain"] for row in rows), default="")
    last: dict[int, dict[str, Any]] = {row["pack"]: row for row in rows if row["chain"] == newest}
    return [row for row in last.values() if row["event"] in UNENDED_EVENTS]


def blind(folder: Path) -> list[str]:
    """What the last attempts of the newest submission say of GPUs that they asked for and did not see, each once."""
    rows = manifest.read(folder / "attempts.jsonl")
    newest = max((row["chain"] for row in rows), default="")
    last = {
        row["pack"]: row.get("blind") for row in rows if row["chain"] == newest and row["event"] not in UNENDED_EVENTS
    }
    return sorted({text for text in last.values() if text})


def submitted_again(folder: Path, newest: Mapping[int, str]) -> set[int]:
    """Finished shards that a later submission, the `newest` of each, took on again: their loss is known."""
    rows = manifest.read(folder / "attempts.jsonl")
    made_in = {(row["pack"], row["attempt"]): str(row.get("chain", "")) for row in rows}
    lines = manifest.latest(folder)
    made = {index: made_in.get((line.get("pack"), line.get("attempt")), "") for index, line in lines.items()}
    return {index for index, chain in made.items() if chain and chain < newest.get(index, "")}


def corrupt(run: Run, step: Step, graph: list[Step], missing: Sequence[int]) -> list[FailureKind]:
    """Finished shards that are missing only because their files are no longer those of their manifest lines."""
    folder, count = run.folder / step.name, step.stage.shards(run.settings)
    lines, config = manifest.latest(folder), config_file.digest(run.settings, step.stage.settings)
    known = plan.inputs(run, step, graph)
    wrong: dict[int, str] = {}
    for index in missing:
        line = lines.get(index)
        if line and (line["of"], line["config"], line["inputs"]) == (count, config, known[index]):
            wrong[index] = manifest.first_mismatch(folder, line)
    wrong = {index: name for index, name in wrong.items() if name}
    if not wrong:
        return []
    error = f"{folder / next(iter(wrong.values()))}: not the file that {manifest.NAME} records (corrupt or deleted)"
    fix = f"the same command writes it again: python launch.py stage={step.stage.name} {run.arguments}"
    return [FailureKind(error, set(wrong), count=len(wrong), fix=fix)]


def _ending(usage: Usage | None) -> tuple[str, str]:
    """How a task ended that recorded nothing, and what would help."""
    if usage and usage.state in ENDS:
        return ENDS[usage.state]
    if usage and usage.state == "FAILED" and not usage.signal:
        return "a task failed and could not record why", "read its log; was the disk full? rerun goes on"
    if usage and usage.signal:
        return f"a task was killed by signal {usage.signal}", KILLED[1]
    return KILLED


def before_work(
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
    folder, idle = run.folder / step.name, _without_attempt(run, step, missing)
    if not idle:
        return []
    known = usage([name for name, _ in idle]) or {}
    full = full_disk.full(folder) if folder.is_dir() else ""
    barred, gate = _barred(run, step) if inputs_done else ("", None)
    found: dict[str, FailureKind] = {}
    for name, pack_begun in idle:
        log = Path(_log(folder, name))
        account = _account(known, name)
        if log.is_file():
            ending = _last_line(log) or full or "its log is empty"
        elif account and account.node and account.state != "COMPLETED":
            ending = full or f"it ended as {account.state} on {account.node} and left no log"
        elif not pack_begun and gate:
            ending, log = barred, gate
        elif not pack_begun and barred and account and account.state == "CANCELLED":
            ending = barred
        elif not account and inputs_done and not known:
            ending = "it is not in the queue and left no log"
        else:  # cancelled before it started, as what waits for a failed step is
            continue
        kind = found.setdefault(
            ending, FailureKind(f"a job ended before its work began: {ending}", fix=fix(ending), log=str(log))
        )
        kind.count += 1
        kind.nodes |= {account.node} if account and account.node else set()
        if "left no log" in ending:
            kind.fix = f"does every node see {folder}? (profile.runs)"
        if ending == CANCELLED_EARLY:
            kind.log, kind.fix = "", f"the same command goes on: python launch.py stage=full {run.arguments}"
    return sorted(found.values(), key=lambda kind: -kind.count)


def _account(known: Mapping[str, Usage], name: str) -> Usage | None:
    """A job's or a task's account; tasks that never began have one together, 7_[0-3]."""
    array = name.split("_")[0]
    together = (usage for job, usage in known.items() if job.startswith(f"{array}_["))
    return known.get(name) or known.get(array) or next(together, None)


def _barred(run: Run, step: Step) -> tuple[str, Path | None]:
    """Why a step's jobs did not start though what they read is there, and the log that says so, if one does.

    A gate that succeeds leaves no log. Nothing is said where what they read was submitted again after them.
    """
    last: dict[str, dict[str, Any]] = {}
    for record in live.submissions(run.folder):
        last |= {job["step"]: record for job in record["jobs"]}
    newest = last[step.name]
    if any(last.get(name, newest)["folder"].name > newest["folder"].name for name in step.after):
        return "", None
    gates = [job for job in newest["jobs"] if job.get("gate") and job["step"] in step.after]
    logs = [(job["step"], Path(_log(run.folder / job["step"], job["id"]))) for job in gates]
    name, log = next(((name, log) for name, log in logs if log.is_file()), ("", None))
    return (f"the gate of {name} failed: {_last_line(log)}", log) if log else (CANCELLED_EARLY, None)


def _without_attempt(run: Run, step: Step, missing: Sequence[int]) -> list[tuple[str, bool]]:
    """Jobs of the newest submission of a step that were for missing shards and recorded no attempt at them.

    With each, whether another link of it did: then this one stood by, and the shards are missing since.
    """
    submitted = [
        (record, job) for record in live.submissions(run.folder) if not record.get("cancelled")
        for job in record["jobs"] if job["step"] == step.name and not job.get("gate")
    ]  # fmt: skip
    begun = {row["job"] for row in manifest.read(run.folder / step.name / "attempts.jsonl")}
    tasks = [
        (name, pack) for record, job in submitted if record["folder"] == submitted[-1][0]["folder"]
        for name, pack in zip(slurm.task_ids(job["id"], len(job["packs"])), job["packs"], strict=True)
        if set(record["packs"][step.name][pack]) & set(missing)
    ]  # fmt: skip
    packs_begun = {pack for name, pack in tasks if name in begun}
    return [(name, pack in packs_begun) for name, pack in tasks if name not in begun]


def _last_line(log: Path) -> str:
    """The last line of a log that says something; empty where none does."""
    lines = [line.strip() for line in last_lines(log, 50)]
    lines = [line for line in lines if line and not re.match(r"srun: |slurmstepd: .*CANCELLED", line)] or lines
    return lines[-1][:300] if lines else ""


def _log(folder: Path, job: str) -> str:
    return str(folder / "logs" / f"{job}_0_log.out") if job else str(folder / "logs")


def fix(error: str, final: bool = False) -> str:
    """What would likely help."""
    for pattern, text in FIXES:
        if re.search(pattern, error, re.IGNORECASE):
            return text
    return "the message says what to change" if final else "read the log"


def bad_nodes(folder: Path) -> tuple[str, ...]:
    """Nodes on which different shards failed for other reasons than their input, while other nodes finished shards."""
    failed: dict[str, set[int]] = {}
    for row in manifest.read(folder / "failures.jsonl"):
        if not row.get("final"):
            failed.setdefault(row["node"], set()).update(row["shards"])
    good = {row["node"] for row in manifest.read(folder / manifest.NAME)}
    return tuple(
        sorted(node for node, shards in failed.items() if len(shards) >= 2 and good - {node} and node not in good)
    )
