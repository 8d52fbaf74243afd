"""Encodes pictures as language-model embeddings: the SigLIP tower, the joining of scales, the projector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .config import Block, NVILAConfig
from .group import SingleProcess
from .preprocess import normalise
from .s2 import flatten, join_scales
from .tower_cache import TowerCache


@dataclass
class Pictures:
    """The vision side's result for a batch of pictures; N tiles, M output tiles."""

    features: list[torch.Tensor]
    """[tokens, hidden_size] of each picture, without its closing newline."""
    pixels: torch.Tensor
    """[N, 3, S, S], the tower's input; of this process's tiles if processes divide them."""
    hidden: torch.Tensor
    """[N, patches², C], the selected hidden state."""
    proj_in: torch.Tensor
    """[M, patches², mm_hidden_size]."""
    proj_out: torch.Tensor
    """[M, tokens, hidden_size]."""
    zero: torch.Tensor
    """A zero whose backward pass runs through the calls that only other processes need."""


def tower_hidden(tower: nn.Module, pixels: torch.Tensor, select_layer: int) -> torch.Tensor:
    """The tower's hidden state `select_layer`, counted as in transformers: 0 is the patch embedding.

    pixels [n, 3, S, S] -> [n, patches², C]. Layers after the selected one are not run: they are loaded and saved,
    and never learn, as in the official code.
    """
    tower = getattr(tower, "vision_model", tower)
    layers = tower.encoder.layers
    x = tower.embeddings(pixels)
    for layer in layers[: select_layer % (len(layers) + 1)]:
        x = layer(x, attention_mask=None)
    return x


def encode_pictures(
    tower: nn.Module,
    projector: nn.Module,
    tiles: torch.Tensor,
    blocks: Sequence[Block],
    config: NVILAConfig,
    tiles_at_once: int,
    sync_tower_calls: Callable[[int], int],
    group: SingleProcess | None = None,
    cache: TowerCache | None = None,
) -> Pictures:
    """Embed pictures; `tiles` uint8 [N, 1 or 3, S, S] in the order of `preprocess`, one block per picture.

    The tower takes `tiles_at_once` tiles per call. `sync_tower_calls` turns this process's number of calls into the
    number that every process makes (under ZeRO-3 each call gathers weights, so the numbers must match). The additional
    calls take one blank tile, whose features are multiplied by zero (`zero`, to be added to the embeddings), so that
    their backward pass runs, too. `group`: the processes with the same `tiles`, which divide them and join their
    features. `cache`: of a frozen tower's features, if processes need not agree on calls.
    """
    weight = next(projector.parameters())
    group = group or SingleProcess()
    own_tiles = group.own_part(tiles)
    pixels = normalise(own_tiles.to(weight.device), weight.dtype)
    own_calls = -(-len(pixels) // tiles_at_once)
    calls = sync_tower_calls(own_calls)

    def hidden_of(part: torch.Tensor) -> torch.Tensor:
        return tower_hidden(tower, part, config.select_layer)

    blank = pixels.new_zeros(1, 3, config.image_size, config.image_size)
    zero = pixels.new_zeros(())
    for _ in range(own_calls, calls):
        zero = zero + hidden_of(blank).sum() * 0
    if not own_calls:
        no_features = pixels.new_zeros(0, config.patches**2, config.mm_hidden_size)
        if calls:  # a batch of text: the projector must run, too
            zero = projector(no_features.new_zeros(1, *no_features.shape[1:]) + zero).sum() * 0
        return Pictures([], pixels, no_features, no_features, no_features, zero)
    if cache is None:
        hidden = torch.cat([hidden_of(part) for part in pixels.split(tiles_at_once)])
    else:
        hidden = cache.of(own_tiles, lambda place: hidden_of(pixels[place : place + 1])[0])
    features = group.join(hidden, len(tiles))
    joined, grids = join_scales(features, blocks, config) if config.s2 else (features, [(1, 1)] * len(features))
    projected = group.join(projector(group.own_part(joined)), len(joined))
    pictures = projected.split([rows * columns for rows, columns in grids])
    flat = [flatten(picture, *grid) for picture, grid in zip(pictures, grids)]
    return Pictures(flat, pixels, features, joined, projected, zero)
