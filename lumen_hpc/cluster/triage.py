"""Groups failures by kind, each with its count, nodes, a log and the likely fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import accounting, manifest
from lumen_hpc.cluster.accounting import Usage

FIXES: Sequence[tuple[str, str]] = (
    (
        r"out of memory|OutOfMemory|MemoryError|Cannot allocate",
        "more memory: profile.resources.KIND.mem_gb, or a smaller batch",
    ),
    (r"no progress for", "the task hung; see its stacks in the log, then profile.stuck_after_s or train.stuck_after"),
    (r"No space left|Disk quota", "free space on the run's file system; nothing that was finished is lost"),
    (r"NCCL|gloo|Connection (refused|reset)|rendezvous", "a node or its network; rerun, bad nodes are left out"),
    (r"No module named|ImportError", "the environment of the jobs: profile.modules, profile.setup or the container"),
    (r"Permission denied", "access rights of the file named"),
    (r"CUDA|device-side|ECC", "the GPU of that node; rerun, bad nodes are left out"),
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


@dataclass
class Cluster:
    error: str
    shards: set[int] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    count: int = 0
    log: str = ""
    fix: str = ""


def clusters(
    folder: Path,
    missing: Sequence[int],
    live: Collection[str] = (),
    usage: Callable[[list[str]], Mapping[str, Usage] | None] = accounting.usage,
) -> list[Cluster]:
    """Failures of shards that are still missing, the most frequent kind first.

    `live` are the ids of jobs that run; `usage` asks Slurm how others ended that recorded nothing themselves.
    """
    unexplained = set(missing)
    if not unexplained:
        return []
    found: dict[str, Cluster] = {}
    for row in reversed(manifest.read(folder / "failures.jsonl")):
        shards = unexplained & set(row["shards"])
        if row["shards"] and not shards:  # done meanwhile, or explained by a later failure
            continue
        unexplained = unexplained - shards
        key = re.sub(r"0x[0-9a-f]+|\d+", "#", row["error"])
        kind = found.setdefault(key, Cluster(row["error"], fix=fix(row["error"], bool(row.get("final")))))
        kind.shards |= shards
        kind.nodes.add(row["node"])
        kind.count += 1
        kind.log = kind.log or _log(folder, row["job"])
    killed = [row for row in unended(folder) if row["job"] not in live]
    known = usage([row["job"] for row in killed if row["job"]]) or {}
    for row in killed:
        error, helps = _ending(known.get(row["job"]))
        kind = found.setdefault(error, Cluster(error, fix=helps))
        kind.nodes.add(row["node"])
        kind.count += 1
        kind.log = _log(folder, row["job"])
    return sorted(found.values(), key=lambda kind: -kind.count)


def unended(folder: Path) -> list[dict[str, Any]]:
    """Attempts of the newest submission that began, never ended, and were followed by no other of their pack."""
    rows = manifest.read(folder / "attempts.jsonl")
    newest = max((row["chain"] for row in rows), default="")
    last: dict[int, dict[str, Any]] = {row["pack"]: row for row in rows if row["chain"] == newest}
    return [row for row in last.values() if row["event"] == "began"]


def _ending(usage: Usage | None) -> tuple[str, str]:
    """How a task ended that recorded nothing, and what would help."""
    if usage and usage.state in ENDS:
        return ENDS[usage.state]
    if usage and usage.signal:
        return f"a task was killed by signal {usage.signal}", KILLED[1]
    return KILLED


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
