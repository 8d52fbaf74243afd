"""The contenders of `slurm_shards` that are not ours: datatrove's SlurmPipelineExecutor and plain submitit.

Both get their documented defaults. Where datatrove offers packing (`tasks_per_job`), it is measured too, with a pack
size chosen by hand for this cluster. What a peer cannot do it has no method for. Submissions run as a user's script
does, in a process of their own:

    python -m benchmarks.slurm_peers datatrove FOLDER SHARDS PACKS     (PACKS 0: one shard a task)
    python -m benchmarks.slurm_peers submitit FOLDER SHARDS
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.slurm_trivial import DatatroveStep, RestartableWork, WorkWithTime, write
from sandbox.usage import explain

ROOT = Path(__file__).resolve().parent.parent
PARTITION, GPU_PARTITION = "cpu", "h100"


def time_call(act: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def slurm(*command: str) -> str:
    """The output of a Slurm command."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_until(reached: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not there after {seconds} s")
        time.sleep(0.01)


def count(folder: Path) -> int:
    """How many finished shards lie in the folder."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.name.startswith("shard-") and entry.name.endswith(".jsonl") for entry in entries)


def files_below(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def start_times(times: Path) -> list[float]:
    """When the restarted job began, a time each [s since 1970]."""
    return [float(line) for line in times.read_text().splitlines()] if times.exists() else []


def script(*words: object) -> Callable[[], object]:
    """This module's command line, as a call."""
    command = [sys.executable, "-m", "benchmarks.slurm_peers", *map(str, words)]
    return lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


class Datatrove:
    """`packs` is 0 for one shard a task, its default."""

    def __init__(self, folder: Path, packs: int = 0):
        self.folder = folder / str(packs)
        self.packs = packs
        self.name = f"datatrove, {packs} packs by hand" if packs else "datatrove"

    def executor(self, shards: int, step: object = None) -> Any:
        from datatrove.executor import SlurmPipelineExecutor

        place = self.folder / str(shards)
        return SlurmPipelineExecutor(
            pipeline=[step or DatatroveStep(str(place / "out"))], tasks=shards, time="00:10:00", partition=PARTITION,
            mem_per_cpu_gb=1, logging_dir=str(place / "logs"), job_name=f"dt{shards}",
            tasks_per_job=-(-shards // self.packs) if self.packs else 1,
            env_command=f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}")  # fmt: skip

    def shards(self, shards: int, limit_s: float) -> tuple[float, float]:
        """Seconds to submit, and until the last shard is there."""
        out = self.folder / str(shards) / "out"
        out.mkdir(parents=True)
        start = time.perf_counter()
        submission = time_call(self._script(shards))
        wait_until(lambda: count(out) == shards, limit_s, f"{self.name}, {shards} shards")
        return submission, time.perf_counter() - start

    def bookkeeping(self, shards: int) -> int:
        """Files beside the outputs: logs, completions, statistics, pickles."""
        return files_below(self.folder / str(shards) / "logs")

    def rerun(self, shards: int) -> float:
        completions = self.folder / str(shards) / "logs" / "completions"
        wait_until(lambda: len(os.listdir(completions)) == shards, 60, "datatrove's completions")
        return time_call(self._script(shards))

    def missing(self, shards: int, absent: set[int]) -> float:
        executor = self.executor(shards)
        completions = self.folder / str(shards) / "logs" / "completions"
        completions.mkdir(parents=True)
        for rank in set(range(shards)) - absent:
            (completions / f"{rank:05d}").touch()
        found: list[int] = []
        seconds = time_call(lambda: found.extend(executor.get_incomplete_ranks()))
        assert set(found) == absent
        return seconds

    def restart(self, limit_s: float) -> float:
        """Seconds from the interruption that it documents for its users (USR1) until the work goes on."""
        times = self.folder / "restart.txt"
        executor = self.executor(1, RestartableWork(str(times)))
        executor.run()
        wait_until(lambda: len(start_times(times)) == 1, 60, "datatrove's first start")
        interrupted = time.time()
        slurm("scancel", "--signal=USR1", str(executor.job_id))
        wait_until(lambda: len(start_times(times)) == 2, limit_s, "datatrove's requeued job")
        return start_times(times)[1] - interrupted

    def chained(self, times: Path) -> dict[str, bool]:
        """Two tasks and one that waits for them by `depends`, a GPU each; their jobs, all of which work."""
        from datatrove.executor import SlurmPipelineExecutor

        def executor(name: str, tasks: int, seconds: float, **more: Any) -> Any:
            return SlurmPipelineExecutor(
                pipeline=[WorkWithTime(str(times), seconds)], tasks=tasks, time="00:10:00", partition=GPU_PARTITION,
                mem_per_cpu_gb=1, logging_dir=str(self.folder / name), job_name=name, sbatch_args={"gpus-per-node": 1},
                env_command=f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}", **more)  # fmt: skip

        first = executor("first", 2, 1.0)
        second = executor("second", 1, 0.0, depends=first)
        second.run()
        return {str(first.job_id): True, str(second.job_id): True}

    def _script(self, shards: int) -> Callable[[], object]:
        return script("datatrove", self.folder.parent, shards, self.packs)


class Submitit:
    """`map_array` of an AutoExecutor with its defaults but for the number of tasks at once."""

    name = "submitit"

    def __init__(self, folder: Path):
        self.folder = folder

    def executor(self, name: str) -> Any:
        import submitit

        os.environ["PYTHONPATH"] = str(ROOT)  # tasks inherit it
        executor = submitit.AutoExecutor(folder=self.folder / name / "logs", cluster="slurm")
        executor.update_parameters(slurm_partition=PARTITION, timeout_min=10, mem_gb=1, cpus_per_task=1,
                                   slurm_array_parallelism=1000, name=name)  # fmt: skip
        return executor

    def submit(self, shards: int) -> None:
        out = str(self.folder / str(shards) / "out")
        self.executor(str(shards)).map_array(write, [out] * shards, range(shards))

    def shards(self, shards: int, limit_s: float) -> tuple[float, float]:
        out = self.folder / str(shards) / "out"
        out.mkdir(parents=True)
        start = time.perf_counter()
        submission = time_call(script("submitit", self.folder, shards))
        wait_until(lambda: count(out) == shards, limit_s, f"submitit, {shards} shards")
        return submission, time.perf_counter() - start

    def submission(self, shards: int) -> float:
        """Submission alone: cancelled at once, so that the minutes it would run need not pass."""
        seconds = time_call(script("submitit", self.folder / "submission", shards))
        slurm("scancel", *slurm("squeue", "--noheader", "--format=%A").split())
        return seconds

    def bookkeeping(self, shards: int) -> int:
        return files_below(self.folder / str(shards) / "logs")

    def chained(self, times: Path) -> dict[str, bool]:
        """Two tasks and one that waits for them by afterok, a GPU each; their jobs, all of which work."""
        first = self.executor("first")
        first.update_parameters(slurm_partition=GPU_PARTITION, slurm_gpus_per_node=1)
        job = first.map_array(WorkWithTime(str(times), 1.0), [0, 1])[0].job_id.split("_")[0]
        second = self.executor("second")
        second.update_parameters(slurm_partition=GPU_PARTITION, slurm_gpus_per_node=1,
                                 slurm_additional_parameters={"dependency": f"afterok:{job}"})  # fmt: skip
        return {job: True, second.submit(WorkWithTime(str(times), 0.0), 0).job_id: True}

    def restart(self, limit_s: float) -> float:
        times = self.folder / "restart.txt"
        job = self.executor("restart").submit(RestartableWork(str(times)))
        wait_until(lambda: len(start_times(times)) == 1, 60, "submitit's first start")
        interrupted = time.time()
        with contextlib.redirect_stdout(None):
            job._interrupt(timeout=True)
        wait_until(lambda: len(start_times(times)) == 2, limit_s, "submitit's requeued job")
        return start_times(times)[1] - interrupted


if __name__ == "__main__":
    explain(__doc__, 3)
    contender, where, shards = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if contender == "datatrove":
        Datatrove(where, int(sys.argv[4])).executor(shards).run()
    else:
        Submitit(where).submit(shards)
