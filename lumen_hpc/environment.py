"""Sets variables of this process's environment for a block of code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def variable(name: str, value: str | None) -> Iterator[None]:
    """Sets a variable of this process's environment, or takes it out (None), inside the block alone.

    The process may be a notebook, whose user reads other files by other rules.
    """

    def put(value: str | None) -> None:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

    earlier = os.environ.get(name)
    put(value)
    try:
        yield
    finally:
        put(earlier)
