"""Muon (Jordan and others, 2024) for the small models that `pretrain` trains: it needs under half of AdamW's steps.

A layer's matrix is updated by its momentum with all singular values near one, so that no direction learns much slower
than the others. AdamW updates everything else (embeddings, norms, biases, heads). Products are in float32, with all
matrices of a shape in one: PyTorch's own Muon computes in bfloat16, which processors without it emulate.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import nn

MOMENTUM, BETAS, DECAY = 0.95, (0.9, 0.98), 0.02
QUINTIC, ROUNDS = (3.4445, -4.7750, 2.0315), 5


class Muon:
    """Optimizes a model's trainable parameters; it reads gradients and does not clear them."""

    def __init__(self, model: nn.Module, matrix_rate: float, rate: float) -> None:
        """`matrix_rate`: step size in every direction of a matrix; `rate`: AdamW's. Both before the schedule."""
        self._matrix_rate, self._rate = matrix_rate, rate
        others: list[nn.Parameter] = []
        self._matrices: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim == 2 and ".layers." in name:
                self._matrices[parameter.shape].append(parameter)
            elif parameter.requires_grad:
                others.append(parameter)
        self._momenta: dict[torch.Size, torch.Tensor] = {}
        self._adam = torch.optim.AdamW(others, lr=rate, betas=BETAS, weight_decay=DECAY, fused=True)

    @torch.no_grad()
    def step(self, rate_share: float) -> None:
        """An update at this share of the rates (`schedule.rate_at`)."""
        for group in self._adam.param_groups:
            group["lr"] = self._rate * rate_share
        self._adam.step()
        rate = self._matrix_rate * rate_share
        for shape, matrices in self._matrices.items():
            # The tower's last layer is not run, so it has no gradient.
            active = [matrix for matrix in matrices if matrix.grad is not None]
            if not active:
                continue
            gradient = torch.stack([matrix.grad for matrix in active])
            momentum = self._momenta.setdefault(shape, torch.zeros_like(gradient))
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp(momentum, MOMENTUM))  # Nesterov's
            for matrix, change in zip(active, update, strict=True):
                matrix.mul_(1 - rate * DECAY).add_(change, alpha=-rate * math.sqrt(max(1, shape[0] / shape[1])))


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """[n, a, b] with the same singular vectors, and singular values of about one (0.7 to 1.2)."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide / (wide.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if matrices.shape[1] <= matrices.shape[2] else wide.mT
