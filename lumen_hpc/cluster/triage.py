"""Failures made readable: alike ones together, with their count, nodes, a log and the likely cure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    gone = set(missing)
    found: dict[str, Cluster] = {}
    for row in manifest.read(folder / "failures.jsonl"):
        shards = gone & set(row["shards"])
        if row["shards"] and not shards:
            continue
        key = re.sub(r"0x[0-9a-f]+|\d+", "#", row["error"])
        kind = found.setdefault(key, Cluster(row["error"], cure=cure(row["error"], bool(row.get("final")))))
        kind.shards |= shards
        kind.nodes.add(row["node"])
        kind.count += 1
        kind.log = str(folder / "logs" / f"{row['job']}_0_log.out") if row["job"] else str(folder / "logs")
    return sorted(found.values(), key=lambda kind: -kind.count) if gone else []


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
