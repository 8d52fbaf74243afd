import torch

from lumen_hpc.nvila.cards import cards
from lumen_hpc.nvila.s2 import cut, flatten, join_scales, mosaic


def test_a_mosaic_has_its_tiles_row_by_row_and_is_undone_by_cutting():
    tiles = torch.arange(2 * 3 * 4 * 5.0).view(6, 4, 5)
    whole = mosaic(tiles, 2, 3)
    assert whole.shape == (1, 5, 4, 6)
    # The upper left patch of the tile in row 1, column 2.
    assert torch.equal(whole[0, :, 2, 4], tiles[5, 0])
    assert torch.equal(cut(whole, 2, 3), tiles)
    assert torch.equal(flatten(tiles, 2, 3)[2 * 6 + 4], tiles[5, 0])


def test_coarse_scales_are_averaged_over_the_area_they_cover():
    config = cards()["NVILA-8B"]
    one, four, twelve = torch.full((1, 4, 1), 1.0), torch.full((4, 4, 1), 2.0), torch.full((12, 4, 1), 3.0)
    joined, grids = join_scales(torch.cat([one, four, twelve]), [(4, 3)], config)
    assert grids == [(4, 3)]
    assert joined.shape == (12, 4, 3)
    assert torch.equal(joined, torch.tensor([1.0, 2.0, 3.0]).expand(12, 4, 3))


def test_a_picture_of_one_tile_repeats_its_map():
    two = torch.randn(2, 4, 2)
    joined, grids = join_scales(two, [None, None], cards()["NVILA-8B"])
    assert grids == [(1, 1), (1, 1)]
    assert torch.equal(joined, torch.cat([two] * 3, dim=2))


def test_pictures_do_not_mix():
    torch.manual_seed(0)
    config = cards()["NVILA-8B"]
    first, second = torch.randn(17, 4, 2), torch.randn(14, 4, 2)
    both, _ = join_scales(torch.cat([first, second]), [(4, 3), (3, 3)], config)
    assert torch.equal(both[:12], join_scales(first, [(4, 3)], config)[0])
    assert torch.equal(both[12:], join_scales(second, [(3, 3)], config)[0])
