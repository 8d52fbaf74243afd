"""What tests with hostile files share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def patience() -> Iterator[None]:
    """Ends a test that a hostile file keeps waiting."""

    def give_up(*_: object) -> None:
        raise AssertionError("still waiting for a hostile file")  # no OSError: code may pass those over

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
