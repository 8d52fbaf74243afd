"""Resolves the settings of a training that are `auto`, on its GPUs and equally on all ranks."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks, gather_json
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.config_files import read_config
from lumen_hpc.scratch import use_private_cache
from lumen_hpc.training import compile_trial, occupancy, sequence_parallel, sizing
from lumen_hpc.training.folder import stored_fingerprint
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.record_index import RecordIndex
from lumen_hpc.watchdog import Beat

log = logging.getLogger(__name__)


class Auto:
    """Resolves them in the order in which a training learns what it needs: GPU memory, the compiler, the records."""

    def __init__(self, settings: schema.Train, base: Path, out: Path, ranks: Ranks) -> None:
        """`settings`: as the user gave them; `base`: folder of the pretrained NVILA; `out`: folder of the training."""
        self._settings, self._base, self._out, self._ranks = settings, base, out, ranks
        self._sizes = Sizes.read(base)
        gpu = torch.cuda.get_device_properties(ranks.local_rank) if torch.cuda.is_available() else None
        self._memory_gb = gpu.total_memory / 1e9 if gpu is not None else 0.0

    def resolve_memory(self) -> schema.Train:
        """The settings with every `auto` about memory resolved for this GPU; a begun training keeps its ZeRO stage."""
        train = self._settings
        if train.zero == "auto":
            initial_stage = (stored_fingerprint(self._out) or {}).get("train.zero")
            train = dataclasses.replace(train, zero=initial_stage if isinstance(initial_stage, int) else "auto")
        resolved = self._resolve(train)
        if resolved != train and self._ranks.first:
            names = ("zero", "checkpointing", "node_shards")
            log.info(", ".join(f"train.{name}={getattr(resolved, name)}" for name in names))
        return resolved

    def _resolve(self, train: schema.Train) -> schema.Train:
        ranks = self._ranks
        return sizing.resolve(train, ranks.world_size, self._memory_gb, nodes=ranks.nodes, sizes=self._sizes)

    def resolve_compiled(self, train: schema.Train, beat: Beat) -> schema.Train:
        """The settings with `train.compiled=auto` resolved: plain layers if any rank cannot compile."""
        if train.compiled == "auto":
            beat("trying the compiler")
            reasons = [reason for reason in gather_json(self._reason_for_plain_layers(train)) if reason]
            if reasons and self._ranks.first:
                log.info("plain layers: %s", reasons[0])
            train = dataclasses.replace(train, compiled=not reasons)
        if train.compiled and train.attention == "auto" and torch.cuda.is_available():
            train = dataclasses.replace(train, attention="flex")
        if train.compiled:
            use_private_cache()
        return train

    def resolve_sequence_parallel(self, train: schema.Train, index: RecordIndex, seed: int) -> schema.Train:
        """The settings with `train.sequence_parallel=auto` resolved from the records' layout, equally at every start.

        Activations then take less memory, so `auto` for recomputation is resolved again. Raises UserError for a number
        that does not fit the ranks or the model.
        """
        ranks, group_size = self._ranks, train.ranks_a_micro_batch
        if train.sequence_parallel == "auto" and torch.cuda.is_available():
            steps = occupancy.sampled_steps(vars(index), train, seed)
            group_size = occupancy.choose_group_size(
                steps, train, ranks.world_size, self._sizes.heads, nodes=ranks.nodes
            )
        if group_size > 1 and (reason := sequence_parallel.node_crossing(group_size)):
            fix = "number the ranks node by node (srun --distribution=block)"
            if train.sequence_parallel != "auto":
                raise UserError(
                    f"train.sequence_parallel={group_size}: {reason}; {fix}, or use train.sequence_parallel=1"
                )
            log.warning(
                "train.sequence_parallel=auto stays 1, where %d would be faster: %s; %s", group_size, reason, fix
            )
            group_size = 1
        train = dataclasses.replace(train, sequence_parallel=group_size)
        sizing.check_parallel(train, ranks.world_size, ranks.nodes, self._sizes)
        if group_size > 1:
            resolved = self._resolve(dataclasses.replace(self._settings, zero=train.zero, sequence_parallel=group_size))
            train = dataclasses.replace(train, checkpointing=resolved.checkpointing, node_shards=resolved.node_shards)
            if ranks.first:
                log.info("train.sequence_parallel=%d: that many ranks compute each micro-batch together", group_size)
        return train

    def require_fit(self, train: schema.Train) -> None:
        """Raises UserError, with settings that would fit, if by the plan these exceed the GPU's memory."""
        ranks = self._ranks
        if self._memory_gb:
            sizing.check_fit(train, ranks.world_size, self._memory_gb, nodes=ranks.nodes, sizes=self._sizes)

    def _reason_for_plain_layers(self, train: schema.Train) -> str:
        """Why this rank does not compile layers; empty if a trial succeeded."""
        if train.quantised:
            return f"train.adapter.base_bits={train.adapter.base_bits}"
        if train.adapter.kind != "none" and train.zero == 3:
            return "adapters under train.zero=3"
        if not torch.cuda.is_available():
            return "there is no GPU"
        if train.attention not in ("auto", "flex"):
            return f"train.attention={train.attention}"
        return compile_trial.reason_for_plain_layers(train, read_config(self._base))
