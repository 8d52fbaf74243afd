import pytest
import torch

from lumen_hpc.nvila.projector import SpaceToDepth


@pytest.mark.parametrize("side, r, tokens", [(32, 2, 256), (32, 3, 121), (5, 3, 4), (5, 2, 9)])
def test_neighbours_are_joined_row_offset_then_column_offset(side, r, tokens):
    channels = 2
    x = torch.arange(side * side * channels, dtype=torch.float32).view(1, side, side, channels)
    out = SpaceToDepth(r)(x.view(1, side * side, channels))
    assert out.shape == (1, tokens, r * r * channels)
    columns = -(-side // r)
    for row, column in [(0, 0), (columns - 1, columns - 1), (0, columns - 1)]:
        for i in range(r):
            for j in range(r):
                got = out[0, row * columns + column].view(r, r, channels)[i, j]
                inside = row * r + i < side and column * r + j < side
                want = x[0, row * r + i, column * r + j] if inside else torch.zeros(channels)
                assert torch.equal(got, want)
