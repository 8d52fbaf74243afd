"""Tries whether a training's layers can be compiled here, on one micro-batch and one layer of each part of its model.

Compilers fail in ways that only the real graph shows: a build of torch without its tools, a kernel that is wrong on
this GPU, adapters whose compiled graph torch 2.11 cannot divide (one H200, 2026-11-28). So the trial has the
training's own widths, adapters and recomputation, and compares its results with those of plain layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lumen_hpc import nvila
from lumen_hpc.config import schema
from lumen_hpc.nvila import layers
from lumen_hpc.nvila.config import NVILAConfig
from lumen_hpc.nvila.tiny import train_tokenizer
from lumen_hpc.scratch import use_private_cache
from lumen_hpc.training.learner import Learner
from lumen_hpc.training.samples import MicroBatch

QUESTIONS = ("Is there an effusion in the left lung?", "Is there edema?")
ANSWER = "No finding is seen."


def reason_for_plain_layers(
    train: schema.Train, config: NVILAConfig, *, device: str = "cuda", backend: Any = layers.BACKEND
) -> str:
    """Why the layers of `config` should stay plain; empty if they can be compiled.

    `train` has no `auto` about memory. Losses and gradients must agree; gradients of adapters only roughly, since
    compiled layers draw other dropout masks.
    """
    use_private_cache()
    settings = dataclasses.replace(train, zero=1, sequence_parallel=1, cache_images_gb=0.0)
    try:
        with torch.random.fork_rng():
            plain, compiled = (
                _losses_and_gradients(settings, config, device, is_compiled, backend) for is_compiled in (False, True)
            )
    except Exception as error:  # whatever a compiler does without its tools
        return f"layers cannot be compiled here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    tolerance = 5e-2 if train.precision == "bf16" else 1e-4
    limits = (tolerance, tolerance if train.adapter.kind == "none" else 0.5)
    for name, limit, a, b in zip(("losses", "gradients"), limits, plain, compiled):
        if not (distance := float((a - b).norm() / a.norm())) < limit:
            return f"{name} of compiled layers differ from those of plain ones by {distance:.2g} of their size"
    return ""


def _losses_and_gradients(
    train: schema.Train, config: NVILAConfig, device: str, compiled: bool, backend: Any
) -> list[torch.Tensor]:
    """float32 [supervised tokens], and the gradients of all weights, flattened and concatenated."""
    kernel = "flex" if compiled else "sdpa"
    model = _small_model(config, kernel, torch.bfloat16 if train.precision == "bf16" else torch.float32, device)
    learner = Learner(model, dataclasses.replace(train, compiled=False))
    model.prepare_layers(train.checkpointing, compiled=compiled, backend=backend)
    one, two = ([(question, ANSWER) for question in QUESTIONS[:count]] for count in (1, 2))
    side = config.image_size
    batch = random_batch(model, [two, one], (side, side), multiple=128).to(torch.device(device))
    of_token = torch.zeros(batch.supervised, dtype=torch.int64)
    losses = learner(MicroBatch(batch, of_token, of_token.bool(), batch.tokens))
    losses.sum().backward()
    gradients = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return [losses.detach(), torch.cat(gradients)]


def _small_model(config: NVILAConfig, kernel: str, dtype: torch.dtype, device: str) -> nvila.NVILA:
    """Random weights at the widths of `config`: one layer of the language model, the tower's fewest possible."""
    tokenizer = train_tokenizer([*QUESTIONS, ANSWER])
    vocabulary = tokenizer.backend.get_vocab_size(with_added_tokens=True)
    cleared_keys = dict.fromkeys(("layer_types", "pad_token_id", "bos_token_id", "eos_token_id"))  # of the whole model
    small = dataclasses.replace(
        config,
        llm=config.llm | cleared_keys | {"num_hidden_layers": 1, "vocab_size": vocabulary},
        vision_tower=config.vision_tower | {"num_hidden_layers": max(2, -config.select_layer, config.select_layer)},
    )
    default_dtype = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            return nvila.NVILA(small, tokenizer, kernel=kernel)
        finally:
            torch.set_default_dtype(default_dtype)


def random_batch(
    model: nvila.NVILA, dialogues: Sequence[Sequence[tuple[str, str]]], shape: tuple[int, int], *, multiple: int = 1
) -> nvila.Batch:
    """A packed batch of random pictures, each with its (question, answer) pairs; `shape`: a picture's [H, W] in px."""
    rng = np.random.default_rng(0)
    groups = []
    for dialogue in dialogues:
        picture = rng.integers(256, size=shape, dtype=np.uint8)
        turns = [
            [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            for question, answer in dialogue
        ]
        records = [{"images": [picture], "conversations": turn} for turn in turns]
        groups.append(model.preprocess(records, inline=True, exact=False).samples)
    return nvila.pack(groups, multiple=multiple)
