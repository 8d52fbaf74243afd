"""Estimates a training by arithmetic: memory per GPU, steps, hours, checkpoint size (paper, section 2.5).

It needs only the standard library, so that a login node can compute it before anything is submitted.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

from lumen_hpc.config import schema
from lumen_hpc.errors import UserError
from lumen_hpc.models import Workload
from lumen_hpc.progress import spell_count
from lumen_hpc.training import exchange, memory, speed
from lumen_hpc.training.flops import token_flops
from lumen_hpc.training.memory import memory_gb
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.occupancy import Occupancy, Steps, choose_group_size, occupancy, stated_steps

DEVICE = "H100"
"""The paper's GPU, for which a plan is made until a run has measured its own."""
AUTO_SHARE = 0.9
"""Share of a GPU's memory that `auto` fills by the plan, whose error is below 10 %."""


@dataclass(frozen=True)
class TrainingPlan:
    """The estimate, in GB (1e9 bytes), steps and hours."""

    memory: dict[str, float]
    """GB per GPU by use."""
    steps: int
    hours: float
    """By the clock, on all GPUs, without checkpoints."""
    checkpoint_gb: float
    gpus: int
    mfu: float
    """Model FLOPs over the GPUs' peak, while they compute, on which the hours are based."""
    occupancy: Occupancy
    """Of sampled steps; the hours follow from their longest rank."""
    source: str = ""
    """Source of the MFU."""
    sent_gb: float = 0.0
    """GB per step that a GPU sends to those with which it computes a micro-batch."""
    sending_share: float = 0.0
    """Share of the hours that this takes (`exchange.BANDWIDTH`)."""

    @property
    def memory_gb(self) -> float:
        return sum(self.memory.values())

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gb:.1f}" for name, gb in self.memory.items())
        return (
            f"{self.memory_gb:.0f} GB a GPU ({parts}); {self.steps} steps; {self.hours:.1f} h on "
            f"{spell_count(self.gpus, 'GPU')} at MFU {self.mfu:.2f}"
            f"{f' ({self.source})' if self.source else ''} and an efficiency of "
            f"{self.occupancy.efficiency:.2f}; {self.checkpoint_gb:.0f} GB a checkpoint"
            f"{self._parallel()}"
        )

    def _parallel(self) -> str:
        ranks = self.occupancy.sequence_parallel
        sent = f"a GPU sends {self.sent_gb:.1f} GB a step within its node, {self.sending_share:.0%} of the time"
        return f"; train.sequence_parallel={ranks}: {sent}" if ranks > 1 else ""


def plan(
    train: schema.Train,
    gpus: int,
    *,
    nodes: int = 1,
    sizes: Sizes | None = None,
    workload: Workload | None = None,
    progress: speed.Progress | None = None,
    steps: Steps | None = None,
) -> TrainingPlan:
    """The cost of these settings on `gpus` GPUs (DEVICE), at the MFU that was measured for the most similar training.

    The hours follow from the layout of `steps`, by default those of the mixture that `workload` states. `progress`:
    what the run itself has measured, used instead of that MFU. An unresolved `auto` counts as its most frugal value
    (ZeRO-3, full recomputation).
    """
    sizes, workload = sizes or Sizes(), workload or Workload()
    steps = steps or stated_steps(train, workload)
    step_occupancy = occupancy(steps, train, gpus, sizes.heads, nodes=nodes)
    requested, train = train, dataclasses.replace(_frugal(train), sequence_parallel=step_occupancy.sequence_parallel)
    measurement = speed.nearest_measurement(
        DEVICE, shared_prefix=train.shared_prefix, checkpointing=train.checkpointing, compiled=train.compiled is True
    )
    mfu = measurement.mfu
    step_samples = sum(train.mixture.values()) or train.global_batch
    samples = train.steps * step_samples if train.steps else steps.samples * train.epochs
    flops = step_occupancy.path * token_flops(train, sizes, workload, step_occupancy.samples / step_occupancy.sequences)
    sent_bytes = exchange.sent_bytes(train, sizes, workload, step_occupancy.path)
    seconds, source = flops / (speed.peak_flops(DEVICE) * mfu) + sent_bytes / exchange.BANDWIDTH, str(measurement)
    if progress is not None:
        seconds = progress.seconds * step_occupancy.path / occupancy(steps, requested, progress.gpus, sizes.heads).path
        mfu, source = progress.mfu, "measured in this run"
    return TrainingPlan(
        memory=memory.memory_by_use(train, gpus, nodes, sizes, workload),
        steps=math.ceil(samples / step_samples),
        hours=samples / step_samples * seconds / 3600,
        checkpoint_gb=memory.checkpoint_gb(train, sizes),
        gpus=gpus,
        mfu=mfu,
        occupancy=step_occupancy,
        source=source,
        sent_gb=sent_bytes / 1e9,
        sending_share=sent_bytes / exchange.BANDWIDTH / seconds,
    )


def resolve(
    train: schema.Train, gpus: int, gpu_memory_gb: float, *, nodes: int = 1, sizes: Sizes | None = None,
    workload: Workload | None = None,
) -> schema.Train:  # fmt: skip
    """The settings with every `auto` about memory resolved: the least recomputation that fits, then the lowest stage.

    Stage 3 on several nodes also shards the weights inside each node if that fits (`train.node_shards`). Without a GPU
    (`gpu_memory_gb` 0) nothing is recomputed, at stage 1. If nothing fits, the most frugal settings.
    """
    checkpointings = ("none", "selective", "full") if train.checkpointing == "auto" else (train.checkpointing,)
    stages: tuple[int | str, ...] = (1, 2, 3) if train.zero == "auto" else (train.zero,)
    if train.zero == "auto" and train.quantised:  # ZeRO-3 would cut quantised weights
        stages = (1, 2)
    for checkpointing, stage in itertools.product(checkpointings, stages):
        multi_node = stage == 3 and 1 < nodes < gpus
        for node_shards in (multi_node, False) if train.node_shards == "auto" else (train.node_shards,):
            candidate = dataclasses.replace(train, checkpointing=checkpointing, zero=stage, node_shards=node_shards)
            needed_gb = memory_gb(candidate, gpus, nodes=nodes, sizes=sizes, workload=workload)
            if not gpu_memory_gb or needed_gb <= AUTO_SHARE * gpu_memory_gb:
                return candidate
    return _frugal(train)


def _frugal(train: schema.Train) -> schema.Train:
    return dataclasses.replace(
        train,
        zero=(2 if train.quantised else 3) if train.zero == "auto" else train.zero,
        checkpointing="full" if train.checkpointing == "auto" else train.checkpointing,
        node_shards=train.node_shards is True,
    )


def check_fit(
    train: schema.Train,
    gpus: int,
    gpu_memory_gb: float,
    *,
    nodes: int = 1,
    sizes: Sizes | None = None,
    workload: Workload | None = None,
) -> TrainingPlan:
    """The plan. Raises UserError, with settings that would fit, if a GPU's memory or the batch does not allow it."""
    sizes, workload = sizes or Sizes(), workload or Workload()
    group_size = choose_group_size(stated_steps(train, workload), train, gpus, sizes.heads, nodes=nodes)
    train = dataclasses.replace(train, sequence_parallel=group_size)
    check_parallel(train, gpus, nodes, sizes)
    check_batch(train, gpus)
    train = resolve(train, gpus, gpu_memory_gb, nodes=nodes, sizes=sizes, workload=workload)
    estimate = plan(train, gpus, nodes=nodes, sizes=sizes, workload=workload)
    if estimate.memory_gb <= gpu_memory_gb:
        return estimate
    fitting_overrides = [
        overrides
        for overrides, candidate, count in _alternatives(train, gpus)
        if memory_gb(candidate, count, sizes=sizes, workload=workload) <= gpu_memory_gb
    ]
    hint = (
        f"these fit: {'; '.join(fitting_overrides[:3])}"
        if fitting_overrides
        else "no ZeRO stage, budget or number of GPUs tried fits"
    )
    count = spell_count(gpus, "GPU")
    raise UserError(f"training on {count} of {gpu_memory_gb:.0f} GB does not fit: {estimate}; {hint}")


def check_batch(train: schema.Train, world_size: int) -> None:
    """Refuses a global batch that leaves ranks without work, and a budget that the longest sample does not fit."""
    batch, group_size = sum(train.mixture.values()) or train.global_batch, train.ranks_a_micro_batch
    if batch * group_size < world_size:
        raise UserError(
            f"train.global_batch={batch} leaves some of {world_size} GPUs without a sample in every step; "
            f"use at least train.global_batch={-(-world_size // group_size)}, or at most {batch * group_size} GPUs"
        )
    if train.token_budget < train.max_tokens:
        raise UserError(
            f"train.token_budget={train.token_budget} does not hold a sample of "
            f"train.max_tokens={train.max_tokens}; use at least train.token_budget="
            f"{train.max_tokens}, or at most train.max_tokens={train.token_budget}"
        )


def check_parallel(train: schema.Train, gpus: int, nodes: int, sizes: Sizes) -> None:
    """Refuses a `train.sequence_parallel` that does not divide a node's GPUs, or the language model's heads."""
    group_size = train.ranks_a_micro_batch
    problem = ""
    if gpus % (nodes * group_size):
        problem = f"it does not divide {gpus} GPUs on {nodes} nodes, and those that compute together must share a node"
    elif sizes.heads % group_size:
        problem = f"it does not divide the {sizes.heads} heads of the language model"
    if problem:
        raise UserError(f"train.sequence_parallel={group_size}: {problem}; use train.sequence_parallel=1 or auto")


def _alternatives(train: schema.Train, gpus: int) -> list[tuple[str, schema.Train, int]]:
    """Alternatives, the mildest first: (command-line overrides, settings, GPUs)."""

    def replace(**values: Any) -> schema.Train:
        return dataclasses.replace(train, **values)

    candidates = [
        ("train.checkpointing=full", replace(checkpointing="full"), gpus),
        (f"train.token_budget={train.max_tokens}", replace(token_budget=train.max_tokens), gpus),
        ("train.zero=3", replace(zero=3), gpus),
    ]
    most_frugal = replace(zero=3, checkpointing="full", token_budget=train.max_tokens)
    all_overrides = f"train.zero=3 train.checkpointing=full train.token_budget={train.max_tokens}"
    candidates.append((all_overrides, most_frugal, gpus))
    candidates += [(f"{all_overrides} on {gpus * times} GPUs", most_frugal, gpus * times) for times in (2, 4, 8)]
    return [(overrides, new, count) for overrides, new, count in candidates if (new, count) != (train, gpus)]
