"""Limits of our own clients, exact over all workers: who may have one more request, and what it used."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

from service.pacer.access import Access
from service.policy.limits import Counts, Left, Limits, Reached
from service.store.shared import SharedState


@dataclass(slots=True, eq=False)
class Admitted:
    """A client's request that is under way. `left` is what was left of each limit after it came in. `close` it always."""

    left: dict[str, Left] = field(default_factory=dict)
    _counts: Callable[[float, int], None] | None = None
    _leave: Callable[[], None] | None = None

    def spent(self, tokens: float, nano_dollars: int) -> None:
        """What it used, on top of what was told before. Also after `close`."""
        if self._counts is not None:
            self._counts(tokens, nano_dollars)

    def close(self) -> None:
        """It has ended: another may have its place. Idempotent."""
        if self._leave is not None:
            leave, self._leave = self._leave, None
            leave()


class ClientLimits:
    """Admits or says which limit is reached; nobody waits. One for each worker. `wall` gives Unix seconds."""

    def __init__(
        self,
        state: SharedState,
        slot: int,
        *,
        fail_open: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._state, self._slot, self._clock, self._wall = state, slot, clock, wall
        self._access = Access(state, slot, fail_open)

    def admit(self, client: str, limits: Limits) -> Admitted | Reached:
        """One more request of `client`."""
        now, wall = self._clock(), self._wall()
        key = blake2b(client.encode(), digest_size=16).digest()
        if not self._access.enter():
            self._access.fail_open()
            self._access.later(partial(self._come, key, limits, now, wall))
            return self._admitted(key, limits, {})
        try:
            index = self._index(key, now)
            if index is None:
                self._access.fail_open()
                return Admitted()
            counts = self._counts(index, limits, now, wall)
            active = self._active(index)
            reached = counts.refusal(limits, active, wall)
            if reached is not None:
                return reached
            counts.requests += 1
            self._state.clients.write(index, counts.values())
            self._add_active(index, 1)
            return self._admitted(key, limits, counts.left(limits, active + 1, wall))
        finally:
            self._access.leave()

    def restore(self, client: str, limits: Limits, nano_dollars: int) -> None:
        """At least so much has been spent today: what the books say after a start."""
        key = blake2b(client.encode(), digest_size=16).digest()
        self._access.change(partial(self._at_least, key, limits, nano_dollars, self._clock(), self._wall()))

    def spend(self, client: str, limits: Limits, nano_dollars: int) -> None:
        """So much was spent besides what calls under way tell."""
        key = blake2b(client.encode(), digest_size=16).digest()
        self._access.change(partial(self._spend, key, limits, 0.0, nano_dollars, self._clock(), self._wall()))

    def _at_least(self, key: bytes, limits: Limits, nano_dollars: int, now: float, wall: float) -> None:
        index = self._index(key, now)
        if index is not None:
            counts = self._counts(index, limits, now, wall)
            counts.spent = max(counts.spent, nano_dollars)
            self._state.clients.write(index, counts.values())

    def remaining(self, client: str, limits: Limits) -> dict[str, Left]:
        """What is left of each limit; empty when it cannot be told."""
        now, wall = self._clock(), self._wall()
        if not self._access.enter():
            return {}
        try:
            index = self._index(blake2b(client.encode(), digest_size=16).digest(), now)
            if index is None:
                return {}
            return self._counts(index, limits, now, wall).left(limits, self._active(index), wall)
        finally:
            self._access.leave()

    def _admitted(self, key: bytes, limits: Limits, left: dict[str, Left]) -> Admitted:
        def spent(tokens: float, nano_dollars: int) -> None:
            self._access.change(partial(self._spend, key, limits, tokens, nano_dollars, self._clock(), self._wall()))

        return Admitted(left, spent, lambda: self._access.change(partial(self._go, key)))

    def _come(self, key: bytes, limits: Limits, now: float, wall: float) -> None:
        index = self._index(key, now)
        if index is not None:
            counts = self._counts(index, limits, now, wall)
            counts.requests += 1
            self._state.clients.write(index, counts.values())
            self._add_active(index, 1)

    def _spend(self, key: bytes, limits: Limits, tokens: float, nano_dollars: int, now: float, wall: float) -> None:
        index = self._index(key, now)
        if index is not None:
            counts = self._counts(index, limits, now, wall)
            counts.tokens += max(0.0, tokens)
            counts.spent += max(0, nano_dollars)
            self._state.clients.write(index, counts.values())

    def _go(self, key: bytes) -> None:
        index = self._state.client_keys.find(key)
        if index is not None:
            self._add_active(index, -1)

    def _index(self, key: bytes, now: float) -> int | None:
        return self._state.client(key, now, lambda index: not self._active(index))

    def _counts(self, index: int, limits: Limits, now: float, wall: float) -> Counts:
        counts = Counts(self._state.clients.read(index))
        counts.advance(limits, now, wall)
        return counts

    def _active(self, index: int) -> float:
        rows = self._state.active.read_many(index * self._state.shape.slots, self._state.slots)
        return sum(row[0] for row in rows)

    def _add_active(self, index: int, more: int) -> None:
        at = index * self._state.shape.slots + self._slot
        self._state.active.write(at, (max(0.0, self._state.active.read(at)[0] + more),))
