"""What it costs to run many small shards on Slurm: ours, datatrove's SlurmPipelineExecutor and plain submitit.

    python -m benchmarks.slurm_shards              # about 15 minutes: 1000 unpacked submitit tasks take most of it
    python -m benchmarks.slurm_shards --quick      # about 5 minutes, without those and without datatrove one a task

It starts the tests' own cluster (root, Debian's Slurm packages; tests/cluster/slurm.py), runs every contender on it in
turn with the same trivial shard (one row, one file), and prints one table. The peers are installed for this alone:
pip install --no-deps -r benchmarks/slurm_peers.txt.

- N shards: from the start of the submitting command until the last output file is there.
- submit, no-op rerun: the whole command in a fresh process, imports included, as a user waits for it.
- missing: one call on 10,000 shards of which 137 lack. Ours compares sizes, times and hashes with the manifest; the
  peers look for the name of an empty marker.
- restart: from the interruption (each project's documented signal) until the work goes on.
- end to dependant: from the end of a step's last task until the work of its dependant begins, while other users' jobs
  keep every GPU taken. Ours has successors and a gate between the steps; the peers' is Slurm's plain afterok, without
  anything that would continue after an interruption.
- idle node-seconds: of the jobs of that chain that did no work, by Slurm's account; our gate is one.
- files: all that is left beside the outputs (logs, scripts, manifests, markers), for each task that ran.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.slurm_peers import Datatrove, Submitit, count, files_below, slurm, start_times, time_call, wait_until
from sandbox import checkout
from sandbox.slurm import Cluster, why_not

ABSENT = set(range(0, 10_000, 73))
"""137 of 10,000."""
AIMS = {"100 shards": 4.0, "1000 shards": 9.0, "submit 1000": 0.3, "no-op rerun of 1000": 0.3,
        "137 missing of 10,000": 0.05, "restart": 1.0, "end to dependant": 5.0, "idle node-seconds": 3.0,
        "files a task": 1.0}  # fmt: skip
GPUS = 12
"""Of the whole cluster."""
CPUS_A_NODE = 16
"""Enough that Slurm's pace decides, few enough that a hundred unpacked tasks at once do not swamp this machine."""
Figures = dict[str, float]


class Ours:
    """`python launch.py stage=full` in a checkout whose only stage is benchmarks/slurm_stage/trivial.py."""

    name = "ours"

    def __init__(self, folder: Path):
        self.runs = folder / "runs"
        self.checkout = checkout.make(folder / "checkout", Path(__file__).parent / "slurm_stage")
        self.pair = checkout.make(folder / "pair", Path(__file__).parent / "slurm_pair")

    def launch(self, run: str, shards: int, *more: str, checkout: Path | None = None) -> float:
        words = ["stage=full", "profile=test", f"runs={self.runs}", f"run={run}", f"experts.shards={shards}", *more]
        command = [sys.executable, "launch.py", *words]
        return time_call(
            lambda: subprocess.run(command, cwd=checkout or self.checkout, check=True, stdout=subprocess.DEVNULL)
        )

    def shards(self, shards: int, limit_s: float) -> tuple[float, float]:
        """Seconds to submit, and until the last shard is there."""
        run = f"n{shards}"
        start = time.perf_counter()
        submission = self.launch(run, shards)
        wait_until(lambda: count(self.runs / run / "trivial") == shards, limit_s, f"ours, {shards} shards")
        return submission, time.perf_counter() - start

    def rerun(self, shards: int) -> float:
        settle()
        seconds = self.launch(f"n{shards}", shards)
        assert not queued_jobs(), "something was submitted although all is there"
        return seconds

    def files_a_task(self, shards: int) -> float:
        settle()
        step = self.runs / f"n{shards}" / "trivial"
        packs = len({line["pack"] for line in map(json.loads, (step / "attempts.jsonl").open())})
        return (files_below(step) - shards) / packs

    def missing(self, shards: int) -> float:
        """In a process of its own, since it has to import the checkout's lumen_hpc."""
        program = Path(__file__).with_name("slurm_missing.py")
        command = [sys.executable, str(program), str(self.runs / "missing"), str(shards), json.dumps(sorted(ABSENT))]
        process = subprocess.run(command, cwd=self.checkout, check=True, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(self.checkout)})  # fmt: skip
        return float(process.stdout)

    def chained(self, times: Path) -> dict[str, bool]:
        """Two steps with successors and a gate, a GPU a task; their jobs, and whether they do work."""
        words = (f"profile.environment.LUMEN_BENCHMARK_TIMES={times}", "profile.resources.gpu.successors=4")
        self.launch("pair", 2, *words, checkout=self.pair)
        plans = (self.runs / "pair" / "submissions").glob("*/plan.json")
        jobs = [job for plan in plans for job in json.loads(plan.read_text())["jobs"]]
        return {job["id"]: job["link"] == 0 and not job.get("gate") for job in jobs}

    def restart(self, limit_s: float) -> float:
        """From the parent's end, which is its interruption here, to its queued successor's first work."""
        times = self.runs / "restart.txt"
        self.launch("restart", 1, f"profile.environment.LUMEN_BENCHMARK_TIMES={times}")
        wait_until(lambda: len(start_times(times)) == 1, 60, "our first start")
        interrupted = time.time()
        slurm("scancel", "--batch", "--signal=USR2", *queued_jobs("--states=RUNNING"))
        wait_until(lambda: len(start_times(times)) == 2, limit_s, "our successor")
        return start_times(times)[1] - interrupted


def chaining(contender: Ours | Datatrove | Submitit, folder: Path) -> Figures:
    """A step and its dependant on a cluster whose GPUs others keep taken."""
    times = folder / f"chained-{contender.name.split(',')[0]}.txt"
    gpu_job = ("sbatch", "--partition=h100", "--gpus-per-node=1", "--ntasks=1", "--mem=1", "--output=/dev/null")
    other_jobs = [slurm(*gpu_job, "--parsable", "--wrap", "sleep 3").strip() for _ in range(GPUS)]
    jobs = contender.chained(times)
    other_jobs += [slurm(*gpu_job, "--parsable", "--wrap", "sleep 3").strip() for _ in range(8 * GPUS)]
    wait_until(lambda: len(start_times(times)) == 3, 120, f"{contender.name}, chained")
    *ends, start = start_times(times)
    wait_until(lambda: not jobs.keys() & {name.split("_")[0] for name in queued_jobs()}, 60, "the chain to end")
    slurm("scancel", *other_jobs)
    time.sleep(2)  # accounting follows
    idle = 0
    fields = ("--noheader", "--parsable2", "--allocations", "--format=JobID,ElapsedRaw,AllocNodes,NodeList")
    for line in slurm("sacct", f"--jobs={','.join(jobs)}", *fields).splitlines():
        job, seconds, nodes, node_list = line.split("|")
        if node_list != "None assigned" and not jobs[job.split("_")[0]]:
            idle += int(seconds) * int(nodes)
    settle()
    return {"end to dependant": start - max(ends), "idle node-seconds": idle}


def queued_jobs(*which: str) -> list[str]:
    """Ids of jobs in the queue."""
    return slurm("squeue", "--noheader", "--format=%i", *which).split()


def settle() -> None:
    """Wait until nothing is queued or running, so that no contender pays for another."""
    wait_until(lambda: not queued_jobs(), 120, "an empty queue")


def measure_ours(folder: Path) -> dict[str, Figures]:
    ours = Ours(folder)
    figures: Figures = {}
    _, figures["100 shards"] = ours.shards(100, 60)
    settle()
    figures["submit 1000"], figures["1000 shards"] = ours.shards(1000, 120)
    figures["files a task"] = ours.files_a_task(1000)
    figures["no-op rerun of 1000"] = ours.rerun(1000)
    figures["137 missing of 10,000"] = ours.missing(10_000)
    figures["restart"] = ours.restart(60)
    settle()
    figures |= chaining(ours, folder)
    return {ours.name: figures}


def measure_datatrove(folder: Path, quick: bool) -> dict[str, Figures]:
    packed = Datatrove(folder, packs=2)
    packed_figures: Figures = {}
    _, packed_figures["100 shards"] = packed.shards(100, 120)
    settle()
    packed_figures["submit 1000"], packed_figures["1000 shards"] = packed.shards(1000, 120)
    settle()
    packed_figures["files a task"] = packed.bookkeeping(1000) / 2
    packed_figures["no-op rerun of 1000"] = packed.rerun(1000)
    packed_figures["137 missing of 10,000"] = packed.missing(10_000, ABSENT)
    packed_figures["restart"] = packed.restart(300)
    settle()
    packed_figures |= chaining(packed, folder)
    figures = {packed.name: packed_figures}
    if not quick:
        single = Datatrove(folder)
        _, seconds = single.shards(100, 400)
        settle()
        figures[single.name] = {"100 shards": seconds, "files a task": single.bookkeeping(100) / 100}
    return figures


def measure_submitit(folder: Path, quick: bool) -> dict[str, Figures]:
    peer = Submitit(folder)
    figures: Figures = {}
    _, figures["100 shards"] = peer.shards(100, 300)
    settle()
    figures["files a task"] = peer.bookkeeping(100) / 100
    figures["submit 1000"] = peer.submission(1000)
    settle()
    figures["restart"] = peer.restart(300)
    settle()
    figures |= chaining(peer, folder)
    if not quick:
        _, figures["1000 shards"] = peer.shards(1000, 1200)
        settle()
    return {peer.name: figures}


def table(figures_by_name: dict[str, Figures]) -> str:
    """One line per figure: ours, the peers, the best peer over ours, and the aim."""
    names = list(figures_by_name)
    lines = ["| | " + " | ".join(names) + " | best peer / ours | aim |", "|---" * (len(names) + 3) + "|"]
    for figure, aim in AIMS.items():
        cells = [f"{figures_by_name[name][figure]:.3g}" if figure in figures_by_name[name] else "–" for name in names]
        ours = figures_by_name["ours"][figure]
        peers = [figures_by_name[name][figure] for name in names if name != "ours" and figure in figures_by_name[name]]
        ratio = f"{min(peers) / ours:.2g}" if peers and ours else "–"
        remark = "" if ours <= aim else " (missed)"
        lines.append(f"| {figure} | {' | '.join(cells)} | {ratio} | ≤ {aim:g}{remark} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out what takes minutes: tasks one by one")
    quick = parser.parse_args().quick
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 2
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # for everyone: compiled modules are what users have
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder) / "slurm", cpus=CPUS_A_NODE).up()
        os.environ.update(cluster.environment)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        try:
            figures: dict[str, Figures] = {}
            for part in (
                lambda: measure_ours(Path(folder) / "ours"),
                lambda: measure_datatrove(Path(folder) / "datatrove", quick),
                lambda: measure_submitit(Path(folder) / "submitit", quick),
            ):
                part_figures = part()
                print(part_figures, file=sys.stderr, flush=True)  # what is known so far, should a later part fail
                figures |= part_figures
        finally:
            cluster.down()
    print(f"seconds; 3 nodes on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end\n\n{table(figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
