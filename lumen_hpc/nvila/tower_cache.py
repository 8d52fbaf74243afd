"""What a frozen tower made of each tile, kept in memory: worth it where tiles are small and seen several times.

Each tile is computed in a call of its own: matrix products may round otherwise where more rows share them, and a
training must resume with an empty cache to the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256

import torch


class TowerCache:
    """Features by the tile's pixels, in main memory up to `gb` [GiB]; the least recently used go first."""

    def __init__(self, gb: float) -> None:
        self._limit, self._used = int(gb * 2**30), 0
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def of(self, tiles: torch.Tensor, compute: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """[N, patches², C] of uint8 [N, 1 or 3, S, S]; `compute` makes those of the tile at a place."""
        found: list[torch.Tensor] = []
        for place, tile in enumerate(tiles):
            key = sha256(tile.numpy().tobytes()).digest()
            found.append(self._kept[key] if key in self._kept else compute(place))
            self._keep(key, found[-1])
        return torch.stack(found)

    def _keep(self, key: bytes, features: torch.Tensor) -> None:
        if key not in self._kept:
            self._used += features.nbytes
        self._kept[key] = features
        self._kept.move_to_end(key)
        while self._used > self._limit:
            self._used -= self._kept.popitem(last=False)[1].nbytes
