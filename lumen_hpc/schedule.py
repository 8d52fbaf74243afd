"""The schedule of the learning rate."""

from __future__ import annotations

import math


def rate_at(step: int, steps: int, learning_rate: float, warmup: float) -> float:
    """The rate of a step (from 0): a linear warm-up to `learning_rate` over `warmup` of the steps, a cosine to zero.

    The first step already learns, and so does the last.
    """
    warmup_steps = math.ceil(steps * warmup)
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    return learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
