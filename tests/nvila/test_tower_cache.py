"""A frozen tower's features are computed once a tile, and nothing else changes."""

from __future__ import annotations

import torch

from lumen_hpc.nvila import pad
from lumen_hpc.nvila.tower_cache import TowerCache

TILES = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 4, 4)


class Tower:
    """A stand-in whose features are a tile's grey level, 1 KiB a tile; it notes the places that it was called for."""

    def __init__(self, tiles: torch.Tensor) -> None:
        self.tiles, self.calls = tiles, []

    def __call__(self, place: int) -> torch.Tensor:
        self.calls.append(place)
        return torch.full((16, 16), float(self.tiles[place, 0, 0, 0]))


def test_each_tile_is_computed_once_and_found_in_its_place():
    cache = TowerCache(1.0)
    for chosen, computed in (([0, 1, 2], [0, 1, 2]), ([2, 3, 0, 3], [1]), ([1, 3], [])):
        tower = Tower(TILES[chosen])
        assert cache.of(tower.tiles, tower)[:, 0, 0].tolist() == chosen
        assert tower.calls == computed


def test_memory_is_bounded_and_what_was_used_last_stays():
    cache = TowerCache(3 * 1024 / 2**30)
    for chosen, computed in (([0, 1, 2], [0, 1, 2]), ([0], []), ([3], [0]), ([0, 2, 3], []), ([1], [0])):
        tower = Tower(TILES[chosen])
        assert cache.of(tower.tiles, tower)[:, 0, 0].tolist() == chosen  # also where none of them could stay
        assert tower.calls == computed
        assert sum(kept.untyped_storage().nbytes() for kept in cache._features.values()) <= 3 * 1024


def test_a_call_of_more_than_fits_is_whole():
    tower, cache = Tower(TILES), TowerCache(2 * 1024 / 2**30)
    assert cache.of(TILES, tower)[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_loss_and_gradients_are_those_without_a_cache(family, records):
    family.train().vision_tower.requires_grad_(False)
    batch = pad(family.preprocess(records).samples)
    calls = []
    family.vision_tower.embeddings.register_forward_hook(lambda *_: calls.append(1))

    def results():
        family.zero_grad()
        loss = family(batch).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in family.parameters() if p.grad is not None)]

    plain = results()
    family.tower_cache, calls[:] = TowerCache(1.0), []
    first = results()
    assert len(calls) == len(batch.tiles.unique(dim=0))
    for ours, theirs in zip(first, plain, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(map(torch.equal, first, results()))
    assert len(calls) == len(batch.tiles.unique(dim=0))
