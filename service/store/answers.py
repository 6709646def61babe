"""Answers kept by this worker: the least recently used goes first, none outlives its time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_BESIDE = 512
"""Bytes that an answer takes beside its body, roughly: many small ones must not take many times the room."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole answer as it came: its content headers, its bytes, and when (by the store's clock) it was kept."""

    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    at: float


class Answers:
    """At most `room` bytes of answers, each for `seconds`. One process's: a sibling worker keeps its own."""

    def __init__(self, room: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.largest = room // 8
        """Bytes of an answer that is kept at most: one must not drive out all others."""
        self._room, self._seconds, self._clock = room, seconds, clock
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._size = 0

    def find(self, key: bytes) -> Kept | None:
        """The answer under `key`, if its time is not over."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if self._clock() - kept.at >= self._seconds:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept

    def keep(self, key: bytes, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
        """Keep an answer; older ones make room."""
        if len(body) > self.largest:
            return
        self._drop(key)
        self._kept[key] = Kept(headers, body, self._clock())
        self._size += len(body) + _BESIDE
        while self._size > self._room:
            self._drop(next(iter(self._kept)))

    def age(self, kept: Kept) -> float:
        """Seconds since it was kept."""
        return max(0.0, self._clock() - kept.at)

    def _drop(self, key: bytes) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._size -= len(kept.body) + _BESIDE
