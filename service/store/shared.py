"""The state that the workers of a host share, laid out in one region.

Who keeps it elsewhere (for many hosts) needs a class with these attributes. What the numbers mean is not known here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from service.store.region import Records, Region
from service.store.table import Table

CLIENTS = 1024
"""Clients whose use can be counted: with more of them, the one not seen for longest would begin its day's budget anew."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many there are of each (`…s`), and how many numbers each takes (`…_width`). Memory is only used as it fills."""

    pool_width: int
    tags: int
    client_width: int
    provider_width: int
    slots: int = 4096
    """Workers alive at a time."""
    pools: int = 256
    places: int = 1024
    """Requests waiting for one pool."""
    clients: int = CLIENTS
    providers: int = 16


Change = Callable[[], None]
"""Something to do to the state while its lock is held."""
_MOST_LATER = 10_000
_PATIENCE = 1.0
"""Seconds that a worker waits for the lock as it starts."""
ROW = 4
"""A worker's part of a pool: open calls, and its unanswered requests, input and output tokens."""
PLACE = 7
"""One who waits: state, slot, client, arrival, and three amounts."""
LINE = 2
"""What there is to know of those who wait for a pool: places in use, and when to look at them next."""


class SharedState:
    """Made once, before the fork. Whoever reads or writes holds `region`'s lock."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.later: deque[Change] = deque(maxlen=_MOST_LATER)
        """Of this process: what it is to do when it next holds the lock."""
        pools, slots = shape.pools, shape.slots
        widths = {
            "rows": (pools * slots, ROW),
            "places": (pools * shape.places, PLACE),
            "active": (shape.clients * slots, 1),
            "pools": (pools, shape.pool_width),
            "tags": (pools, shape.tags),
            "lines": (pools, LINE),
            "clients": (shape.clients, shape.client_width),
            "providers": (shape.providers, shape.provider_width),
            "beats": (slots, 1),
            "highest": (1, 1),
        }
        tables = {"pool_keys": pools, "client_keys": shape.clients, "provider_keys": shape.providers}
        total = sum(Records.size(*of) for of in widths.values()) + sum(Table.size(of) for of in tables.values())
        self.region = Region(total)
        end = 0

        def records(name: str) -> Records:
            nonlocal end
            start, end = end, end + Records.size(*widths[name])
            return Records(self.region, start, *widths[name])

        def table(name: str) -> Table:
            nonlocal end
            start, end = end, end + Table.size(tables[name])
            return Table(self.region, start, tables[name])

        self.pool_keys, self.client_keys, self.provider_keys = (table(name) for name in tables)
        self.pools, self.tags, self.lines = records("pools"), records("tags"), records("lines")
        self.clients, self.providers = records("clients"), records("providers")
        self.beats = records("beats")
        """When a worker last looked after those of it that wait."""
        self._highest = records("highest")
        self.rows, self.places = records("rows"), records("places")
        self.active = records("active")
        """A client's requests in each worker."""

    @property
    def slots(self) -> int:
        """How many slots have ever been in use: those from here on hold nothing."""
        return int(self._highest.read(0)[0])

    def use_slot(self, slot: int) -> None:
        """A worker begins in `slot`. Raises `ValueError` if there is no such slot."""
        if not 0 <= slot < self.shape.slots:
            raise ValueError(f"slot {slot} of {self.shape.slots}")
        # Workers start together: without the lock one's number could be lost, and with it all that it holds.
        locked = self.region.lock(_PATIENCE)
        try:
            self._highest.write(0, (max(self.slots, slot + 1),))
        finally:
            if locked:
                self.region.unlock()

    def pool(self, key: bytes, now: float, idle: Callable[[int], bool]) -> int | None:
        """The index of a pool, made if there is none and room."""
        return self.pool_keys.find_or_make(key, now, idle, self._clear_pool)

    def client(self, key: bytes, now: float, idle: Callable[[int], bool]) -> int | None:
        """The index of a client, made if there is none and room."""
        return self.client_keys.find_or_make(key, now, idle, self._clear_client)

    def provider(self, key: bytes, now: float) -> int:
        """The index of a provider."""
        index = self.provider_keys.find_or_make(key, now, lambda index: True, self.providers.clear)
        assert index is not None  # every one is idle
        return index

    def _clear_pool(self, index: int) -> None:
        for records in (self.pools, self.tags, self.lines):
            records.clear(index)
        self.rows.clear(index * self.shape.slots, self.slots)

    def _clear_client(self, index: int) -> None:
        self.clients.clear(index)
        self.active.clear(index * self.shape.slots, self.slots)
