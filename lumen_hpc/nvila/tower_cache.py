"""What a frozen tower made of each tile, kept in memory: worth it where tiles are small and seen several times.

A tile's features have the same bits whatever tiles share its call, so that a training resumes the same with an empty
cache (tests/nvila/test_tower_cache.py).
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

    def of(self, tiles: torch.Tensor, compute: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
        """[N, patches², C] of uint8 [N, 1 or 3, S, S]; `compute` makes those at the places where none is kept."""
        keys = [sha256(tile.numpy().tobytes()).digest() for tile in tiles]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: place for place, key in enumerate(keys) if key not in found}
        if new:
            # Clones: a view would hold the whole call's features for as long as one of them is kept.
            found |= {key: made.clone() for key, made in zip(new, compute(list(new.values())))}
        for key in found:
            self._keep(key, found[key])
        return torch.stack([found[key] for key in keys])

    def _keep(self, key: bytes, features: torch.Tensor) -> None:
        if key not in self._kept:
            self._used += features.nbytes
        self._kept[key] = features
        self._kept.move_to_end(key)
        while self._used > self._limit:
            self._used -= self._kept.popitem(last=False)[1].nbytes
