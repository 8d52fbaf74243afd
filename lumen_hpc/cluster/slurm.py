"""Runs Slurm's commands and parses their output: nothing else in the project starts them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from lumen_hpc.errors import UserError

LIVE = {
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "STOPPED",
    "REQUEUE_HOLD",
    "RESIZING",
}


@dataclass(frozen=True)
class Job:
    id: str
    """As submitit names it: 123, or 123_4 in an array."""
    state: str
    reason: str
    node: str = ""
    start: str = ""


def installed() -> bool:
    """True if this machine can submit."""
    return shutil.which("sbatch") is not None


def ask(*words: str, timeout: int = 60) -> str:
    """Runs a Slurm command; UserError with its message if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not on this machine: is this a login node? (profile.executor=local runs here)"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]} did not answer within {timeout} s: is the Slurm controller up?") from None
    if done.returncode:
        raise UserError(f"{' '.join(words[:3])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def queue() -> dict[str, Job]:
    """This user's queued and running jobs, a line each array task, by id."""
    user = os.environ.get("SLURM_LUMEN_USER") or str(os.getuid())
    text = ask("squeue", "-h", "-r", "-u", user, "-o", "%i|%T|%r|%N|%S")
    jobs = (Job(*line.split("|")) for line in text.splitlines() if line.count("|") == 4)
    return {job.id: job for job in jobs if job.state in LIVE}


@dataclass(frozen=True)
class Partition:
    name: str
    default: bool
    nodes: int
    cpus: int
    gpus: int
    minutes: int
    """Time limit [min]."""


def partitions() -> list[Partition]:
    """A row for each partition and kind of node in it."""
    rows = []
    for line in ask("sinfo", "-h", "-o", "%P|%D|%c|%G|%l").splitlines():
        name, nodes, cpus, gres, limit = line.split("|")
        gpus = sum(int(number) for number in re.findall(r"gpu:(?:[^:,(]+:)?(\d+)", gres))
        rows.append(
            Partition(name.rstrip("*"), name.endswith("*"), int(nodes), int(cpus.rstrip("+")), gpus, minutes(limit))
        )
    return rows


def minutes(limit: str) -> int:
    """Slurm's D-HH:MM:SS, HH:MM:SS or MM:SS as minutes; `infinite` as a year."""
    if not re.fullmatch(r"[\d:-]+", limit):
        return 525_600
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, mins = (parts[0], parts[1]) if len(parts) == 3 or days else (0, parts[0])
    return int(days or 0) * 1440 + hours * 60 + mins


def settings() -> dict[str, str]:
    """`scontrol show config` as a mapping."""
    lines = (line.split("=", 1) for line in ask("scontrol", "show", "config").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in lines}


def largest_array() -> int:
    """How many tasks one array may have: MaxArraySize caps the index, and ours start at 0."""
    return int(settings().get("MaxArraySize", "1001"))


def cancel(ids: list[str]) -> None:
    """Cancels jobs; those that have ended meanwhile are no error."""
    if ids:
        subprocess.run(["scancel", "--quiet", *ids], capture_output=True, timeout=60)


def requeue(job: str) -> None:
    """Puts a running job back into the queue, from within it."""
    subprocess.run(["scontrol", "requeue", job], timeout=60)


def expand(job: str, count: int) -> list[str]:
    """The ids of an array's tasks."""
    return [f"{job}_{index}" for index in range(count)] if count > 1 else [job]


def plain(error: Exception) -> str:
    """sbatch's own message in a failed submission."""
    messages = re.findall(r"sbatch: error: (.*)", str(error))
    return " ".join(dict.fromkeys(messages)) or str(error).strip().splitlines()[-1]
