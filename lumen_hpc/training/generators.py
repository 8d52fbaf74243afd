"""The random generators of a rank: seeded at the start, saved in a checkpoint, and restored from it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_generator(seed: int, rank: int, step: int) -> None:
    """Seeds torch, which draws dropout: each rank masks other places, as does each seed, and a change of ranks."""
    torch.manual_seed(int(np.random.SeedSequence((seed, rank, step)).generate_state(1)[0]))


def rng_state() -> dict[str, Any]:
    """Every generator that training could draw from."""
    numpy_state: Any = np.random.get_state()
    kind, keys, *rest = numpy_state
    # The keys as a tensor: an array's pickle would need numpy's own code.
    numpy_tensors = [kind, torch.from_numpy(keys.astype(np.int64)), *rest]
    state = {"python": random.getstate(), "numpy": numpy_tensors, "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
