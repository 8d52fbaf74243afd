"""SigLIP's patch embedding as one matrix product instead of a convolution; weights and results are the same."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class PatchEmbedding(nn.Conv2d):
    """A convolution whose windows neither overlap nor leave gaps: a product of patches and weights.

    An H200 has no convolution kernel for windows of 14 px: one for 68 tiles takes 4.4 ms. Its result would also be laid
    out by channels, but each layer's norms read it by patches.
    """

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, S, S] to [n, C, S / patch, S / patch], laid out by patches."""
        n, _, height, width = pixels.shape
        down, across = self.kernel_size
        rows, columns = height // down, width // across
        pixels = pixels[..., : rows * down, : columns * across]
        patches = pixels.unflatten(3, (columns, across)).unflatten(2, (rows, down)).permute(0, 2, 4, 1, 3, 5)
        embedded = F.linear(patches.reshape(n, rows, columns, -1), self.weight.flatten(1), self.bias)
        return embedded.permute(0, 3, 1, 2)


def embed_by_product(tower: nn.Module) -> None:
    """Make a tower's patch embedding a `PatchEmbedding`."""
    getattr(tower, "vision_model", tower).embeddings.patch_embedding.__class__ = PatchEmbedding
