"""The partitions of the live cluster, as sinfo shows them: limits, nodes, and what a node has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lumen_hpc.cluster import slurm
from lumen_hpc.config.profile import minutes


@dataclass(frozen=True)
class Partition:
    name: str
    default: bool
    nodes: int
    cpus: int
    """Of one node."""
    gpus: int
    """Of one node."""
    minutes: int
    """Time limit [min]."""
    memory_mb: int
    """Of one node [MiB]."""
    state: str
    """up, down (jobs queue and wait), drain or inact (new jobs are refused)."""
    unavailable_nodes: int
    """Nodes that are down, drained or reserved for maintenance."""


def query() -> list[Partition]:
    """A row for each partition and kind of node in it (`-e`: without, the smallest node stands for all)."""
    rows = []
    for line in slurm.ask(*slurm.PARTITIONS_COMMAND).splitlines():
        if line.count("|") != 7:  # the header of a federation's cluster
            continue
        name, nodes, cpus, gres, limit, memory, state, counts = line.split("|")
        rows.append(
            Partition(
                name.rstrip("*"), name.endswith("*"), _parse_count(nodes), _parse_count(cpus),
                sum(int(number) for number in re.findall(r"\bgpu:(?:[^,(]*:)?(\d+)", gres)),
                minutes(limit), _parse_count(memory), state, _parse_count(counts.split("/")[2]),
            )
        )  # fmt: skip
    return rows


def _parse_count(text: str) -> int:
    """A count of sinfo, which shortens thousands (1.2K) and marks the least of several values (64+); 0 for none."""
    match = re.fullmatch(r"([\d.]+)([KM]?)\+?", text)
    return round(float(match[1]) * {"": 1, "K": 1000, "M": 1_000_000}[match[2]]) if match else 0
