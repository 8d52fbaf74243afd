"""Projects the tower's features to the language model's width: space to depth, then a small MLP.

Rules of NVlabs/VILA `llava/model/multimodal_projector/base_projector.py`; module numbers are the checkpoint's names.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .config import NVILAConfig
from .s2 import tile_side


class SpaceToDepth(nn.Module):
    """Join r x r neighbouring patches: [n, side², C] -> [n, ceil(side/r)², r²·C].

    A side that r does not divide is padded with zeros at the bottom and right. Channels are ordered by row offset,
    column offset, C.
    """

    def __init__(self, r: int) -> None:
        super().__init__()
        self.r = r

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, channels = x.shape
        r, side = self.r, tile_side(tokens)
        pad = -side % r
        x = F.pad(x.view(n, side, side, channels), (0, 0, 0, pad, 0, pad))
        side = (side + pad) // r
        return x.view(n, side, r, side, r, channels).permute(0, 1, 3, 2, 4, 5).reshape(n, side * side, -1)


class Projector(nn.Module):
    """`mlp_downsample` or `mlp_downsample_2x2_fix`, which have the same maths, or `mlp_downsample_3x3_fix`."""

    def __init__(self, config: NVILAConfig) -> None:
        super().__init__()
        r, width, out = config.downsample, config.mm_hidden_size, config.hidden_size
        joined_width = r * r * width
        layers: list[nn.Module] = [SpaceToDepth(r), nn.LayerNorm(joined_width)]
        if r == 2:
            layers += [nn.Linear(joined_width, out)]
        else:
            layers += [
                nn.Linear(joined_width, 3 * width),
                nn.GELU(),
                nn.LayerNorm(3 * width),
                nn.Linear(3 * width, out),
            ]
        self.layers = nn.Sequential(*layers, nn.GELU(), nn.Linear(out, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[tiles, patches², mm_hidden_size] -> [tiles, ceil(patches/r)², hidden_size]."""
        return self.layers(x)
