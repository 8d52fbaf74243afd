"""Arrays and tensors kept in memory up to a number of bytes; the least recently used go first."""

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
        self._limit, self._used = int(gb * 2**30), 0
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def values(self) -> Iterable[Value]:
        return self._kept.values()

    def get(self, key: Hashable) -> Value | None:
        """The value, which is now the last used; None if it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: Hashable, value: Value) -> None:
        with self._lock:
            if key not in self._kept:  # another thread may have been first
                self._kept[key] = value
                self._used += value.nbytes
            while self._used > self._limit:
                self._used -= self._kept.popitem(last=False)[1].nbytes
