"""A small model trained by two threads: where operators are tiny, two halves of a batch use two cores better than
operators that are split.

The halves are fixed, and their gradients are added in their order: results do not depend on the number of cores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)
PARTS = 2


class Replicas(Generic[Model]):
    """A model and its replicas, which share its weights and have gradients of their own."""

    def __init__(self, model: Model, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._models = [model, *(_replica(model) for _ in range(PARTS - 1))]
        self._learning = [[p for p in each.parameters() if p.requires_grad] for each in self._models]

    def backward(self, loss: Callable[[Model, Any], torch.Tensor], parts: Sequence[Any]) -> float:
        """Sets the model's gradients to those of the summed losses `loss(model, part)`; returns the sum."""

        def run(model: Model, learning: list[nn.Parameter], part: Any) -> torch.Tensor:
            for parameter in learning:
                parameter.grad = None
            value = loss(model, part)
            value.backward()
            return value.detach()

        values = list(self._pool.map(run, self._models, self._learning, parts))
        for first, *others in zip(*self._learning):
            for other in others:
                if first.grad is None:
                    first.grad = other.grad
                elif other.grad is not None:
                    first.grad += other.grad
        return float(sum(values))


def _replica(model: Model) -> Model:
    replica = copy.deepcopy(model)
    for own, shared in zip(replica.parameters(), model.parameters()):
        own.data = shared.data
    return replica


@contextmanager
def one_core_threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as parts and cores allow; each computes on one core."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(min(PARTS, threads), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool
    torch.set_num_threads(threads)
