"""Who of those that wait goes next: start-time fair queueing between clients, first come first served within one.

Each client has a tag: how much of the pool's time it has been given. The least goes first, and whoever begins to wait
starts where the others are. What does not fit yet is waited for, so a large request is never overtaken for ever, and a
small one waits for no more than what is before it in this order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from typing import NamedTuple

from service.policy.pacing import Amounts, Pool

CLIENTS = 64
"""Client classes; clients are put into them by a hash of their name."""


class Waiter(NamedTuple):
    """One request that waits: since when, where it stands, whose it is, what it wants. Sorts as it came."""

    arrival: float
    place: int
    client: int
    amounts: Amounts


def order(
    waiting: Sequence[Waiter], tags: MutableSequence[float], virtual: float, cost: Callable[[Amounts], float]
) -> Iterator[tuple[float, Waiter]]:
    """Those who wait, in the order they go, each with its tag. Moves `tags` on for each when the next is asked for."""
    lines: dict[int, list[Waiter]] = {}
    for one in waiting:
        lines.setdefault(one.client, []).append(one)
    for line in lines.values():
        heapq.heapify(line)
    heads = [(max(virtual, tags[client]), line[0]) for client, line in lines.items()]
    heapq.heapify(heads)
    while heads:
        start, one = heads[0]
        yield start, one
        tags[one.client] = start + cost(one.amounts)
        line = lines[one.client]
        heapq.heappop(line)
        if line:
            heapq.heapreplace(heads, (tags[one.client], line[0]))
        else:
            heapq.heappop(heads)


class Served(NamedTuple):
    """Who goes now, and the seconds until the next may (None: nobody is left)."""

    granted: list[Waiter]
    next_in: float | None


def serve(pool: Pool, waiting: Sequence[Waiter], tags: MutableSequence[float], now: float) -> Served:
    """Take from `pool` for everybody who may go now. `tags` and the pool's virtual time move on."""
    granted: list[Waiter] = []
    for start, one in order(waiting, tags, pool.virtual, pool.seconds):
        if not pool.fits(one.amounts, now):
            return Served(granted, pool.wait((0.0, 0.0, 0.0), one.amounts, now)[0])
        pool.take(one.amounts, now)
        pool.virtual = start
        granted.append(one)
    pool.virtual = max(pool.virtual, *tags)  # nobody waits any more: what clients were given is forgotten
    return Served(granted, None)


def predict(pool: Pool, waiting: Sequence[Waiter], tags: Sequence[float], place: int, now: float) -> tuple[float, str]:
    """Seconds until the one that stands at `place` may go if nobody comes, and the dimension it waits for."""
    before = [0.0, 0.0, 0.0]
    longest: tuple[float, str] = (0.0, "")
    for _, one in order(waiting, list(tags), pool.virtual, pool.seconds):
        # Whoever goes before needs more to be there than it takes: nobody passes it meanwhile.
        longest = max(longest, pool.wait((before[0], before[1], before[2]), one.amounts, now))
        if one.place == place:
            return longest
        for i, amount in enumerate(one.amounts):
            before[i] += amount
    raise LookupError("nobody waits there")
