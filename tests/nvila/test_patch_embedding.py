"""A product of patches gives what the convolution gives, with the same weights."""

from __future__ import annotations

import torch
from torch import nn

from lumen_hpc.nvila.patch_embedding import PatchEmbedding
from lumen_hpc.nvila.tiny import make_tiny


def embeddings():
    tower = make_tiny(["a text"], width=32, layers=1, vision_width=32, vision_layers=3).vision_tower
    return getattr(tower, "vision_model", tower).embeddings


def value_and_gradients(module, x, weight):
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = module(x)
    (out * weight).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad.clone() for parameter in module.parameters())]


def test_a_patch_embedding_is_the_convolution():
    embedding = embeddings().patch_embedding
    assert type(embedding) is PatchEmbedding
    x, weight = torch.randn(3, 3, 64, 64), torch.randn(3, 32, 8, 8)
    found = value_and_gradients(embedding, x, weight)
    embedding.__class__ = nn.Conv2d
    for ours, theirs in zip(found, value_and_gradients(embedding, x, weight), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_patches_lie_as_the_layers_read_them():
    assert embeddings()(torch.randn(2, 3, 64, 64)).is_contiguous()


def test_a_picture_that_no_patch_fills_loses_its_edge_as_in_a_convolution():
    embedding = PatchEmbedding(3, 8, kernel_size=5, stride=5)
    x = torch.randn(1, 3, 13, 17)
    assert torch.allclose(embedding(x), nn.functional.conv2d(x, embedding.weight, embedding.bias, 5), atol=1e-5)
