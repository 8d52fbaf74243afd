"""Training, ours against Hugging Face's Trainer with DeepSpeed on the same tiny NVILA, records and core, in one run.

    python benchmarks/training.py            # about five minutes on one core
    python benchmarks/training.py --quick    # a smaller model and fewer steps; the ratios are noisier

A line each, ours / the peer's / their ratio:
- tokens a second, trained ones (padding and shared copies do not count, so it is proportional to samples a second);
- the whole process's work for a step of our loop against forward, backward and step alone over the same micro-batches,
  the two in turn step by step, so that what else the machine does meets both alike;
- restart: from starting a process to the end of its first new step, by the clock and in work;
- how long training pauses for a checkpoint.
Work is processor time. The clock's figures mean little on a machine that does other things.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from benchmarks.nvila_step import padded_as_transformers
from lumen_hpc import nvila
from lumen_hpc.config.schema import Train
from lumen_hpc.data.records import Records, write_jsonl
from lumen_hpc.distributed import Ranks, join
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.training import loop, record_index, sampler
from lumen_hpc.training.deepspeed_engine import Engine, deepspeed_config
from lumen_hpc.training.layout import SharedSequence
from lumen_hpc.training.learner import Learner
from lumen_hpc.training.samples import Batcher, Pictures
from lumen_hpc.training.train import Inputs, fine_tune

MICRO_BATCH, GLOBAL_BATCH = 8, 32
MIXTURE = {"diagnostic": 0.834, "difference": 0.083, "prediction": 0.083}
"""LUMEN's shares (section 2.1, one prediction a pair): one sample in twelve has two images."""


def make(folder: Path, samples: int, quick: bool) -> None:
    """A tiny NVILA of several tiles a picture and records with LUMEN's mixture: about 3 questions an image."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    patient = 0
    while len(rows) < samples:
        paths = []
        for name in "ab":
            path = folder / f"{patient}{name}.png"
            Image.fromarray(rng.integers(256, size=(192, 160), dtype=np.uint8)).save(path)
            paths.append(str(path))
        kind = rng.choice(list(MIXTURE), p=list(MIXTURE.values()))
        for number in range(3 if kind == "diagnostic" else 1):
            pair = kind == "difference"
            image_lines = "reference image: <image>\nmain image, 9 days later: <image>\n" if pair else "<image>\n"
            # Answers are as uneven as real ones: a few words, or a list of findings.
            answer = " ".join(["there is a finding in the left lung"] * int(rng.integers(1, 5)))
            question = " ".join([f"question {number} about this"] * int(rng.integers(1, 4)))
            rows.append(
                {
                    "id": f"{patient}-{number}",
                    "images": paths if pair else paths[:1],
                    "conversations": [
                        {"from": "human", "value": image_lines + question},
                        {"from": "gpt", "value": answer},
                    ],
                    "meta": {"type": "presence" if kind == "diagnostic" else kind},
                }
            )
        patient += 1
    rng.shuffle(rows)
    write_jsonl(folder / "records.jsonl", rows[:samples])
    width = 64 if quick else 128
    texts = [turn["value"] for row in rows[:50] for turn in row["conversations"]]
    sizes: dict[str, Any] = {"width": width, "layers": 4, "vision_width": 32, "vision_layers": 3}
    nvila.save(make_tiny(texts, aspect="dynamic", image_size=32, patch_size=4, tiles=(1, 12), **sizes), folder / "base")


def settings(**changes: Any) -> Train:
    defaults = {"precision": "fp32", "zero": 1, "checkpointing": "none", "global_batch": GLOBAL_BATCH}
    sizes = {"max_tokens": 1024, "token_budget": 4096, "workers": 1, "learning_rate": 1e-4, "checkpoint_every": 10**6}
    return Train(**{**defaults, **sizes, **changes})


def work(folder: Path, out: Path, train: Train) -> loop.Work:
    out.mkdir(parents=True, exist_ok=True)
    records = Records(folder / "records.jsonl")
    prepare = nvila.Preprocessor.open(folder / "base")
    index = record_index.build(
        records,
        prepare,
        Ranks(),
        max_tokens=train.max_tokens,
        on_bad="stop",
        folder=out,
        version="benchmark",
    )
    assert index is not None, "nothing asks for a stop"
    learner = Learner(nvila.load(folder / "base"), train)
    return loop.Work(learner, Batcher(records, index, prepare, Pictures()), index, out, {})


def trained_tokens(folder: Path, out: Path, ids: list[str]) -> int:
    """Tokens of these samples, each with its own images, without padding."""
    index = work(folder, out, settings()).index
    length = dict(zip(index.ids, (index.prefix + index.suffix).tolist()))
    return sum(length[i] for i in ids)


def ours(folder: Path, out: Path, steps: int, **changes: Any) -> tuple[float, float]:
    """Seconds of wall clock and of the training thread for `steps` steps; one step before them warms up."""
    train = settings(steps=steps + 1, **changes)
    job = work(folder, out, train)
    marks: list[tuple[float, float]] = []

    def beat(doing: str = "", within: float = 0.0, waits: bool = False) -> None:
        if doing.startswith(("computes step", "saves")):  # each step's beginning, and the last one's end
            marks.append((time.perf_counter(), time.thread_time()))

    engine, _, _ = loop.run(job, train, Ranks(), seed=0, should_stop=lambda: False, beat=beat)
    engine.close()
    assert len(marks) == steps + 2
    return marks[-1][0] - marks[1][0], marks[-1][1] - marks[1][1]


class PrebuiltBatches:
    """Micro-batches built in advance, so that building them counts on neither side."""

    def __init__(self, batcher: loop.Batcher) -> None:
        self._batcher = batcher
        self._built: dict[tuple, Any] = {}

    def build(self, sequences: list[SharedSequence]) -> Any:
        key = tuple(sequence.samples for sequence in sequences)
        if key not in self._built:
            self._built[key] = self._batcher.build(sequences)
        return self._built[key]


def alternate(folder: Path, out: Path, steps: int) -> list[tuple[float, float]]:
    """Processor seconds of each step of our loop, and of forward, backward and step alone on its micro-batches.

    Ours is all that the process does in its step: reading ahead, journal, TensorBoard, collectives.
    """
    train = settings(steps=steps + 2)
    job = work(folder, out, train)
    job = dataclasses.replace(job, batcher=PrebuiltBatches(job.batcher))
    plan = sampler.make_sampler(job.index.groups, job.index.kinds, train, 0)
    checkpoints = loop.Checkpoints(out / "bare", Ranks(), keep=1)
    bare_engine = Engine(work(folder, out, train).model, train, Ranks(), checkpoints.writer)
    runner = loop.Loop(job, train, Ranks(), plan, bare_engine, checkpoints, 0)
    prebuilt = [(ids, [job.batcher.build(packed) for packed in packs]) for ids, packs in runner._layouts()]
    weights = [torch.tensor(runner._weights(ids)) for ids, _ in prebuilt]

    def bare(step: int) -> None:
        micros = prebuilt[step][1]
        for number, micro in enumerate(micros, 1):
            nll = bare_engine(micro)
            loss = (nll * weights[step][runner.kinds.of(micro)]).sum()
            bare_engine.backward(loss, last=number == len(micros))
        bare_engine.step(train.learning_rate)

    pairs: list[tuple[float, float]] = []
    step_starts: list[float] = []

    def beat(doing: str = "", within: float = 0.0, waits: bool = False) -> None:
        if not doing.startswith("computes step"):
            return
        if step_starts:  # a whole step of ours is done
            loops = time.process_time() - step_starts[-1]
            bare_start = time.thread_time()
            bare(len(pairs))
            pairs.append((loops, time.thread_time() - bare_start))
        step_starts.append(time.process_time())

    engine, _, _ = loop.run(job, train, Ranks(), seed=0, should_stop=lambda: False, beat=beat)
    engine.close()
    bare_engine.close()
    return pairs[1:]  # the first warms up


def peer(
    folder: Path, out: Path, steps: int, *, spans: bool = False, save: bool = False, resume: bool = False
) -> tuple[float, float, list[str]]:
    """The same by Trainer: padded micro-batches of 8, DeepSpeed ZeRO-1, a loading process; and the ids it took.

    Attention is transformers' own, sdpa under a padding mask; with `spans` it is ours, which leaves padding out.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    records = Records(folder / "records.jsonl")
    prepare = nvila.Preprocessor.open(folder / "base")

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nvila.load(folder / "base").train()

        def forward(self, batch: Any, ids: list[str]) -> dict[str, torch.Tensor]:
            sample_ids.extend(ids)
            return {"loss": self.model(batch).loss if spans else padded_as_transformers(self.model, batch)}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"batch": nvila.pad(prepare(rows, inline=True).samples), "ids": [row["id"] for row in rows]}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append((time.perf_counter(), time.thread_time(), len(sample_ids)))
            if resume:
                print(json.dumps({"time": time.time()}), flush=True)

    marks: list[tuple[float, float, int]] = []
    sample_ids: list[str] = []
    config = {k: v for k, v in deepspeed_config(settings(), 1, universal=False).items() if "batch" not in k}
    config |= {"gradient_accumulation_steps": "auto", "train_micro_batch_size_per_gpu": "auto"}
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=GLOBAL_BATCH // MICRO_BATCH,
        max_steps=steps + 1,
        use_cpu=True,
        deepspeed=config,
        report_to=[],
        save_strategy="steps" if save else "no",
        save_steps=steps + 1,
        logging_strategy="no",
        remove_unused_columns=False,
        dataloader_num_workers=1,
        disable_tqdm=True,
        max_grad_norm=5.0,
        seed=0,
    )
    module = Module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = Trainer(module, arguments, collate, records, optimizers=(optimizer, rate), callbacks=[Clock()])
    trainer.train(resume_from_checkpoint=resume)
    return marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1], sample_ids[marks[0][2] : marks[-1][2]]


def restart(folder: Path, who: str) -> tuple[float, float]:
    """Seconds from starting a process to the end of its first step after the one it resumes from; and its work [s]."""
    for stop in (2, 3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.time()
        command = [sys.executable, __file__, "--part", f"{who},{stop}", "--folder", str(folder)]
        output = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    first_step_end = next(json.loads(line)["time"] for line in output.splitlines() if line.startswith('{"time"'))
    return first_step_end - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def part(folder: Path, who: str, stop: int) -> None:
    """What `restart` starts: a training up to step `stop`, which says when its last step ended."""
    out = folder / f"restart-{who}"
    if who == "peer":
        join(Ranks(), folder)
        peer(folder, out, stop - 1, save=stop == 2, resume=stop > 2)
        return
    doing = [""]
    fine_tune(
        settings(), Inputs(records=folder / "records.jsonl", base=folder / "base"), out, seed=0, ranks=Ranks(),
        should_stop=lambda: doing[-1].endswith(f" step {stop}"),
        beat=lambda action="", within=0.0, waits=False: doing.append(action),
    )  # fmt: skip
    (*_, last) = (out / "metrics.jsonl").read_text().splitlines()
    print(json.dumps({"time": json.loads(last)["timing"]["time"]}), flush=True)


def stalls(out: Path, millions: int) -> tuple[float, float, float]:
    """Seconds of pause a checkpoint: DeepSpeed's own writing, ours waited for, and ours."""
    side = int((millions * 1e6 / 4) ** 0.5)
    module = torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(4)))
    checkpoints = loop.Checkpoints(out / "checkpoints", Ranks(), keep=1)
    engine = Engine(module, settings(), Ranks(), checkpoints.writer)

    def step() -> None:
        engine.backward(engine(torch.randn(4, side)).square().mean(), last=True)
        engine.step(1e-4)

    def timed(action: Any) -> float:
        step()
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    def save_and_wait() -> None:
        checkpoints.save(1, {}, engine.stage)
        checkpoints.finish()

    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    deepspeed_seconds = []
    for number in range(3):
        engine.ds.checkpoint_engine = TorchCheckpointEngine()
        deepspeed_seconds.append(timed(lambda number=number: engine.ds.save_checkpoint(str(out / f"theirs-{number}"))))
    engine.ds.checkpoint_engine = checkpoints.writer
    synchronous = [timed(save_and_wait) for _ in range(3)]
    our_seconds = []
    for _ in range(3):
        our_seconds.append(timed(lambda: checkpoints.save(2, {}, engine.stage)))
        checkpoints.finish()
    engine.close()
    return statistics.median(deepspeed_seconds), statistics.median(synchronous), statistics.median(our_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=0, help="steps a measurement (default 12, quick 5)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of loop against bare steps")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = options.steps or (5 if options.quick else 12)
    torch.set_num_threads(1)
    if options.part:
        who, stop = options.part.split(",")
        part(Path(options.folder), who, int(stop))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, GLOBAL_BATCH * (steps + 3), options.quick)
        join(Ranks(), folder)
        _against_trainer(folder, steps)
        _against_bare(folder, steps, options.rounds)
        (own, own_work), (theirs, their_work) = restart(folder, "ours"), restart(folder, "peer")
        print(
            f"restart to first step: ours {own:.1f} s ({own_work:.1f} s of work for the whole process), HF Trainer + "
            f"DeepSpeed {theirs:.1f} s ({their_work:.1f} s): {own / theirs:.2f}x ({own_work / their_work:.2f}x)",
            flush=True,
        )
        millions = 8 if options.quick else 40
        theirs, waited, own = stalls(folder / "stall", millions)
        print(
            f"stall a checkpoint ({millions} M weights, {16 * millions} MB): ours {own:.3f} s, ours if waited for "
            f"{waited:.3f} s, DeepSpeed's own {theirs:.3f} s: {own / theirs:.2f}x and {waited / theirs:.2f}x"
        )
        dist.destroy_process_group()


def _against_trainer(folder: Path, steps: int) -> None:
    rates = {}
    for name, shared in (("packed", False), ("packed, shared images", True)):
        seconds, thread = ours(folder, folder / name, steps, shared_prefix=shared)
        lines = (folder / name / "consumed.jsonl").read_text().splitlines()[1:]
        tokens = trained_tokens(folder, folder / "count", [i for line in lines for i in json.loads(line)["ids"]])
        rates[name] = tokens / seconds, tokens / thread
    for peer_name, spans in (("attention as transformers'", False), ("attention as ours", True)):
        wall, cpu, taken = peer(folder, folder / f"peer-{spans}", steps, spans=spans)
        theirs = trained_tokens(folder, folder / "count", taken)
        for name, (rate, work_rate) in rates.items():
            print(
                f"tokens/s: ours {name} {rate:,.0f}, HF Trainer + DeepSpeed padded at micro-batch {MICRO_BATCH}, "
                f"{peer_name}, {theirs / wall:,.0f}: {rate / (theirs / wall):.2f}x "
                f"({work_rate / (theirs / cpu):.2f}x by the training threads' work)",
                flush=True,
            )


def _against_bare(folder: Path, steps: int, rounds: int) -> None:
    pairs = [pair for number in range(rounds) for pair in alternate(folder, folder / f"loop{number}", steps)]
    own, alone = (statistics.median(times) for times in zip(*pairs))
    more = sorted(100 * (loops / bare - 1) for loops, bare in pairs)
    low, middle, high = statistics.quantiles(more, n=4)
    print(
        f"a step's work: our loop {1000 * own:.0f} ms, forward, backward and step alone {1000 * alone:.0f} ms: "
        f"{middle:+.1f} % (median of {len(pairs)} pairs; quartiles {low:+.1f} and {high:+.1f} %)",
        flush=True,
    )


if __name__ == "__main__":
    main()
