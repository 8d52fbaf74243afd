"""What it costs the file system that every rank of a training imports Python's packages."""

from __future__ import annotations

import itertools
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from lumen_hpc.cluster.ready import CheckResult
from lumen_hpc.config.profile import Profile
from lumen_hpc.files import REMOTE_FILE_SYSTEMS, file_system

OPENS_PER_PROCESS = 10_000
"""Files opened by one process that imports lumen_hpc.training.train (benchmarks/scale.py import)."""
MAX_SECONDS = 60.0
"""Seconds that the processes of a training may keep one metadata server busy before it is worth a warning."""
SAMPLE_SIZE = 300
"""Files that are opened to measure."""


def check(profile: Profile, folder: Path | None = None, mounts: Path = Path("/proc/mounts")) -> Iterator[CheckResult]:
    """Measures the opening of the packages' files where they lie on a shared file system, and warns if it is slow."""
    folder = folder or Path(sysconfig.get_paths()["purelib"])
    kind = file_system(folder, mounts)
    if profile.container.kind != "none" or not kind.startswith(REMOTE_FILE_SYSTEMS):
        return
    files = list(itertools.islice(folder.rglob("*.py"), SAMPLE_SIZE))
    if not files:
        return
    began = time.perf_counter()
    for file in files:
        file.stat()
        with file.open("rb") as stream:
            stream.read(1)
    seconds_per_file = (time.perf_counter() - began) / len(files)
    resources = profile.resources["train"]
    ranks = resources.nodes * max(resources.gpus, 1)
    seconds = seconds_per_file * OPENS_PER_PROCESS * ranks
    message = (
        f"Python's packages lie on {kind} ({folder}), {1000 * seconds_per_file:.2f} ms to open a file: the {ranks} "
        f"processes of a training open {OPENS_PER_PROCESS * ranks:,} files at their start, about {seconds:.0f} s "
        "of one metadata server's time"
    )
    if seconds > MAX_SECONDS:
        fix = "hold the environment in a container image or on the nodes (docs/sites.md, The Python environment)"
        yield CheckResult("warn", message, fix)
    else:
        yield CheckResult("ok", message)
