"""Measures the loss on held-out records at checkpoints, for metrics.jsonl; the training itself is not affected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import Preprocessor
from lumen_hpc.training import record_index
from lumen_hpc.training.deepspeed_engine import Engine
from lumen_hpc.training.layout import pack_sequences, sequences
from lumen_hpc.training.record_index import RecordIndex
from lumen_hpc.training.token_kinds import TokenKinds
from lumen_hpc.watchdog import Beat, unwatched

log = logging.getLogger(__name__)
LOSS = "validation_loss"
"""Its key in a row of metrics.jsonl."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out records, and what packs them (`loop.Batcher`)."""

    index: RecordIndex
    batcher: Any


def evenly_spaced(records: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` records at even distances, or all of them."""
    if len(records) <= count:
        return [records[row] for row in range(len(records))]
    return [records[row * len(records) // count] for row in range(count)]


def hold_out(
    records: Sequence[dict[str, Any]],
    preprocessor: Preprocessor,
    batcher: Callable[[Sequence[dict[str, Any]], RecordIndex], Any],
    ranks: Ranks,
    *,
    max_tokens: int,
    folder: Path,
    version: str,
) -> HeldOut | None:
    """The usable ones of these records; None if there are none. Bad ones are left out and never stop a training.

    `batcher` creates what packs them; the other arguments are those of `record_index.build`.
    """
    if not records:
        return None
    if ranks.first:
        folder.mkdir(exist_ok=True)
    dist.barrier()
    try:
        index = record_index.build(
            records, preprocessor, ranks, max_tokens=max_tokens, on_bad="skip", folder=folder,
            version=f"{version} {len(records)}",
        )  # fmt: skip
    except UserError as error:
        if ranks.first:
            log.warning("no validation loss: %s", error)
        return None
    return HeldOut(index, batcher(records, index)) if index is not None else None


def measure_losses(
    held_out: HeldOut,
    engine: Engine,
    train: schema.Train,
    ranks: Ranks,
    beat: Beat = unwatched,
) -> dict[str, float]:
    """`validation_loss`, of the form of the training loss (`train.loss`), and `validation_loss_KIND`, means per token.

    All ranks call it and get the same.
    """
    index, device = held_out.index, engine.ds.device
    kinds = TokenKinds(index.kinds, device)
    packed_sequences = sequences(
        range(len(index)), index.groups, index.prefix, index.suffix, budget=train.token_budget,
        shared=train.shared_prefix,
    )  # fmt: skip
    group_size = train.ranks_a_micro_batch
    micro_batches = pack_sequences(packed_sequences, ranks.world_size // group_size, train.token_budget)[
        ranks.rank // group_size
    ]
    sums = torch.zeros(2, len(kinds.names), dtype=torch.float64, device=device)
    # Layers were compiled with gradients; without, they would be compiled again for every length.
    no_gradients = nullcontext() if train.compiled or train.attention == "flex" else torch.no_grad()
    engine.ds.eval()
    try:
        with ThreadPoolExecutor(train.workers) as pool, no_gradients:
            for micro_batch in pool.map(held_out.batcher.build, micro_batches):
                beat()
                micro_batch = micro_batch.to(device)
                nll = engine(micro_batch).detach().double()
                kind = kinds.of(micro_batch)
                sums[0].index_add_(0, kind, nll)
                sums[1].index_add_(0, kind, torch.ones_like(nll))
    finally:
        engine.ds.train()
    dist.all_reduce(sums)
    total, count = sums.tolist()
    by_kind = {f"{LOSS}_{kind}": a / b for kind, a, b in zip(kinds.names, total, count, strict=True) if b}
    loss = sum(by_kind.values()) if train.loss == "kinds" else sum(total) / sum(count)
    return {LOSS: loss, **by_kind}
