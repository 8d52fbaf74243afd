"""A cache of arrays and tensors with a limit in bytes; the least recently used leave first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class RecentlyUsed(Generic[Value]):
    """Values by key, in at most `gb` [GiB]; several threads may use it."""

    def __init__(self, gb: float) -> None:
        self._max_bytes, self._bytes = int(gb * 2**30), 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> Iterable[Value]:
        return self._values.values()

    def get(self, key: Hashable) -> Value | None:
        """The value, which is now the last used; None if it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def keep(self, key: Hashable, value: Value) -> None:
        with self._lock:
            if key not in self._values:  # another thread may have been first
                self._values[key] = value
                self._bytes += value.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._values.popitem(last=False)[1].nbytes
