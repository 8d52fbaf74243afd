"""Slurm's accounting of a run's jobs (sacct): how each ended, how long it ran, memory and energy."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from lumen_hpc.cluster import slurm
from lumen_hpc.errors import UserError

FIELDS = ("JobID", "State", "ExitCode", "ElapsedRaw", "MaxRSS", "ConsumedEnergyRaw", "NodeList")
NO_VALUE = 2**60
"""Slurm's own marks for `no value` lie above it."""


@dataclass
class Usage:
    state: str
    """COMPLETED, FAILED, OUT_OF_MEMORY, TIMEOUT, NODE_FAIL, PREEMPTED, CANCELLED, RUNNING, …"""
    signal: int
    """The signal that ended it; 0 if none did."""
    seconds: float
    peak_bytes: int | None = None
    """Largest resident memory of any of its processes, as sampled; None where the site does not gather it."""
    joules: float | None = None
    """Energy of its nodes; None where the site does not measure it."""
    node: str = ""
    """Its nodes; empty if it never started."""


class Accounting:
    """Slurm's accounting as one command asks it: waits at most `patience` seconds for all of its answers together."""

    def __init__(self, patience: float = 15.0) -> None:
        self._left = patience

    def usage(self, jobs: Iterable[str]) -> dict[str, Usage] | None:
        """Usage by job id (123, or 123_4 in an array); None where Slurm keeps no account or does not answer in time.

        After a failure it is not asked again: each step of a status would wait.
        """
        arrays = sorted({job.split("_")[0] for job in jobs if job})
        if not arrays:
            return {}
        if self._left <= 0:
            return None
        began = time.monotonic()
        try:
            words = ("sacct", "-n", "-P", "-j", ",".join(arrays), "-o", ",".join(FIELDS))
            text = slurm.ask(*words, timeout=self._left)
        except UserError:
            self._left = 0.0
            return None
        self._left -= time.monotonic() - began
        return parse(text)


def usage(jobs: Iterable[str]) -> dict[str, Usage] | None:
    """Usage by job id, for a command that asks once and can wait."""
    return Accounting(60).usage(jobs)


def parse(text: str) -> dict[str, Usage]:
    """sacct's lines, a job's own and those of its steps, as one entry a job."""
    usage_by_job: dict[str, Usage] = {}
    for line in text.splitlines():
        if line.count("|") != len(FIELDS) - 1:
            continue
        name, state, code, elapsed, memory, energy, nodes = line.split("|")
        job, _, step = name.partition(".")
        if not step and state:
            usage_by_job[job] = Usage(
                state.split()[0], int(_parse_number(code.partition(":")[2])), _parse_number(elapsed)
            )
            usage_by_job[job].node = "" if nodes == "None assigned" else nodes
        if job not in usage_by_job or step == "extern":
            continue
        entry = usage_by_job[job]
        if peak := _parse_bytes(memory):
            entry.peak_bytes = max(peak, entry.peak_bytes or 0)
        joules = _parse_number(energy)
        if 0 < joules < NO_VALUE:  # the job's own line sums its steps' where Slurm fills it in
            entry.joules = max(joules, entry.joules or 0)
    return usage_by_job


def _parse_number(text: str) -> float:
    """A number of sacct's; 0 where it has none, or a word such as INVALID."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0


def _parse_bytes(text: str) -> int:
    """Slurm's 1234K, 1.5G or plain bytes."""
    size = re.fullmatch(r"([\d.]+)([KMGTP]?)", text)
    return round(float(size[1]) * 1024 ** " KMGTP".index(size[2] or " ")) if size else 0
