"""Decodes images and builds micro-batches in threads while the model computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

AHEAD = 2
"""Steps whose micro-batches wait, built."""


class Prefetcher:
    """Iterates over (ids, micro-batches) of every step, built by `batcher` a few steps ahead.

    An error while building a step is raised where the step is requested.
    """

    _END = object()

    def __init__(self, layouts: Iterable[tuple[list[int], list[Any]]], batcher: Any, *, workers: int) -> None:
        """`workers`: threads that build the micro-batches of one step in parallel."""
        self._layouts, self._batcher = layouts, batcher
        self._queue: queue.Queue = queue.Queue(maxsize=AHEAD)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetcher")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetcher", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[list[int], list[Any]]]:
        while (item := self._queue.get()) is not self._END:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _fill(self) -> None:
        try:
            for ids, packs in self._layouts:
                if not self._put((ids, list(self._pool.map(self._batcher.build, packs)))):
                    return
            self._put(self._END)
        except BaseException as error:  # raised in the training thread
            self._put(error)

    def _put(self, item: Any) -> bool:
        """Waits for space in the queue; False once the reader has closed it."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
