"""How a group of processes divides the work on a batch: the interface, for a single process.

Tiles are divided for the vision tower and the projector, then positions for the language model.
`lumen_hpc/training/sequence_parallel.py` implements it for several processes.
"""

from __future__ import annotations

from typing import Any

import torch


class SingleProcess:
    """One process does all the work."""

    size = 1
    """Processes that divide a batch."""
    rank = 0
    """This process's number among them."""

    def own_range(self, count: int) -> range:
        """The rows, of `count`, that `own_part` takes for this process, without padding."""
        return range(count)

    def own_part(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """This process's part of `x`, one of `size` equal parts in order; zeros pad the last ones."""
        return x

    def join(self, part: torch.Tensor, count: int) -> torch.Tensor:
        """Undoes `own_part` along the first dimension: the first `count` rows of all parts. Gradients pass."""
        return part

    def attention_plan(self, plan: Any) -> Any:
        """The attention plan (`attention.Plan`) for this process's positions, from the plan for all positions."""
        return plan

    def first_position(self, length: int) -> int:
        """The first of this process's positions in rows of `length`."""
        return 0
