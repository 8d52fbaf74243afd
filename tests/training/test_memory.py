"""Memory of a training by arithmetic."""

from __future__ import annotations

from lumen_hpc.config.schema import Train
from lumen_hpc.models import Workload
from lumen_hpc.training.memory import memory_by_use
from lumen_hpc.training.model_sizes import Sizes


def test_recomputing_less_takes_more_memory():
    takes = [
        memory_by_use(Train(checkpointing=how), 4, 1, Sizes(), Workload())["activations"]
        for how in ("full", "selective", "none")
    ]
    assert takes == sorted(takes)
