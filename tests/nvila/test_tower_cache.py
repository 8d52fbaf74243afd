"""A frozen tower's features are computed once a tile, and nothing else changes."""

from __future__ import annotations

import torch

from lumen_hpc.nvila import pad
from lumen_hpc.nvila.preprocess import normalise
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.nvila.tower_cache import TowerCache
from lumen_hpc.nvila.vision import tower_hidden

TILES = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 4, 4)


class Tower:
    """A stand-in whose features are a tile's grey level, 1 KiB a tile; it notes the places that it was called for."""

    def __init__(self, tiles: torch.Tensor) -> None:
        self.tiles, self.calls = tiles, []

    def __call__(self, places: list[int]) -> torch.Tensor:
        self.calls.append(places)
        return self.tiles[places, 0, 0, 0].float().view(-1, 1, 1).expand(-1, 16, 16)


def test_each_tile_is_computed_once_and_found_in_its_place():
    cache = TowerCache(1.0)
    for chosen, computed in (([0, 1, 2], [0, 1, 2]), ([2, 3, 0, 3], [3]), ([1, 3], None)):
        tower = Tower(TILES[chosen])
        assert cache.of(tower.tiles, tower)[:, 0, 0].tolist() == chosen
        assert tower.calls == ([computed] if computed else [])


def test_memory_is_bounded_and_what_was_used_last_stays():
    cache = TowerCache(3 * 1024 / 2**30)
    for chosen, computed in (([0, 1, 2], [0, 1, 2]), ([0], None), ([3], [0]), ([0, 2, 3], None), ([1], [0])):
        tower = Tower(TILES[chosen])
        assert cache.of(tower.tiles, tower)[:, 0, 0].tolist() == chosen  # also where none of them could stay
        assert tower.calls == ([computed] if computed else [])
        assert sum(kept.untyped_storage().nbytes() for kept in cache._kept.values()) <= 3 * 1024


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
    for _ in range(3):
        assert all(map(torch.equal, plain, results()))
    assert len(calls) == 1


def test_a_tiles_features_have_the_same_bits_whatever_shares_its_call():
    tower = make_tiny(["sizes of the demo"]).vision_tower
    pixels = normalise(
        torch.randint(256, (20, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    with torch.no_grad():
        whole = tower_hidden(tower, pixels, -2)
        for together in (1, 3, 8):
            parts = [tower_hidden(tower, part, -2) for part in pixels.split(together)]
            assert torch.equal(torch.cat(parts), whole)
