"""Least-recently-used cache that is limited by bytes; concurrent requests for one key compute it once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable


class ByteCache:
    """Cache of encoded images: the least recently used are dropped above `most_bytes`. Threads may share it."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._values: OrderedDict[Hashable, bytes] = OrderedDict()
        self._in_progress: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The value of a key, made by `make` if it is absent; an error of `make` is raised and nothing is kept."""
        with self._lock:
            if (value := self._found(key)) is not None:
                return value
            making = self._in_progress.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if (value := self._found(key)) is not None:
                    return value
            try:
                value = make()
                with self._lock:
                    self._add(key, value)
                return value
            finally:
                with self._lock:
                    self._in_progress.pop(key, None)

    def _found(self, key: Hashable) -> bytes | None:
        if (value := self._values.get(key)) is not None:
            self._values.move_to_end(key)
        return value

    def _add(self, key: Hashable, value: bytes) -> None:
        if len(value) > self.most_bytes or key in self._values:
            return
        self._values[key] = value
        self.bytes += len(value)
        while self.bytes > self.most_bytes:
            _, dropped = self._values.popitem(last=False)
            self.bytes -= len(dropped)
