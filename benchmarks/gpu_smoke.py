"""Does training work on these GPUs? Throughput, memory and resume in ten minutes; gpu_smoke.md says what to expect.

    python benchmarks/gpu_smoke.py --base NVILA-8B      # all GPUs of this node; rank processes are started here
    srun --ntasks-per-node=4 --gpus-per-node=4 python benchmarks/gpu_smoke.py --base NVILA-8B --folder SHARED
    python benchmarks/gpu_smoke.py --rehearse           # two CPU processes and a tiny model: tries the script itself

Trains the same steps twice from the same weights, once straight through and once stopped half way and resumed, and
compares the losses. Exits with 1 if they differ, if a step is not finite, or if memory is beyond the plan's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from lumen_hpc.config.schema import Train
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.distributed import Ranks
from lumen_hpc.models import Workload
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.sizing import plan
from lumen_hpc.training.train import Inputs, fine_tune

QUESTIONS = 3
"""Questions an image, as in LUMEN."""


def records(folder: Path, patients: int, side: tuple[int, int]) -> Path:
    """Noise of a radiograph's size with LUMEN's mixture: three questions an image, one pair in twelve samples."""
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(patients):
        paths = []
        for name in "ab":
            path = folder / f"{patient}{name}.jpg"
            Image.fromarray(rng.integers(256, size=side[::-1], dtype=np.uint8)).save(path, quality=60)
            paths.append(str(path))
        questions = [("presence", paths[:1], f"<image>\nis there finding {n}?") for n in range(QUESTIONS)]
        if patient % 4 == 0:
            text = "reference image: <image>\nmain image, 30 days later: <image>\nwhat has changed?"
            questions.append(("difference", paths, text))
        for number, (kind, images, question) in enumerate(questions):
            answer = {"from": "gpt", "value": f"The finding number {number} of patient {patient} is seen in the lung."}
            rows.append(
                {
                    "id": f"{patient}-{number}",
                    "images": images,
                    "conversations": [{"from": "human", "value": question}, answer],
                    "meta": {"type": kind},
                }
            )
    write_jsonl(folder / "records.jsonl", rows)
    return folder / "records.jsonl"


def rehearsal(folder: Path) -> Path:
    """A tiny model in place of NVILA-8B."""
    from lumen_hpc import nvila
    from lumen_hpc.nvila.tiny import make_tiny

    texts = ["is there finding 1?", "reference image: main image, 30 days later: what has changed?"]
    return nvila.save(make_tiny(texts, width=32, layers=2, vision_width=32), folder / "tiny")


def rank(options: argparse.Namespace, folder: Path, ranks: Ranks) -> None:
    """One rank's part: the run straight through, then the one that is stopped and resumed."""
    base = folder / "tiny" if options.rehearse else Path(options.base)
    settings = settings_of(options)
    for name, stops in (("whole", [0]), ("resumed", [options.steps // 2, 0])):
        for stop in stops:
            out = folder / name
            outcome = fine_tune(
                settings,
                Inputs(records=folder / "records.jsonl", base=base),
                out,
                seed=0,
                ranks=dataclasses.replace(ranks, job=f"{ranks.job}-{name}-{stop}"),
                should_stop=partial(reached, out, stop),
            )
            if ranks.first:
                print(f"{name}: {outcome}", flush=True)


def settings_of(options: argparse.Namespace) -> Train:
    """The paper's settings, or a tiny model's."""
    common = {"steps": options.steps, "keep_checkpoints": 1, "checkpoint_every": max(1, options.steps // 3)}
    if options.rehearse:
        return Train(global_batch=16, precision="fp32", max_tokens=512, token_budget=512, zero=options.zero, **common)
    common["checkpointing"] = "full"
    return Train(global_batch=options.global_batch, token_budget=options.token_budget, zero=options.zero, **common)


def reached(out: Path, stop: int) -> bool:
    """Whether the next step in this folder is the one to stop at; 0 for none."""
    file = out / "metrics.jsonl"
    steps_done = file.read_text().count("\n") if file.exists() else 0
    return bool(stop) and steps_done + 1 >= stop


def verdict(options: argparse.Namespace, folder: Path, world_size: int) -> int:
    """Prints what was found beside the plan; the exit code."""
    rows = {name: [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
            for name in ("whole", "resumed")}  # fmt: skip
    base = folder / "tiny" if options.rehearse else Path(options.base)
    images = Workload(tiles=1, image_tokens=17, text_tokens=60) if options.rehearse else Workload()
    expected = plan(settings_of(options), world_size, sizes=Sizes.read(base), workload=images)
    timings = [row["timing"] for row in rows["whole"][2:]]
    rate = float(np.median([timing["tokens_per_s"] for timing in timings]))
    faults = []
    print(f"{world_size} ranks, {options.steps} steps: {rate:,.0f} tokens/s, {rate / world_size:,.0f} a GPU")
    if "mfu" in timings[0]:
        print(f"MFU {100 * float(np.median([timing['mfu'] for timing in timings])):.0f} %")
    if "memory_gb" in timings[0]:
        memory = max(timing["memory_gb"] for timing in timings)
        print(f"memory {memory:.1f} GB a GPU; planned {expected}")
        if memory > expected.memory_gb:
            faults.append("more memory than planned")
    restart = next(r["timing"] for r in rows["resumed"][options.steps // 2 :] if "start_to_first_step" in r["timing"])
    stall = max(row["timing"]["checkpoint_stall"] for row in rows["resumed"])
    print(f"restart to first step {restart['start_to_first_step']:.1f} s; longest stall for a checkpoint {stall:.2f} s")
    unequal_steps = [a["step"] for a, b in zip(rows["whole"], rows["resumed"], strict=True) if a["loss"] != b["loss"]]
    difference = max(abs(a["loss"] - b["loss"]) for a, b in zip(rows["whole"], rows["resumed"]))
    comparison = f"up to {difference:.2g} different from step {unequal_steps[0]} on" if unequal_steps else "bit-equal"
    print(f"resumed losses: {comparison}")
    if difference > 1e-3:  # kernels whose sums come in any order may differ in the last bits
        faults.append("the resumed run is another run")
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="", help="folder of NVILA-8B in the official layout")
    parser.add_argument("--folder", default="", help="where to work; under srun one that all nodes share")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--global-batch", type=int, default=32, help="the paper has 128")
    parser.add_argument("--token-budget", type=int, default=16384)
    parser.add_argument("--zero", type=int, default=3)
    parser.add_argument("--rehearse", action="store_true", help="two CPU processes and a tiny model")
    parser.add_argument("--ranks", type=int, default=2, help="processes of a rehearsal")
    parser.add_argument("--rank", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--job", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.base and not options.rehearse:
        parser.error("--base FOLDER (or --rehearse) is needed")
    under_srun = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if under_srun and not options.folder:
        parser.error("under srun, --folder must be a folder that all nodes share")
    if options.rank >= 0 or under_srun:
        return _as_rank(options, under_srun)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        _prepare(options, folder)
        world_size = options.ranks if options.rehearse else torch.cuda.device_count()
        return _start(options, folder, world_size) or verdict(options, folder, world_size)


def _prepare(options: argparse.Namespace, folder: Path) -> None:
    """Records, and the tiny model of a rehearsal."""
    folder.mkdir(parents=True, exist_ok=True)
    if options.rehearse:
        rehearsal(folder)
    records(folder, 24, (64, 64) if options.rehearse else (2544, 3056))


def _start(options: argparse.Namespace, folder: Path, world_size: int) -> int:
    """Runs this script once a rank; 0 if all end well."""
    job = uuid.uuid4().hex
    command = [*sys.argv[1:], "--folder", str(folder), "--world", str(world_size), "--job", job]
    processes = [subprocess.Popen([sys.executable, __file__, *command, "--rank", str(n)]) for n in range(world_size)]
    return max(abs(process.wait()) for process in processes)


def _as_rank(options: argparse.Namespace, under_srun: bool) -> int:
    folder = Path(options.folder)
    if not under_srun:
        ranks = Ranks(rank=options.rank, world_size=options.world, local_rank=options.rank, job=options.job)
        rank(options, folder, ranks)
        return 0
    from lumen_hpc.cluster.ranks import of_slurm

    job = f"{os.environ['SLURM_JOB_ID']}-{os.environ['SLURM_STEP_ID']}"  # several of one job may follow one another
    ranks = dataclasses.replace(of_slurm(os.environ), job=job)
    ready = folder / f"ready-{ranks.job}"
    if ranks.first:
        _prepare(options, folder)
        ready.touch()
    while not ready.exists():
        time.sleep(0.2)
    rank(options, folder, ranks)
    return verdict(options, folder, ranks.world_size) if ranks.first else 0


if __name__ == "__main__":
    sys.exit(main())
