"""What grows with the size of the data, the number of ranks and of shards, at three sizes each.

    python -m benchmarks.scale                        # all lines, about a quarter of an hour on two cores
    python -m benchmarks.scale index layout import    # some of them

Each row is one fresh process: seconds by the clock and of CPU with its imports, peak memory, and where strace is
installed, in a second process, the files that it opens and asks about (`-` where not). The exponent is the slope of CPU
over size in a double logarithm between the two largest sizes: 1 is linear. `before` is the same on an earlier state of
this project, where that is known; it was measured on another day, so it says how much, not how exactly. Inputs are made
by sandbox/lookalike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parents[1]
OPENS = ("open", "openat")
STATS = ("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2")
FINDINGS = ("atelectasis", "cardiomegaly", "consolidation", "edema", "effusion", "emphysema", "fibrosis", "fracture",
            "hernia", "infiltration", "lung lesion", "lung opacity", "mass", "nodule", "pneumonia")  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One thing that is measured."""

    run: Callable[[Path, int], Any]
    """The work, given the folder of its inputs and the size."""
    sizes: tuple[int, ...]
    unit: str
    make: Callable[[Path, int], Any] = lambda folder, size: None
    """Writes the inputs; not measured."""
    before: str = ""
    note: Callable[[int], str] = lambda size: ""
    """What else there is to say of a size."""


# The CPU stages.


def questions(folder: Path, size: int) -> None:
    from sandbox.lookalike import write

    write(folder, size)


def prepare(folder: Path, size: int) -> None:
    from lumen_hpc.config.schema import Data, Prepare
    from lumen_hpc.data.prepare import prepare

    data = Data(source="mimic", mimic_cxr=f"{folder}/mimic-cxr-jpg", diff_vqa=f"{folder}/medical-diff-vqa")
    prepare(data, Prepare(images="trust"), 0, folder / "prepare")


def prepare_inputs(folder: Path, size: int) -> None:
    """What `instruct` reads: studies and questions, one expert row per study, one long answer per question."""
    from lumen_hpc.data.records import read_jsonl, write_jsonl

    questions(folder, size)
    prepare(folder, size)
    studies = list(read_jsonl(folder / "prepare" / "studies.jsonl"))
    write_jsonl(folder / "prepare" / "studies.jsonl", (study | {"size": [2544, 3056]} for study in studies))
    write_jsonl(folder / "experts.jsonl", map(_expert, read_jsonl(folder / "prepare" / "studies.jsonl")))
    write_jsonl(folder / "rewrites.jsonl", _rewrites(read_jsonl(folder / "prepare" / "questions.jsonl")))


def _expert(study: dict[str, Any]) -> dict[str, Any]:
    draw = random.Random(str(study["study_id"]))
    return {
        "study_id": study["study_id"],
        "pathologies": {name: round(draw.random(), 4) for name in FINDINGS},
        "age": 40 + draw.random() * 40,
        "race": {"white": 0.6, "black": 0.3, "asian": 0.1},
        "view": {"AP": 0.7, "PA": 0.3},
    }


def _rewrites(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {"question_id": row["question_id"], "long_answer": f"The image shows: {row['short_answer']}."}
        if row["type"] == "difference" and row["split"] != "test":  # a test one would have its images decoded
            yield {
                "question_id": f"{row['question_id']}-p0", "source_question_id": row["question_id"],
                "type": "prediction", "question": "what will have changed in 30 days?",
                "long_answer": f"In 30 days: {row['short_answer']}.",
            }  # fmt: skip


def instruct(folder: Path, size: int) -> None:
    from lumen_hpc.config.schema import Experts, Instruct
    from lumen_hpc.data import instructions
    from lumen_hpc.data.image_texts import ImageTexts
    from lumen_hpc.data.records import read_jsonl
    from lumen_hpc.experts.confidence_words import sentences

    instructions.write(
        folder / "instruct", prepared=folder / "prepare", rewrites=read_jsonl(folder / "rewrites.jsonl"),
        texts=ImageTexts(sentences(read_jsonl(folder / "experts.jsonl"), Experts())), settings=Instruct(),
        diff_vqa=folder / "medical-diff-vqa",
    )  # fmt: skip


def evaluate(folder: Path, size: int) -> None:
    """As stage evaluate reads a run: its records and every model's answers and scores from files."""
    from lumen_hpc.config.schema import Evaluate
    from lumen_hpc.data.records import read_jsonl
    from lumen_hpc.report import assemble

    inputs = assemble.Inputs(
        records=read_jsonl(folder / "records.jsonl"),
        answers={model: read_jsonl(folder / f"{model}.jsonl") for model in RIGHT},
        scores={model: read_jsonl(folder / f"{model}-scores.jsonl") for model in RIGHT},
        run={"name": "scale", "data": "mimic", "seed": "0"},
    )
    assemble.report(inputs, Evaluate(), 0, folder / "report")


RIGHT = {"nvila": 0.2, "ft": 0.7, "lumen": 0.9}
"""Model → the share of its answers that are right."""


def answers(folder: Path, size: int) -> None:
    """Three models' answers to `size` questions, a share of them another question's, with the judge's scores."""
    from lumen_hpc.data.records import read_jsonl, write_jsonl

    prepare_inputs(folder, 3 * size // 2)
    instruct(folder, size)
    rows = list(itertools.islice(read_jsonl(folder / "instruct" / "lumen-train.jsonl"), size))
    write_jsonl(folder / "records.jsonl", rows)
    draw = random.Random(0)
    texts = [row["meta"]["long_answer"] for row in rows]
    for model, share in RIGHT.items():
        model_texts = (text if draw.random() < share else draw.choice(texts) for text in texts)
        rows_of_model = (
            {"question_id": row["id"], "answer": text, "tokens": 12} for row, text in zip(rows, model_texts)
        )
        write_jsonl(folder / f"{model}.jsonl", rows_of_model)
        write_jsonl(
            folder / f"{model}-scores.jsonl", (_judge_row(row["id"], model, draw.randint(1, 10)) for row in rows)
        )


def _judge_row(question: str, model: str, score: int) -> dict[str, Any]:
    return {"question_id": question, "model": model, "judge": "drawn", "score": score, "expected_score": score - 0.1}


# Training.


def records(folder: Path, size: int) -> None:
    """Instruction records of which every image file is there, with its size, and a tokenizer of 16,000 pieces."""
    from lumen_hpc.data.records import read_jsonl, write_jsonl

    prepare_inputs(folder, 3 * size // 2)
    instruct(folder, size)
    rows = list(itertools.islice(read_jsonl(folder / "instruct" / "lumen-train.jsonl"), size))
    for image in {image for row in rows for image in row["images"]}:
        Path(image).parent.mkdir(parents=True, exist_ok=True)
        Path(image).touch()
    write_jsonl(folder / "records.jsonl", rows)
    from lumen_hpc import nvila
    from lumen_hpc.nvila.tiny import make_tiny

    texts = [turn["value"] for row in rows[:5000] for turn in row["conversations"]]
    nvila.save(make_tiny(texts, aspect="dynamic_s2", width=32, layers=1, vision_width=32), folder / "base")


def index(folder: Path, size: int) -> None:
    from lumen_hpc import nvila
    from lumen_hpc.data.records import Records
    from lumen_hpc.distributed import Ranks, join
    from lumen_hpc.training import record_index

    join(Ranks(), folder)
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    record_lengths = record_index.build(
        Records(folder / "records.jsonl"), nvila.Preprocessor.open(folder / "base"), Ranks(),
        max_tokens=1 << 20, on_bad="stop", folder=folder / "out", version="1",
    )  # fmt: skip
    assert record_lengths is not None and len(record_lengths) == size


def layout(folder: Path, size: int) -> None:
    """100 steps of the paper's mixture on `size` GPUs."""
    from lumen_hpc.config.schema import Train
    from lumen_hpc.models import Workload
    from lumen_hpc.training.layout import lay_out
    from lumen_hpc.training.model_sizes import Sizes
    from lumen_hpc.training.occupancy import choose_group_size, stated_steps

    steps = stated_steps(Train(), Workload())
    ranks = size // choose_group_size(steps, Train(), size, Sizes().heads)
    for groups, prefix, suffix in itertools.islice(itertools.cycle(steps), 100):
        lay_out(range(len(groups)), groups, prefix, suffix, world_size=ranks, budget=16384, shared=True)


def efficiency(size: int) -> str:
    """Efficiency of the paper's LUMEN on `size` GPUs, alone and as `train.sequence_parallel=auto` has it."""
    from lumen_hpc.config.schema import Train
    from lumen_hpc.training.sizing import plan

    alone, found = (plan(Train(sequence_parallel=ranks), size) for ranks in (1, "auto"))
    before, now = alone.occupancy.efficiency, found.occupancy.efficiency
    return (
        f"efficiency {before:.2f}, with train.sequence_parallel={found.occupancy.sequence_parallel} {now:.2f}: "
        f"a GPU sends {found.sent_gb:.1f} GB a step, {found.sending_share:.0%} of the time"
    )


def imports(folder: Path, size: int) -> None:
    import lumen_hpc.training.train  # noqa: F401


# The cluster's side.


def run_of(folder: Path, shards: int) -> Any:
    """A run whose `prepare` and `rewrite` have finished, the second in so many shards of 50 rows."""
    import jobs
    from lumen_hpc.cluster import graph, manifest, plan
    from lumen_hpc.cluster.shards import write_shard
    from lumen_hpc.cluster.stage import Run, Shard
    from lumen_hpc.config import config_file
    from lumen_hpc.config.profile import Profile
    from lumen_hpc.config.schema import Settings

    settings = Settings()
    settings.rewrite.shards = shards
    run = Run(folder / "run", settings, Profile())
    everything = graph.steps(jobs.PIPELINE.stages, settings)
    for step in everything if not run.folder.exists() else ():
        if step.name not in ("prepare", "rewrite"):
            continue
        count, reads = step.stage.shards(settings), plan.inputs(run, step, everything)
        for index in range(count):
            rows = [{"question_id": f"{index}-{row}", "long_answer": "No edema is seen."} for row in range(50)]
            written = write_shard(run.folder / step.name, Shard(index, count), rows, step.stage.volatile)
            line = {
                "shard": index, "of": count, "sha256": written.sha256, "content": written.content,
                "bytes": written.bytes, "mtime_ns": written.mtime_ns, "files": [],
                "inputs": reads[index],
                "config": config_file.digest(settings, step.stage.settings),
                "seconds": 1.0, "gpu_seconds": 0.0, "node": "n",
            }  # fmt: skip
            manifest.append(run.folder / step.name / manifest.NAME, line)
    return run


def status(folder: Path, size: int) -> None:
    import jobs
    from lumen_hpc.cluster import status

    status.read(run_of(folder, size), list(jobs.PIPELINE.stages))


def copied_run(folder: Path, size: int) -> None:
    """A run whose modification times a copy has lost, asked for its status once already."""
    run = run_of(folder, size)
    for file in run.folder.rglob("*.jsonl"):
        os.utime(file)
    status(folder, size)


def heartbeats(folder: Path, size: int) -> None:
    """Ten seconds of the watchdogs of `size` ranks, one beat a second."""
    from lumen_hpc.watchdog import Watchdog

    ranks = [
        Watchdog(600, print, folder=folder / "beats", job="j", rank=rank, world_size=size, interval=1.0)
        for rank in range(size)
    ]
    time.sleep(10)
    for rank in ranks:
        rank.stop()


LINES = {
    "prepare": Line(prepare, (70_000, 350_000, 700_703), "questions", questions),
    "instruct": Line(instruct, (70_000, 350_000, 700_703), "questions", prepare_inputs, "13 s at 700,703"),
    "evaluate": Line(evaluate, (1_000, 10_000, 100_000), "answers a model", answers, "78 s, 1,500 MB at 100,000"),
    "index": Line(index, (15_000, 60_000, 240_000), "records", records, ".89 ms of CPU a record on this benchmark"),
    "layout": Line(layout, (4, 16, 32, 64, 256), "GPUs, 100 steps", before=".3 ms a step", note=efficiency),
    "import": Line(imports, (1,), "process", before="5.8 s, 15,187 opens, 91,520 stats"),
    "status": Line(status, (10, 100, 1_000), "shards", run_of),
    "status-copied": Line(status, (10, 100, 1_000), "shards", copied_run, "every file hashed at every call"),
    "heartbeats": Line(heartbeats, (4, 16, 64, 128), "ranks, 10 rounds", before="819 opens/s on 64, 3,197 on 128"),
}  # fmt: skip


def measure(name: str, folder: Path, size: int) -> tuple[float, float, float]:
    """Seconds by the clock, of CPU, and peak memory [MB] of a fresh process."""
    process = subprocess.run([*_command("run", name, folder, size)], capture_output=True, text=True, env=_environment())
    if process.returncode:
        raise SystemExit(f"{name} at {size} failed:\n{process.stderr[-2000:]}")
    wall, cpu, peak = json.loads(process.stdout.splitlines()[-1])
    return wall, cpu, peak


def count_files(name: str, folder: Path, size: int) -> tuple[int, int] | None:
    """Files opened and files asked about, by strace; None where it is not installed."""
    if not shutil.which("strace"):
        return None
    calls = ",".join((*OPENS, *STATS))
    with tempfile.NamedTemporaryFile("r") as report:
        strace = ["strace", "-f", "-qq", "-c", "-e", f"trace={calls}", "-o", report.name]
        subprocess.run([*strace, *_command("run", name, folder, size)], capture_output=True, env=_environment())
        counts: dict[str, int] = {}
        for line in report.read().splitlines():
            if match := re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line):
                counts[match[2]] = int(match[1])
    return sum(counts.get(call, 0) for call in OPENS), sum(counts.get(call, 0) for call in STATS)


def _command(what: str, name: str, folder: Path, size: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.scale", "--part", what, name, str(folder), str(size)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def part(what: str, name: str, folder: Path, size: int) -> None:
    line = LINES[name]
    start = time.perf_counter()
    (line.make if what == "make" else line.run)(folder, size)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))


def show(name: str) -> None:
    line = LINES[name]
    rows: list[tuple[int, float]] = []
    for size in line.sizes:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(_command("make", name, Path(folder), size), check=True, env=_environment(),
                           stdout=subprocess.DEVNULL)  # fmt: skip
            wall, cpu, peak = measure(name, Path(folder), size)
            files = count_files(name, Path(folder), size)
        opens, stats = (f"{count:,}" for count in files) if files else ("-", "-")
        print(f"{name:14} {size:>9,} {wall:8.2f} {cpu:8.2f} {peak:8.0f} {opens:>9} {stats:>9}", flush=True)
        if note := line.note(size):
            print(f"{'':24} {note}")
        rows.append((size, cpu))
    (size, cpu), (larger, more) = rows[-2:] if len(rows) > 1 else (rows[0], rows[0])
    exponent = f"exponent {math.log(more / cpu) / math.log(larger / size):.2f}; " if larger > size else ""
    print(f"{'':14} {line.unit}; {exponent}" + (f"before: {line.before}" if line.before else "before: as now"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", choices=[[], *LINES], help="all of them by default")
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        what, name, folder, size = options.part
        part(what, name, Path(folder), int(size))
        return
    print(f"{'':14} {'size':>9} {'wall s':>8} {'CPU s':>8} {'peak MB':>8} {'opens':>9} {'stats':>9}")
    for name in options.lines or LINES:
        show(name)


if __name__ == "__main__":
    main()
