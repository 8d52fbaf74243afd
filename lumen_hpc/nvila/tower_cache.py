"""Caches a frozen tower's features in memory, which pays off for small tiles that are seen several times.

Each tile is computed in its own call: matrix products may round differently with more rows, and a training must resume
with an empty cache to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import torch

from lumen_hpc.recently_used import RecentlyUsed


class TowerCache:
    """Features by the tile's pixels, in main memory up to `gb` [GiB]; the least recently used are dropped first."""

    def __init__(self, gb: float) -> None:
        self._features: RecentlyUsed[torch.Tensor] = RecentlyUsed(gb)

    def of(self, tiles: torch.Tensor, compute: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """uint8 tiles [N, 1 or 3, S, S] -> [N, patches², C]; `compute` gives the features of the tile at a place."""
        result: list[torch.Tensor] = []
        for place, tile in enumerate(tiles):
            key = sha256(tile.numpy().tobytes()).digest()
            if (features := self._features.get(key)) is None:
                features = compute(place)
                self._features.keep(key, features)
            result.append(features)
        return torch.stack(result)
