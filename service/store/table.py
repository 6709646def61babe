"""Records found by a key, of which there is room for a fixed number: what has not been used for longest makes room."""

from __future__ import annotations

from collections.abc import Callable

from service.store.region import Records, Region

KEY = 16
"""Bytes of a key: a hash. All zero is no key."""
_NONE = bytes(KEY)


class Table:
    """Keys at `offset` of a region, and when each was last used. What belongs to a key lies elsewhere, at its index."""

    def __init__(self, region: Region, offset: int, count: int) -> None:
        self.count = count
        self._memory, self._offset = region.memory, offset
        self._used = Records(region, offset + count * KEY, count, 1)
        self._known: dict[bytes, int] = {}
        """Where this process last saw a key: to be checked, as another may have put one in its place."""

    @staticmethod
    def size(count: int) -> int:
        """Bytes that it takes."""
        return count * (KEY + 8)

    def key(self, index: int) -> bytes | None:
        """Whose record it is."""
        start = self._offset + index * KEY
        found = self._memory[start : start + KEY]
        return found if found != _NONE else None

    def find(self, key: bytes) -> int | None:
        """The index of `key`."""
        index = self._known.get(key)
        if index is not None:
            start = self._offset + index * KEY
            if self._memory[start : start + KEY] == key:
                return index
        for index, found in enumerate(self._keys()):
            if found == key:
                if len(self._known) >= 4 * self.count:
                    self._known.clear()
                self._known[key] = index
                return index
        return None

    def find_or_make(
        self, key: bytes, now: float, idle: Callable[[int], bool], clear: Callable[[int], None]
    ) -> int | None:
        """The index of `key`, used at `now`. A new one gets a free place, or that of the longest unused one that is `idle`,

        after `clear`. None when nobody is idle.
        """
        index = self.find(key)
        if index is None:
            index = self._place(idle)
            if index is None:
                return None
            clear(index)
            start = self._offset + index * KEY
            self._memory[start : start + KEY] = key
            self._known[key] = index
        self._used.write(index, (now,))
        return index

    def _place(self, idle: Callable[[int], bool]) -> int | None:
        keys = self._keys()
        if _NONE in keys:
            return keys.index(_NONE)
        used = self._used.read_many(0, self.count)
        return next((index for index in sorted(range(self.count), key=used.__getitem__) if idle(index)), None)

    def _keys(self) -> list[bytes]:
        every = self._memory[self._offset : self._offset + self.count * KEY]
        return [every[start : start + KEY] for start in range(0, len(every), KEY)]
