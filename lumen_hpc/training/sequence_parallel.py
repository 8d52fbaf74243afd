"""Sequence parallelism: neighbouring ranks of a node compute each micro-batch together (`train.sequence_parallel`).

The scheme is DeepSpeed-Ulysses' (arXiv 2309.14509). Tiles, and the language model's positions, are divided evenly. In
attention an all-to-all exchanges a part of the positions for a part of the heads, so that the batch's attention plan
needs no change; a second one exchanges the result back. Each rank has the loss of the tokens that its own positions
predict. Gradients are partial sums on every rank, which ZeRO adds up over all ranks as usual.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from math import gcd
from typing import Any

import torch
import torch.distributed as dist

from lumen_hpc.distributed import COLLECTIVE_TIMEOUT_S, Ranks, gather_json
from lumen_hpc.nvila import Batch
from lumen_hpc.nvila.attention import Plan
from lumen_hpc.nvila.group import SingleProcess


class Group(SingleProcess):
    """The ranks that compute a micro-batch together, as this rank sees them."""

    def __init__(self, size: int, rank: int, name: str) -> None:
        """`name`: of torch's process group, which compiled layers cannot take as an object."""
        self.size, self.rank, self.name = size, rank, name

    def own_range(self, count: int) -> range:
        each = -(-count // self.size)
        return range(count)[self.rank * each : (self.rank + 1) * each]

    def own_part(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        rows = self.own_range(x.shape[dim])
        part = x.narrow(dim, rows.start, len(rows))
        padding_shape = list(x.shape)
        padding_shape[dim] = -(-x.shape[dim] // self.size) - len(rows)
        return torch.cat([part, x.new_zeros(padding_shape)], dim) if padding_shape[dim] else part

    def join(self, part: torch.Tensor, count: int) -> torch.Tensor:
        return _Gather.apply(part, self.size, self.name)[:count]

    def attention_plan(self, plan: Plan) -> Plan:
        return SharedPlan(plan, self.size, self.name)

    def first_position(self, length: int) -> int:
        return self.rank * (length // self.size)


def make_group(size: int, ranks: Ranks) -> SingleProcess:
    """The group of this rank, of `size` neighbours; all ranks call it."""
    if size == 1:
        return SingleProcess()
    groups = [list(range(first, first + size)) for first in range(0, ranks.world_size, size)]
    own, _ = dist.new_subgroups_by_enumeration(groups, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
    return Group(size, ranks.rank % size, own.group_name)


def node_crossing(size: int) -> str:
    """Why groups of `size` neighbours would exchange over the network; empty if each is on one node.

    All ranks call it.
    """
    hosts = gather_json(socket.gethostname())
    for first in range(0, len(hosts), size):
        if len(group_hosts := sorted(set(hosts[first : first + size]))) > 1:
            return f"ranks {first} to {first + size - 1} are on several nodes ({', '.join(group_hosts)})"
    return ""


def take_own_tokens(batch: Batch, group: SingleProcess) -> tuple[Batch, torch.Tensor, int]:
    """A batch that supervises only what this rank's positions predict.

    Also bool [supervised tokens], which of the batch's these are; and the number of tokens at its positions, without
    padding.
    """
    each = batch.token_ids.shape[1] // group.size
    start = group.first_position(batch.token_ids.shape[1])
    predictors = batch.predictors
    is_own = (predictors >= start) & (predictors < start + each)
    return replace(batch, learned=batch.learned[is_own]), is_own, min(max(batch.tokens - start, 0), each)


@dataclass
class SharedPlan:
    """Attention of positions that are divided among ranks: every rank computes all positions of its heads."""

    plan: Plan
    size: int
    group: str

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """As `attention.Plan`, with T this rank's positions."""
        copies = self.size // gcd(self.size, k.shape[1])  # fewer key heads than ranks: some ranks have the same one
        if copies > 1:
            k, v = k.repeat_interleave(copies, dim=1), v.repeat_interleave(copies, dim=1)
        parts = [x.unflatten(1, (self.size, -1)) for x in (q, k, v)]
        to_heads = torch.cat(parts, dim=2).transpose(0, 1)
        exchanged = _Exchange.apply(to_heads, self.size, self.group).permute(1, 2, 0, 3, 4).flatten(2, 3)
        q, k, v = exchanged.split([part.shape[2] for part in parts], dim=1)
        out = self.plan.attend(layer, q, k, v, scale)
        to_positions = out.unflatten(1, (self.size, -1)).transpose(0, 1)
        return _Exchange.apply(to_positions, self.size, self.group).permute(1, 2, 0, 3, 4).flatten(2, 3)


# Functional collectives can be compiled: they return a new tensor, and take their group by its name.


def _exchange(x: torch.Tensor, size: int, group: str) -> torch.Tensor:
    """[size, …]: sends place i to rank i of the group, and receives that rank's part at place i."""
    ones = [1] * size
    received = torch.ops._c10d_functional.all_to_all_single(x.contiguous(), ones, ones, group)
    return torch.ops._c10d_functional.wait_tensor(received)


class _Exchange(torch.autograd.Function):
    """`_exchange` with its gradient; it is its own inverse, and so its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, size: int, group: str) -> torch.Tensor:
        ctx.size, ctx.group = size, group
        return _exchange(x, size, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _exchange(grad, ctx.size, ctx.group), None, None


class _Gather(torch.autograd.Function):
    """[n, …] of every rank to [size · n, …] on all of them; the gradient of a part is the sum of all ranks'."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, size: int, group: str) -> torch.Tensor:
        ctx.size, ctx.group = size, group
        gathered = torch.ops._c10d_functional.all_gather_into_tensor(x.contiguous(), size, group)
        return torch.ops._c10d_functional.wait_tensor(gathered)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _exchange(grad.unflatten(0, (ctx.size, -1)), ctx.size, ctx.group).sum(0), None, None
