"""Things kept for a limited time, within a limited size, under names that can't be guessed."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class StoredFile:
    """A file that the server gives out: its bytes and their media type."""

    data: bytes
    media_type: str


class Store(Generic[Item]):
    """Forgets what is too old, and the oldest where room is needed. Any thread may call it."""

    def __init__(self, seconds: float, most_bytes: int, prefix: str) -> None:
        """Keep items for `seconds`, `most_bytes` together at most; their names begin with `prefix`."""
        self.seconds = seconds
        self._most, self._prefix = most_bytes, prefix
        self._items: dict[str, tuple[Item, int, float]] = {}  # oldest first
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            self._sweep()
            return len(self._items)

    def put(self, item: Item, size: int) -> str:
        """Keep an item of so many bytes and return its name: 192 random bits, as letters and digits alone."""
        name = self._prefix + secrets.token_hex(24)
        with self._lock:
            self._sweep(size)
            self._items[name] = item, size, time.monotonic() + self.seconds
            self._bytes += size
        return name

    def get(self, name: str) -> Item | None:
        """Return the item, or None if there is none of this name any more."""
        with self._lock:
            self._sweep()
            found = self._items.get(name)
            return None if found is None else found[0]

    def _sweep(self, needed: int = 0) -> None:
        now = time.monotonic()
        for name, (_, size, end) in list(self._items.items()):
            if end > now and self._bytes + needed <= self._most:
                break
            del self._items[name]
            self._bytes -= size
