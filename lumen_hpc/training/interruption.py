"""Being told to stop: the signal only sets a flag, the work saves at its next boundary."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interruption:
    """Callable that says whether USR2 (time limit) or SIGTERM (preemption) has come.

    >>> with Interruption() as should_stop:
    ...     should_stop()
    False
    """

    signals = (signal.SIGUSR2, signal.SIGTERM)

    def __init__(self) -> None:
        self.cause: str | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.cause is not None

    def _note(self, number: int, _: FrameType | None) -> None:
        self.cause = self.cause or signal.Signals(number).name

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
