"""Estimate of a training by arithmetic alone: memory a GPU, steps, hours, checkpoint size (paper, section 2.5).

Only the standard library, so that a login node can compute it before anything is submitted. Bytes a weight: 2 for bf16
and 2 for its gradient, 12 for the float32 master and AdamW's two moments; ZeRO divides them over the GPUs.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumen_hpc.config import schema
from lumen_hpc.errors import UserError
from lumen_hpc.models import Workload
from lumen_hpc.training import activations, speed
from lumen_hpc.training.occupancy import Occupancy, Steps, occupancy, stated

RESERVE_GB = 5.0
"""CUDA context, NCCL buffers and fragmentation on a GPU [GB]."""
QUANTISED_BYTES = {8: 1.002, 4: 0.52}
"""Of a weight in bitsandbytes' formats, its share of the scales included (a float32 a row; NF4 in blocks of 64)."""
AUTO_SHARE = 0.9
"""Of a GPU's memory, what `auto` fills by the plan, which is held to 10 %."""


@dataclass(frozen=True)
class Sizes:
    """The model's sizes that determine cost; the defaults are NVILA-8B's."""

    vision_width: int = 1152
    vision_layers: int = 27
    vision_mlp: int = 4304
    image_size: int = 448
    patch_size: int = 14
    width: int = 3584
    layers: int = 28
    mlp: int = 18944
    heads: int = 28
    kv_heads: int = 4
    vocabulary: int = 151648
    tied: bool = False
    projector: str = "mlp_downsample"
    scales: int = 3
    """Scales that are joined; 1 without S2."""

    @classmethod
    def read(cls, folder: Path) -> Sizes:
        """From a checkpoint's config files. Raises UserError naming a file or key that is missing."""
        try:
            root, llm, tower, projector = (
                json.loads((folder / part / "config.json").read_text())
                for part in ("", "llm", "vision_tower", "mm_projector")
            )
            return cls(
                vision_width=tower["hidden_size"],
                vision_layers=tower["num_hidden_layers"],
                vision_mlp=tower["intermediate_size"],
                image_size=tower["image_size"],
                patch_size=tower["patch_size"],
                width=llm["hidden_size"],
                layers=llm["num_hidden_layers"],
                mlp=llm["intermediate_size"],
                heads=llm["num_attention_heads"],
                kv_heads=llm["num_key_value_heads"],
                vocabulary=llm["vocab_size"],
                tied=llm.get("tie_word_embeddings", False),
                projector=projector["mm_projector_type"],
                scales=len(root["s2_scales"].split(",")) if root.get("dynamic_s2") else 1,
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} is not an NVILA checkpoint in the official layout: {error!r}") from None

    @property
    def patches(self) -> int:
        """Patches of a tile."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def vision_tower(self) -> int:
        """Parameters of SigLIP without its head."""
        c, m = self.vision_width, self.vision_mlp
        layer = 4 * (c * c + c) + 2 * c * m + m + c + 4 * c
        return 3 * self.patch_size**2 * c + c + self.patches * c + self.vision_layers * layer + 2 * c

    @property
    def mm_projector(self) -> int:
        """Parameters of the projector."""
        r = 3 if self.projector.endswith("3x3_fix") else 2
        c, h = self.vision_width * self.scales, self.width
        joined = r * r * c
        if r == 2:
            return 2 * joined + joined * h + h + h * h + h
        return 2 * joined + joined * 3 * c + 3 * c + 6 * c + 3 * c * h + h + h * h + h

    @property
    def layer(self) -> int:
        """Parameters of one layer of the language model."""
        h, kv = self.width, self.width // self.heads * self.kv_heads
        return 2 * h * h + h + 2 * (h * kv + kv) + 3 * h * self.mlp + 2 * h

    @property
    def llm(self) -> int:
        """Parameters of the language model."""
        return (1 if self.tied else 2) * self.vocabulary * self.width + self.layers * self.layer + self.width

    @property
    def parts(self) -> dict[str, int]:
        return {"vision_tower": self.vision_tower, "projector": self.mm_projector, "llm": self.llm}

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class TrainingPlan:
    """The estimate, in GB (1e9 bytes), steps and hours."""

    memory: dict[str, float]
    """GB a GPU by use."""
    steps: int
    hours: float
    """On all GPUs together, checkpoints left out."""
    checkpoint_gb: float
    gpus: int
    mfu: float
    """Model FLOPs over the GPUs' peak that the hours assume while a GPU computes."""
    occupancy: Occupancy
    """Of sampled steps: the hours follow from their longest rank."""
    source: str = ""
    """Where that MFU is from."""

    @property
    def memory_gb(self) -> float:
        return sum(self.memory.values())

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gb:.1f}" for name, gb in self.memory.items())
        return (
            f"{self.memory_gb:.0f} GB a GPU ({parts}); {self.steps} steps; {self.hours:.1f} h on {self.gpus} GPUs at "
            f"MFU {self.mfu:.2f}{f' ({self.source})' if self.source else ''} and an efficiency of "
            f"{self.occupancy.efficiency:.2f}; {self.checkpoint_gb:.0f} GB a checkpoint"
        )


def plan(
    train: schema.Train,
    gpus: int,
    *,
    nodes: int = 1,
    sizes: Sizes | None = None,
    workload: Workload | None = None,
    device: str = "H100",
    own: speed.Progress | None = None,
    steps: Steps | None = None,
) -> TrainingPlan:
    """Cost of these settings on `gpus` GPUs of a kind, at the MFU that was measured for the most similar training.

    The hours follow from the layout of `steps`, by default of the mixture that `workload` states. `own`: what the run
    itself has measured, which then counts instead. An `auto` that no memory decides counts as its most frugal value
    (ZeRO-3, full recomputation).
    """
    train = _frugal(train)
    known = speed.nearest(
        device, shared_prefix=train.shared_prefix, checkpointing=train.checkpointing, compiled=train.compiled is True
    )
    mfu = known.mfu
    sizes, workload = sizes or Sizes(), workload or Workload()
    steps = steps or stated(train, workload)
    used = occupancy(steps, train, gpus)
    step_samples = sum(train.mixture.values()) or train.global_batch
    samples = train.steps * step_samples if train.steps else steps.samples * train.epochs
    work = used.path * _flops(train, sizes, workload, used.samples / used.sequences)  # of the longest rank in a step
    seconds, source = work / (speed.peak_flops(device) * mfu), str(known)
    if own is not None:
        seconds = own.seconds * used.path / occupancy(steps, train, own.gpus).path
        mfu, source = own.mfu, "measured in this run"
    return TrainingPlan(
        memory=_memory(train, gpus, nodes, sizes, workload),
        steps=math.ceil(samples / step_samples),
        hours=samples / step_samples * seconds / 3600,
        checkpoint_gb=(_bytes(train) * _saved(train, sizes) + 12 * _learning(train, sizes)) / 1e9,
        gpus=gpus,
        mfu=mfu,
        occupancy=used,
        source=source,
    )


def memory_gb(
    train: schema.Train, gpus: int, *, nodes: int = 1, sizes: Sizes | None = None, workload: Workload | None = None
) -> float:
    """Memory that these settings, without an `auto`, take of a GPU [GB]."""
    return sum(_memory(train, gpus, nodes, sizes or Sizes(), workload or Workload()).values())


def resolve(
    train: schema.Train, gpus: int, gpu_memory_gb: float, *, nodes: int = 1, sizes: Sizes | None = None,
    workload: Workload | None = None,
) -> schema.Train:  # fmt: skip
    """The settings with every `auto` about memory decided: as little recomputation as fits, then the lowest ZeRO stage.

    Stage 3 on several nodes keeps the weights once more inside each where that fits (`train.node_shards`). Without
    a GPU (`gpu_memory_gb` 0) nothing is recomputed, at stage 1. Where nothing fits, the most frugal.
    """
    checkpointings = ("none", "selective", "full") if train.checkpointing == "auto" else (train.checkpointing,)
    stages: tuple[int | str, ...] = (1, 2, 3) if train.zero == "auto" else (train.zero,)
    if train.zero == "auto" and _quantised(train):  # ZeRO-3 would cut quantised weights
        stages = (1, 2)
    for checkpointing, stage in itertools.product(checkpointings, stages):
        several = stage == 3 and 1 < nodes < gpus
        for node_shards in (several, False) if train.node_shards == "auto" else (train.node_shards,):
            tried = dataclasses.replace(train, checkpointing=checkpointing, zero=stage, node_shards=node_shards)
            needed = memory_gb(tried, gpus, nodes=nodes, sizes=sizes, workload=workload)
            if not gpu_memory_gb or needed <= AUTO_SHARE * gpu_memory_gb:
                return tried
    return _frugal(train)


def _frugal(train: schema.Train) -> schema.Train:
    return dataclasses.replace(
        train,
        zero=(2 if _quantised(train) else 3) if train.zero == "auto" else train.zero,
        checkpointing="full" if train.checkpointing == "auto" else train.checkpointing,
        node_shards=train.node_shards is True,
    )


def check(
    train: schema.Train,
    gpus: int,
    gpu_memory_gb: float,
    *,
    nodes: int = 1,
    sizes: Sizes | None = None,
    workload: Workload | None = None,
) -> TrainingPlan:
    """The plan; UserError, with settings that would fit, if the memory of a GPU or the batch does not allow it."""
    check_batch(train, gpus)
    train = resolve(train, gpus, gpu_memory_gb, nodes=nodes, sizes=sizes, workload=workload)
    found = plan(train, gpus, nodes=nodes, sizes=sizes, workload=workload)
    if found.memory_gb <= gpu_memory_gb:
        return found
    fitting = [
        overrides
        for overrides, changed, count in _alternatives(train, gpus)
        if memory_gb(changed, count, sizes=sizes, workload=workload) <= gpu_memory_gb
    ]
    hint = f"these fit: {'; '.join(fitting[:3])}" if fitting else "no ZeRO stage, budget or number of GPUs tried fits"
    raise UserError(f"training on {gpus} GPUs of {gpu_memory_gb:.0f} GB does not fit: {found}; {hint}")


def check_batch(train: schema.Train, world_size: int) -> None:
    """Refuses a global batch that leaves ranks without work, and a budget that the longest sample does not fit."""
    batch = sum(train.mixture.values()) or train.global_batch
    if batch < world_size:
        raise UserError(
            f"train.global_batch={batch} leaves some of {world_size} GPUs without a sample in every step; "
            f"use at least train.global_batch={world_size}, or at most {batch} GPUs"
        )
    if train.token_budget < train.max_tokens:
        raise UserError(
            f"train.token_budget={train.token_budget} does not hold a sample of "
            f"train.max_tokens={train.max_tokens}; use at least train.token_budget="
            f"{train.max_tokens}, or at most train.max_tokens={train.token_budget}"
        )


def _alternatives(train: schema.Train, gpus: int) -> list[tuple[str, schema.Train, int]]:
    """Alternatives to try, the mildest first: (command-line overrides, settings, GPUs)."""

    def changed(**values: Any) -> schema.Train:
        return dataclasses.replace(train, **values)

    tried = [
        ("train.checkpointing=full", changed(checkpointing="full"), gpus),
        (f"train.token_budget={train.max_tokens}", changed(token_budget=train.max_tokens), gpus),
        ("train.zero=3", changed(zero=3), gpus),
    ]
    every = changed(zero=3, checkpointing="full", token_budget=train.max_tokens)
    all_of_them = f"train.zero=3 train.checkpointing=full train.token_budget={train.max_tokens}"
    tried.append((all_of_them, every, gpus))
    tried += [(f"{all_of_them} on {gpus * times} GPUs", every, gpus * times) for times in (2, 4, 8)]
    return [(overrides, new, count) for overrides, new, count in tried if (new, count) != (train, gpus)]


def _bytes(train: schema.Train) -> int:
    """Of one weight in the forward pass."""
    return 2 if train.precision == "bf16" else 4


def _learning(train: schema.Train, sizes: Sizes) -> int:
    """Parameters that learn; of adapters, `rank` for each input and output of the tuned parts' linear layers."""
    if train.adapter.kind == "none":
        return sum(count for part, count in sizes.parts.items() if part in train.tune)
    c, h, kv = sizes.vision_width, sizes.width, sizes.width // sizes.heads * sizes.kv_heads
    r = 3 if sizes.projector.endswith("3x3_fix") else 2
    joined, inner = r * r * c * sizes.scales, 3 * c * sizes.scales
    ends = {
        "vision_tower": (sizes.vision_layers - 1) * (4 * 2 * c + 2 * (c + sizes.vision_mlp)),
        "projector": 2 * h + (joined + h if r == 2 else joined + 2 * inner + h),
        "llm": sizes.layers * (2 * 2 * h + 2 * (h + kv) + 3 * (h + sizes.mlp)),
    }
    return train.adapter.rank * sum(count for part, count in ends.items() if part in train.tune)


def _quantised(train: schema.Train) -> bool:
    return train.adapter.kind != "none" and train.adapter.base_bits < 16


def _linear(train: schema.Train, sizes: Sizes) -> int:
    """Weights of the linear layers that get adapters."""
    c, h, kv = sizes.vision_width, sizes.width, sizes.width // sizes.heads * sizes.kv_heads
    r = 3 if sizes.projector.endswith("3x3_fix") else 2
    joined, inner = r * r * c * sizes.scales, 3 * c * sizes.scales
    counts = {
        "vision_tower": (sizes.vision_layers - 1) * (4 * c * c + 2 * c * sizes.vision_mlp),
        "projector": h * h + (joined * h if r == 2 else joined * inner + inner * h),
        "llm": sizes.layers * (2 * h * h + 2 * h * kv + 3 * h * sizes.mlp),
    }
    return sum(count for part, count in counts.items() if part in train.tune)


def _saved(train: schema.Train, sizes: Sizes) -> int:
    """Parameters in a checkpoint: all, or the adapters alone."""
    return sizes.total if train.adapter.kind == "none" else _learning(train, sizes)


def _memory(train: schema.Train, gpus: int, nodes: int, sizes: Sizes, workload: Workload) -> dict[str, float]:
    width, learning = _bytes(train), _learning(train, sizes)
    weights: float = width * sizes.total
    if _quantised(train):
        weights -= (width - QUANTISED_BYTES[train.adapter.base_bits]) * _linear(train, sizes)
    stage = int(train.zero)
    if stage == 3:  # the shard, and what is gathered while one layer works and the next is fetched
        own = weights / gpus + (weights * nodes / gpus if train.node_shards is True and nodes > 1 else 0)
        weights = own + width * (2 * sizes.layer + sizes.vocabulary * sizes.width)
    gradients = width * learning / (gpus if stage >= 2 else 1)
    # In float32 the weights are their own master.
    optimizer = (12 if width == 2 else 8) * learning / (gpus if stage >= 1 else 1)
    tokens = train.token_budget
    tiles = tokens / workload.image_tokens * workload.tiles
    saved, in_layer = _activations(train, sizes, tokens, tiles)
    joined = 2 * width * tiles * sizes.patches * sizes.vision_width * sizes.scales
    supervised = (
        tokens
        / (workload.image_tokens * workload.images / _sharing(train, workload) + workload.text_tokens)
        * workload.answer_tokens
    )
    logits = supervised * sizes.vocabulary * (width + 4 + 4)
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": saved + in_layer + joined,
        "logits": logits,
    }
    return {**{name: value / 1e9 for name, value in parts.items()}, "reserve": RESERVE_GB}


def _activations(train: schema.Train, sizes: Sizes, tokens: float, tiles: float) -> tuple[float, float]:
    """Bytes that all layers keep for the backward pass, and that one of them takes while it is recomputed."""
    frozen = "vision_tower" not in train.tune  # it keeps nothing: no gradient passes through it
    rank = 0 if train.adapter.kind == "none" else train.adapter.rank
    compiled = train.compiled is True

    def layers(checkpointing: str) -> tuple[float, float]:
        kv = sizes.width // sizes.heads * sizes.kv_heads
        llm = activations.language_layer(
            checkpointing, width=sizes.width, kv=kv, mlp=sizes.mlp, size=_bytes(train), rank=rank, compiled=compiled
        )
        tower = activations.vision_layer(
            checkpointing, width=sizes.vision_width, mlp=sizes.vision_mlp, size=_bytes(train), rank=rank,
            compiled=compiled,
        )  # fmt: skip
        return tokens * llm, sizes.patches * tower

    llm, tile = layers(train.checkpointing)
    saved = llm * sizes.layers + (0.0 if frozen else tile * tiles * sizes.vision_layers)
    if train.checkpointing == "none":
        return saved, 0.0
    llm, tile = layers("none")
    at_once = tiles if train.zero == 3 else min(64, tiles)
    return saved, max(llm, at_once * tile)


def _sharing(train: schema.Train, workload: Workload) -> float:
    """Samples that share one set of images."""
    most = workload.samples / workload.image_sets
    return max(1.0, min(most, train.questions_per_image or most)) if train.shared_prefix else 1.0


def matrix_flops(train: schema.Train, sizes: Sizes, tokens: float, tiles: float) -> float:
    """Of the weights in a forward and backward pass: 6 a weight and token, 4 under adapters, 2 in a frozen tower.

    Attention is left out. `tokens` of the language model, pictures' included; `tiles` that the tower sees.
    """
    whole = 6 if train.adapter.kind == "none" else 4  # a frozen weight has no gradient, its input still has
    llm = whole * tokens * (sizes.llm - sizes.vocabulary * sizes.width)
    tower = (whole if "vision_tower" in train.tune else 2) * tiles * sizes.patches * sizes.vision_tower
    return llm + tower


def _flops(train: schema.Train, sizes: Sizes, workload: Workload, sharing: float) -> float:
    """Of a token's forward and backward passes, tower and attention included; recomputation is not counted.

    `sharing`: samples that share one set of images.
    """
    images = workload.images / sharing
    tokens = images * workload.image_tokens + workload.text_tokens
    length = workload.images * workload.image_tokens + workload.text_tokens
    tiles = images * workload.tiles
    between_tokens = 6 * tokens * length * sizes.width * sizes.layers
    backward = 3 if "vision_tower" in train.tune else 1
    between_patches = 4 * backward * tiles * sizes.patches**2 * sizes.vision_width * sizes.vision_layers
    projector = 6 * images * workload.image_tokens * sizes.mm_projector
    return (matrix_flops(train, sizes, tokens, tiles) + between_tokens + between_patches + projector) / tokens
