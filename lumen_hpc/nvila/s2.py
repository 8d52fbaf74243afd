"""Joins tiles to mosaics, and scales (dynamic S2).

Rules of NVlabs/VILA `llava/model/llava_arch.py`: merge_chessboard, split_chessboard, merge_features_for_dynamic_s2.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch.nn import functional as F

from .config import Block, NVILAConfig


def tile_side(tokens: int) -> int:
    """Side of a square map of `tokens` places."""
    side = isqrt(tokens)
    assert side * side == tokens, tokens
    return side


def mosaic(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Lay tiles out row by row: [rows·columns, side², C] -> [1, C, rows·side, columns·side]."""
    side, channels = tile_side(tiles.shape[1]), tiles.shape[2]
    grid = tiles.view(rows, columns, side, side, channels).permute(4, 0, 2, 1, 3)
    return grid.reshape(1, channels, rows * side, columns * side)


def cut(image: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Undo `mosaic`: [1, C, H, W] -> [rows·columns, (H/rows)·(W/columns), C]."""
    _, channels, height, width = image.shape
    grid = image.view(channels, rows, height // rows, columns, width // columns).permute(1, 3, 2, 4, 0)
    return grid.reshape(rows * columns, -1, channels)


def join_scales(
    features: torch.Tensor, blocks: Sequence[Block], config: NVILAConfig
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Put the scales of each picture side by side in the channels.

    features: [all tiles, side², C] in the order of `preprocess` (coarse scales first). Returns
    [all output tiles, side², C·scales] and each picture's (rows, columns) of output tiles. Scales are resized to
    the output scale by area averaging in float32. A picture of one tile repeats its map for every scale.
    """
    scales, joined_maps, grids, start = config.scales, [], [], 0
    for block in blocks:
        if block is None:
            joined_maps.append(features[start : start + 1].repeat(1, 1, len(scales)))
            grids.append((1, 1))
            start += 1
            continue
        maps = []
        for rows, columns in [(s // scales[0],) * 2 for s in scales[:-1]] + [block]:
            maps.append(mosaic(features[start : start + rows * columns], rows, columns))
            start += rows * columns
        size = maps[config.s2_output].shape[-2:]
        resized = [F.interpolate(m.float(), size=size, mode="area").to(m.dtype) for m in maps]
        grids.append(config.output_block(block))
        joined_maps.append(cut(torch.cat(resized, dim=1), *grids[-1]))
    assert start == len(features), f"{start} tiles are described by the blocks, {len(features)} are given"
    return torch.cat(joined_maps), grids


def flatten(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """One picture's projected tiles as a row-major sequence: [rows·columns, n, D] -> [rows·columns·n, D]."""
    return mosaic(tiles, rows, columns).flatten(2)[0].T
