"""NVILA as the training loop sees it: the parts that are trained, and the loss of every supervised token."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from lumen_hpc.config import schema
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import NVILA, Batch, layers
from lumen_hpc.nvila.group import SingleProcess
from lumen_hpc.nvila.tower_cache import TowerCache
from lumen_hpc.training import adapters
from lumen_hpc.training.accelerator import deepspeed
from lumen_hpc.training.samples import MicroBatch

log = logging.getLogger(__name__)
ALL_TILES = 1 << 20
"""Tiles per call of the tower under ZeRO-3. Each call gathers weights, so all ranks must make the same number of calls:
one, on which they need not agree within a step."""


class Learner(torch.nn.Module):
    """NVILA with the parts in `train.tune` trainable.

    The tower's layers after the selected one are not run; they stay frozen, as in the official code, and are saved
    unchanged.
    """

    def __init__(self, model: NVILA, train: schema.Train, *, seed: int = 0, group: SingleProcess | None = None) -> None:
        """`train` has no `auto` about memory (`sizing.resolve`); `seed`: of new adapters; `group`: ranks that compute
        each micro-batch together.

        Raises UserError for parts that do not exist.
        """
        super().__init__()
        tune = train.tune
        if unknown_parts := sorted(set(tune) - set(model.parts)):
            raise UserError(f"train.tune={list(tune)}: no part {unknown_parts[0]}; use some of {sorted(model.parts)}")
        if not tune:
            raise UserError(f"train.tune is empty, so nothing would learn; use some of {sorted(model.parts)}")
        self.model = model.train()
        if group is not None:
            model.group = group
        model.requires_grad_(False)
        for part in tune:
            model.parts[part].requires_grad_(True)
        for module in _modules_after_selected(model):
            module.requires_grad_(False)
        if train.adapter.kind == "lora":
            adapters.inject(model, train, seed)
        if (
            train.cache_images_gb
            and _is_deterministic(model.vision_tower)
            and not torch.cuda.is_available()
            and train.zero != 3
        ):
            model.tower_cache = TowerCache(train.cache_images_gb)
        self.quantised = train.quantised
        compiled = train.compiled is True
        if compiled and self.quantised:
            raise UserError("train.compiled=true does not compile layers of train.adapter.base_bits=8 or 4; use auto")
        if compiled and train.adapter.kind != "none" and train.zero == 3:
            # In a compiled backward pass DeepSpeed has already released the frozen weights.
            raise UserError("train.compiled=true does not compile adapters under train.zero=3; use zero=1, 2 or auto")
        model.prepare_layers(train.checkpointing, compiled=compiled)
        self._compiled_lengths: set[int] | None = set() if compiled else None
        if train.zero == 3:
            model.tiles_at_once = ALL_TILES
            model.sync_tower_calls = lambda calls: 1
            if compiled:  # a layer is gathered whole, outside its graph
                deepspeed.utils.set_z3_leaf_modules(
                    model, list({type(layer) for part in layers.layers(model).values() for layer in part})
                )

    def forward(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Negative log-likelihood of each supervised token, float32 [tokens], in the order of `micro.samples`.

        If ranks divide the micro-batch, only of the tokens that this rank's positions predict (`Batcher`).
        """
        batch, model = micro_batch.batch, self.model
        group = model.group
        self._log_new_length(batch)
        embeds, _ = model.embed(batch)
        plan = group.attention_plan(model.attention_plan(batch))
        places = batch.predictors - group.first_position(batch.token_ids.shape[1])
        predicts_nothing = not len(places)
        if predicts_nothing:  # yet every weight must take part, as on the other ranks
            places = torch.zeros(1, dtype=torch.int64, device=places.device)
        hidden = model.decode(group.own_part(embeds, 1), group.own_part(batch.position_ids, 1), plan, places)
        logits = model.llm.lm_head(hidden).float()
        if predicts_nothing:
            return logits.sum(-1)[:0]
        return F.cross_entropy(logits, batch.labels.flatten()[batch.learned], reduction="none")

    def _log_new_length(self, batch: Batch) -> None:
        """Logs the first micro-batch of each length, for which layers are compiled."""
        length = batch.token_ids.shape[1]
        if self._compiled_lengths is not None and length not in self._compiled_lengths:
            self._compiled_lengths.add(length)
            if not dist.is_initialized() or dist.get_rank() == 0:
                log.info("compiling layers for %d tokens: this micro-batch takes some 15 s longer", length)

    def renamed_for_export(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """A state with NVILA's own parameter names."""
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def _is_deterministic(tower: torch.nn.Module) -> bool:
    """Whether a tower gives a tile the same features at every step: it is frozen and has no dropout."""
    frozen = not any(parameter.requires_grad for parameter in tower.parameters())
    return frozen and not tower.config.attention_dropout


def _modules_after_selected(model: NVILA) -> list[torch.nn.Module]:
    """The tower's modules that the selected hidden state does not need."""
    tower = getattr(model.vision_tower, "vision_model", model.vision_tower)
    layers = tower.encoder.layers
    return [*layers[model.config.select_layer % (len(layers) + 1) :], tower.post_layernorm]
