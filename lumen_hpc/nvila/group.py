"""How a group of processes divides the work on one batch: what the model asks, and the answers of a process alone.

Tiles are divided for the vision tower and for the projector, then positions for the language model;
`lumen_hpc/training/sequence_parallel.py` has the group that does it.
"""

from __future__ import annotations

from typing import Any

import torch


class SingleProcess:
    """One process does all of the work."""

    size = 1
    """Processes that divide a batch."""
    rank = 0
    """This process's number among them."""

    def own_range(self, count: int) -> range:
        """Which of `count` rows `own_part` takes for this process, what fills the last parts left out."""
        return range(count)

    def own_part(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """This process's part of `x`, one of `size` equal ones in order; zeros fill the last ones."""
        return x

    def join(self, part: torch.Tensor, count: int) -> torch.Tensor:
        """Undoes `own_part` along the first dimension: the first `count` rows of all parts. Gradients pass."""
        return part

    def attention_plan(self, plan: Any) -> Any:
        """The attention plan (`attention.Plan`) of this process's positions, from that of all positions."""
        return plan

    def first_position(self, length: int) -> int:
        """The first of this process's positions in rows of `length`."""
        return 0
