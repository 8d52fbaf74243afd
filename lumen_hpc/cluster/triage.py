"""Failures made readable: alike ones together, with their count, nodes, a log and the likely cure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumen_hpc.cluster import manifest

CURES: Sequence[tuple[str, str]] = (
    (
        r"out of memory|OutOfMemory|MemoryError|Cannot allocate",
        "more memory: profile.resources.KIND.mem_gb, or a smaller batch",
    ),
    (r"no progress for", "the task hung; look at its stacks in the log, then profile.stuck_after_s"),
    (r"No space left|Disk quota", "free space on the run's file system; nothing that was finished is lost"),
    (r"NCCL|gloo|Connection (refused|reset)|rendezvous", "a node or its network; rerun, bad nodes are left out"),
    (r"No module named|ImportError", "the environment of the jobs: profile.modules, profile.setup or the container"),
    (r"Permission denied", "access rights of the file named"),
    (r"CUDA|device-side|ECC", "the GPU of that node; rerun, bad nodes are left out"),
)


KILLED = "sacct -j JOB -o State,ExitCode,MaxRSS says why: memory (mem_gb), the node, or scancel; rerun goes on"


@dataclass
class Cluster:
    error: str
    shards: set[int] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    count: int = 0
    log: str = ""
    cure: str = ""


def clusters(folder: Path, missing: Sequence[int]) -> list[Cluster]:
    """Failures of shards that are still missing, the most frequent kind first."""
    gone = unexplained = set(missing)
    found: dict[str, Cluster] = {}
    for row in reversed(manifest.read(folder / "failures.jsonl")):
        shards = unexplained & set(row["shards"])
        if row["shards"] and not shards:  # done meanwhile, or explained by a later failure
            continue
        unexplained = unexplained - shards
        key = re.sub(r"0x[0-9a-f]+|\d+", "#", row["error"])
        kind = found.setdefault(key, Cluster(row["error"], cure=cure(row["error"], bool(row.get("final")))))
        kind.shards |= shards
        kind.nodes.add(row["node"])
        kind.count += 1
        kind.log = kind.log or _log(folder, row["job"])
    if gone:
        for row in _killed(folder):
            kind = found.setdefault("killed", Cluster("a task ended without a word (killed from outside)", cure=KILLED))
            kind.nodes.add(row["node"])
            kind.count += 1
            kind.log = _log(folder, row["job"])
    return sorted(found.values(), key=lambda kind: -kind.count) if gone else []


def _killed(folder: Path) -> list[dict[str, Any]]:
    """Attempts of the newest submission that began, never ended, and were followed by no other of their pack."""
    rows = manifest.read(folder / "attempts.jsonl")
    newest = max((row["chain"] for row in rows), default="")
    last: dict[int, dict[str, Any]] = {row["pack"]: row for row in rows if row["chain"] == newest}
    return [row for row in last.values() if row["event"] == "began"]


def _log(folder: Path, job: str) -> str:
    return str(folder / "logs" / f"{job}_0_log.out") if job else str(folder / "logs")


def cure(error: str, final: bool = False) -> str:
    """What would likely help."""
    for pattern, text in CURES:
        if re.search(pattern, error, re.IGNORECASE):
            return text
    return "the message says what would do" if final else "read the log"


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
