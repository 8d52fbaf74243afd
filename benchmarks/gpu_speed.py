"""How fast NVILA trains on this GPU: attention, recomputation and compilation, against the plan.

    python benchmarks/gpu_speed.py               # one GPU, no weights needed; under 8 minutes
    python benchmarks/gpu_speed.py --rehearse    # the same on a CPU at tiny sizes: does the script run?

Random weights at NVILA-8B's widths, as many layers of the language model as fit. Each part is a process with its own
time limit, so that one that fails or hangs costs its own row only. MFU counts 6 FLOPs a weight and token, neither
attention nor recomputation, against the dense bf16 peak. gpu_smoke.md says what was measured, where and when.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import gpu_kernels
from lumen_hpc import nvila
from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.distributed import Ranks, join, leave
from lumen_hpc.models import Workload
from lumen_hpc.nvila import cards, layers
from lumen_hpc.nvila.new_config import official_config
from lumen_hpc.nvila.tiny import train_tokenizer
from lumen_hpc.training.compile_trial import random_batch
from lumen_hpc.training.flops import matrix_flops
from lumen_hpc.training.learner import ALL_TILES
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.sizing import plan, resolve
from lumen_hpc.training.speed import PEAK_FLOPS, peak_flops

SETTINGS: dict[str, dict[str, Any]] = {
    "as before": {"attention": "sdpa", "checkpointing": "full", "compiled": False},
    "compiled": {"attention": "flex", "checkpointing": "full", "compiled": True},
    "compiled, selective": {"attention": "flex", "checkpointing": "selective", "compiled": True},
    "compiled, none": {"attention": "flex", "checkpointing": "none", "compiled": True},
    "without ZeRO-3": {"attention": "flex", "checkpointing": "selective", "compiled": True, "zero": 2},
    "adapters": {"attention": "sdpa", "checkpointing": "auto", "compiled": False, "zero": "auto",
                 "adapter": Adapter(kind="lora")},
    "flash-attention": {"attention": "flash", "checkpointing": "full", "compiled": False},
}  # fmt: skip
"""Rows of the tables: settings of the training, ZeRO-3 where a row names no stage."""
OPERATIONS: dict[str, Callable[[nvila.NVILA, nvila.Batch], gpu_kernels.Operation]] = {
    "language model": gpu_kernels.llm_attention,
    "tower": gpu_kernels.tower_attention,
    "language model's norm": gpu_kernels.llm_norm,
    "language model's activation": gpu_kernels.llm_activation,
    "tower's norm": gpu_kernels.tower_norm,
    "tower's activation": gpu_kernels.tower_activation,
}
"""Rows of the parts `attention` and `elementwise`."""
KERNELS = {
    "attention": ("flash", "fmha", "flex", "attention", "sdpa"),
    "product": ("gemm", "nvjet", "xmma", "cutlass", "cublas"),
}
"""Parts of the names of a GPU's kernels, by kind; the first kind that fits counts."""
LIMITS = {"step": 150, "parts": 90, "attention": 60, "elementwise": 60, "operators": 60, "resume": 120}
"""Seconds of each row. On an H200 a plain step takes 50 and a compiled one 70, most of them to start and compile."""
QUESTIONS = (4, 3, 3, 3)
"""Questions of each of the four images of a micro-batch: 14,600 tokens and 68 tiles at full size."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the model and its micro-batch are."""

    rehearse: bool = False
    """Tiny, for a CPU."""
    layers: int = 0
    """Of the language model; 0: as many as fit."""
    kernels: int = 0
    """How many of the longest kernels to print."""


class Case:
    """The model and one micro-batch, as the training makes them."""

    def __init__(self, size: Size, **settings: Any) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.rehearse, self.kernels = size.rehearse, size.kernels
        settings = {"zero": 3, "precision": "bf16" if self.device.type == "cuda" else "fp32"} | settings
        train = Train(**settings)
        tokenizer = train_tokenizer(["Is there an effusion in the left lung? No finding is seen."])
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0.0
        self.sizes = self._fitting(train, memory, size)
        self.train = resolve(train, 1, memory, sizes=self.sizes)
        torch.manual_seed(0)
        with torch.device(self.device):
            torch.set_default_dtype(self.dtype)
            self.model = nvila.NVILA(self._config(size.rehearse), tokenizer, kernel=train.attention)
            torch.set_default_dtype(torch.float32)
        self.batch = self._batch(size.rehearse).to(self.device)

    def _config(self, rehearse: bool) -> Any:
        sizes = self.sizes
        vision = {"hidden_size": sizes.vision_width, "intermediate_size": sizes.vision_mlp,
                  "num_hidden_layers": sizes.vision_layers, "num_attention_heads": 4 if rehearse else 16,
                  "image_size": sizes.image_size, "patch_size": sizes.patch_size}  # fmt: skip
        llm = {"hidden_size": sizes.width, "intermediate_size": sizes.mlp, "num_hidden_layers": sizes.layers,
               "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads,
               "vocab_size": sizes.vocabulary}  # fmt: skip
        side = sizes.image_size
        return official_config(vision=vision, llm=llm, scales=(side, 2 * side, 3 * side))

    def _fitting(self, train: Train, memory: float, size: Size) -> Sizes:
        """As many layers of the language model as the plan says fit while little is recomputed, AdamW's state included.

        One model serves every row but the adapters', which take all layers where they fit; where the GPU is small, at
        least four layers, and that row says what it would take.
        """
        if size.rehearse:
            return Sizes(vision_width=64, vision_layers=3, vision_mlp=128, image_size=56, width=64, layers=2, mlp=128,
                         heads=4, kv_heads=2, vocabulary=2048)  # fmt: skip
        every = cards.cards()["NVILA-8B"].llm["num_hidden_layers"]
        most = every
        if train.adapter.kind == "none":
            most = every // 2
            train = dataclasses.replace(train, zero=3, checkpointing="selective", compiled=True)
        if size.layers:
            return Sizes(layers=size.layers)
        sizes = [Sizes(layers=count) for count in range(most, 4, -1)]
        fitting = (found for found in sizes if plan(train, 1, sizes=found).memory_gb <= memory)
        return next(fitting, Sizes(layers=4))

    def _batch(self, rehearse: bool) -> nvila.Batch:
        text = " ".join(["effusion lung"] * (10 if rehearse else 60))
        answer = "No finding is seen. " * 6
        dialogues = [[(f"{text} {number}?", answer) for number in range(count)] for count in QUESTIONS]
        self.questions = sum(QUESTIONS)
        shape = (382, 318) if rehearse else (3056, 2544)
        return random_batch(self.model, dialogues, shape, multiple=128 if self.train.compiled is True else 1)

    def flops(self, part: str = "") -> float:
        whole = matrix_flops(self.train, self.sizes, self.batch.tokens, len(self.batch.tiles))
        tower = matrix_flops(self.train, self.sizes, 0, len(self.batch.tiles))
        return {"": whole, "tower": tower, "llm": whole - tower}[part]

    def mfu(self, seconds: float, part: str = "") -> float:
        peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else 0.0
        return self.flops(part) / seconds / (peak or PEAK_FLOPS["H100"])

    def seconds(self, action: Callable[[], Any], rounds: int = 3) -> float:
        """The fastest of a few rounds, after two that warm up and compile; in a rehearsal the only one."""
        warm_up, rounds = (0, 1) if self.rehearse else (2, rounds)
        times = []
        for _ in range(warm_up + rounds):
            self.wait()
            start = time.perf_counter()
            action()
            self.wait()
            times.append(time.perf_counter() - start)
        return min(times[warm_up:])

    def planned_gb(self) -> float:
        """The plan's memory of this micro-batch."""
        images = len(QUESTIONS)
        workload = Workload(image_tokens=self.batch.tokens // images, tiles=len(self.batch.tiles) // images)
        train = dataclasses.replace(self.train, token_budget=self.batch.tokens)
        return plan(train, 1, sizes=self.sizes, workload=workload).memory_gb

    def kinds_of_kernels(self, action: Callable[[], Any]) -> dict[str, float]:
        """Shares of the GPU's time that attention takes, and what is neither it nor a matrix product; no GPU: none."""
        if self.device.type != "cuda":
            return {}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            action()
            self.wait()
        times: Counter[str] = Counter()
        for kernel in profile.key_averages():
            kinds = (kind for kind, names in KERNELS.items() if any(name in kernel.key.lower() for name in names))
            times[next(kinds, "other")] += kernel.self_device_time_total
        longest = sorted(profile.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
        for kernel in longest[: self.kernels]:
            print(
                f"{kernel.self_device_time_total / 1000:9.2f} ms {kernel.count:5} × {kernel.key[:110]}", file=sys.stderr
            )
        shares = {f"{kind} share": times[kind] / times.total() for kind in ("attention", "other")}
        return {"kernels ms": times.total() / 1000, **shares}

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def step(size: Size, row: str) -> dict[str, Any]:
    """One optimizer step of one micro-batch through the training's own Learner and Engine."""
    from lumen_hpc.training.checkpointing import StagedWriter
    from lumen_hpc.training.deepspeed_engine import Engine
    from lumen_hpc.training.learner import Learner
    from lumen_hpc.training.samples import MicroBatch

    case = Case(size, **SETTINGS[row])
    with tempfile.TemporaryDirectory() as folder:
        join(Ranks(), Path(folder))
    engine = Engine(Learner(case.model, case.train), case.train, Ranks(), StagedWriter())
    none = torch.zeros(0, dtype=torch.int64)
    micro = MicroBatch(case.batch, none, none.bool(), case.batch.tokens)

    def learn(last: bool) -> None:
        engine.backward(engine(micro).mean(), last=last)

    def learn_and_step() -> None:
        learn(last=True)
        engine.step(0.0)

    start = time.perf_counter()
    learn(last=True)
    norm = engine.step(0.0)
    first = time.perf_counter() - start
    micro_batch_seconds = case.seconds(lambda: learn(last=False))
    with_step = case.seconds(learn_and_step)
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    kinds = case.kinds_of_kernels(lambda: learn(last=False))
    engine.close()
    leave()
    # 128 samples on eight GPUs are four such micro-batches per step
    mean_of_four = (3 * micro_batch_seconds + with_step) / 4
    return {"layers": case.sizes.layers, "zero": case.train.zero, "recomputation": case.train.checkpointing,
            "ms": 1000 * micro_batch_seconds, "AdamW ms": 1000 * (with_step - micro_batch_seconds),
            "first step s": first, "MFU": case.mfu(mean_of_four), "MFU of one a step": case.mfu(with_step),
            "questions/s": case.questions / mean_of_four, "tokens/s": case.batch.tokens / mean_of_four,
            "peak GB": memory, "plan GB": case.planned_gb(), **kinds, "gradient norm": norm}  # fmt: skip


def parts(size: Size, row: str) -> dict[str, Any]:
    """Tower with projector, and the language model's layers, each alone, forward and backward."""
    case = Case(size, **SETTINGS[row])
    case.model.train().prepare_layers(case.train.checkpointing, compiled=case.train.compiled)
    case.model.tiles_at_once = ALL_TILES
    embeds = case.model.embed(case.batch)[0].detach().requires_grad_()
    results = {"attention plan ms": 1000 * case.seconds(lambda: case.model.attention_plan(case.batch))}
    attention_plan = case.model.attention_plan(case.batch)
    actions = {
        "tower": lambda: case.model.embed(case.batch)[0].sum().backward(),
        "llm": lambda: case.model.decode(embeds, case.batch.position_ids, attention_plan).sum().backward(),
    }
    for part, action in actions.items():
        seconds = case.seconds(action)
        results |= {f"{part} ms": 1000 * seconds, f"{part} MFU": case.mfu(seconds, part)}
        results |= {f"{part} {kind}": share for kind, share in case.kinds_of_kernels(action).items()}
        case.model.zero_grad()
    return results


def operation(size: Size, row: str) -> dict[str, Any]:
    """Forward and backward pass of one operation by every kernel that runs here, and how far from the first one.

    Where memory limits the speed, a copy of as many bytes is the least that it can take.
    """
    case = Case(dataclasses.replace(size, layers=1), attention="sdpa", checkpointing="none")
    measured = OPERATIONS[row](case.model, case.batch)
    row_results: dict[str, Any] = {}
    expected: list[torch.Tensor] = []
    for name, kernel in measured.kernels.items():
        try:
            torch.manual_seed(0)
            inputs = [torch.randn(shape, device=case.device, dtype=case.dtype, requires_grad=True)
                      for shape in measured.shapes]  # fmt: skip
            weights = [torch.randn(out.shape, device=case.device, dtype=case.dtype) for out in kernel(*inputs)]

            def action(kernel=kernel, inputs=inputs, weights=weights) -> list[torch.Tensor]:
                outputs = kernel(*inputs)
                return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, inputs, weights)]

            results = action()
            expected = expected or results
            errors = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(results, expected)]
            row_results |= {f"{name} ms": 1000 * case.seconds(action, 10), f"{name} off by": max(errors)}
        except Exception as error:  # a kernel that fails here is what the row says
            row_results[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    if measured.moved_values:
        source = torch.zeros(measured.moved_values // 2, device=case.device, dtype=case.dtype)
        target = torch.empty_like(source)
        row_results["copy of as many bytes ms"] = 1000 * case.seconds(lambda: target.copy_(source), 10)
    return row_results


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[operator._schema.name] += 1
        return operator(*args, **(kwargs or {}))


def operators(size: Size, row: str) -> dict[str, Any]:
    """Operators of one layer's forward and backward pass, views included: by spans, and in one attention call."""
    counts = {}
    for kernel in ("sdpa", "flex"):
        case = Case(Size(rehearse=True), attention=kernel, checkpointing="none")
        case.model.train()
        attention_plan = case.model.attention_plan(case.batch)
        embeds, _ = case.model.embed(case.batch)
        for part, (layer, *_) in layers.layers(case.model).items():
            width = case.sizes.vision_width if part == "vision_tower" else case.sizes.width
            x = (
                torch.randn(4, 16, width, device=case.device, dtype=case.dtype)
                if part == "vision_tower"
                else embeds.detach()
            )
            x.requires_grad_()
            extra: dict[str, Any] = {"attention_mask": None}
            if part == "llm":
                rotary = case.model.llm.model.rotary_emb(x, case.batch.position_ids)
                extra |= {"position_embeddings": rotary, "plan": attention_plan}
            with _Operators() as operators_of_layer:
                layer(x, **extra).sum().backward()
            counts[f"{part}, {kernel}"] = operators_of_layer.counts.total()
    return counts


def resume(size: Size, row: str) -> dict[str, Any]:
    """A tiny model through the real `train()`, straight and interrupted: gpu_smoke.py's own comparison."""
    script = Path(__file__).with_name("gpu_smoke.py")
    process = subprocess.run([sys.executable, str(script), "--rehearse", "--steps", "6", "--ranks", "1"],
                          capture_output=True, text=True)  # fmt: skip
    lines = [line for line in process.stdout.splitlines() if line.startswith(("resumed losses", "FAULT"))]
    return {"exit": process.returncode, "verdict": "; ".join(lines) or process.stderr[-200:]}


PARTS: dict[str, Callable[[Size, str], dict[str, Any]]] = {
    "step": step,
    "parts": parts,
    "attention": operation,
    "elementwise": operation,
    "operators": operators,
    "resume": resume,
}


ROWS = {
    "step": ("as before", "compiled, selective", "adapters", "flash-attention"),
    "parts": ("as before", "compiled, selective"),
    "attention": ("language model", "tower"),
    "elementwise": ("language model's norm", "language model's activation", "tower's norm", "tower's activation"),
}
"""What fits 8 minutes; the other settings run with --part and --rows."""


def measure(part: str, rows: Sequence[str], size: Size, limit: float) -> dict[str, dict[str, Any]]:
    """Results by row from one process with a time limit [s]; a row without one says why."""
    command = [sys.executable, __file__, "--part", part, "--layers", str(size.layers), "--rows", *rows]
    command += ["--rehearse"] * size.rehearse
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    try:
        out, errors = process.communicate(timeout=limit)
        reason = (errors.strip().splitlines() or ["no output"])[-1][:160]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # a part may have started processes of its own
        out, reason = process.communicate()[0], f"no result in {limit:g} s"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith('{"row"')]
    return {row: {"failed": reason} for row in rows} | {line["row"]: line["result"] for line in lines}


def work(part: str, rows: Sequence[str], size: Size) -> None:
    """A process's task: measures the rows and prints a line each."""
    for row in rows:
        try:
            result = PARTS[part](size, row)
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {str(error)[:160]}"}
        print(json.dumps({"row": row, "result": result}), flush=True)


def show(part: str, results: dict[str, dict[str, Any]]) -> list[str]:
    """Prints a part's rows; names those that failed and should not have."""
    for row, result in results.items():
        text = ", ".join(f"{key} {value:,.3g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in result.items())  # fmt: skip
        print(f"{part:11} {row if part in ROWS else '':27} {text}", flush=True)
    optional_rows = {"flash-attention"}  # needs its package and a GPU
    return [f"{part} {row}" for row, result in results.items() if "failed" in result and row not in optional_rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="a CPU and tiny sizes")
    parser.add_argument("--part", default="", choices=["", *PARTS], help="one part alone")
    parser.add_argument("--layers", type=int, default=0, help="of the language model (default: as many as fit)")
    parser.add_argument("--kernels", type=int, default=0, help="with --part: print so many of the longest kernels")
    parser.add_argument("--limit", type=float, default=0.0, help="most seconds of a process (default: by its part)")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["as before"],
        help=f"with --part: {', '.join(SETTINGS)} (of one operation: {', '.join(OPERATIONS)})",
    )
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("no GPU here; --rehearse tries the script on a CPU")
    size = Size(options.rehearse, options.layers, options.kernels)
    if options.part:
        work(options.part, options.rows, size)
        return 0
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU (a rehearsal)"
    print(f"{device}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}", flush=True)
    failed = []

    def part_of(part: str, rows: Sequence[str]) -> dict[str, dict[str, Any]]:
        # A rehearsal may share its cores, and has all rows in one process.
        return measure(part, rows, size, options.limit or LIMITS[part] * (4 if options.rehearse else 1))

    if options.rehearse:  # all rows of a part in one process, two parts at a time
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(lambda part: part_of(part, ROWS.get(part, ("as before",))), PARTS)
            for part, found in zip(PARTS, results):
                failed += show(part, found)
    else:  # one process per row: memory and compiled code are its own
        for part in PARTS:
            for row in ROWS.get(part, ("as before",)):
                failed += show(part, part_of(part, [row]))
    print(f"failed: {', '.join(failed)}" if failed else "every part ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
