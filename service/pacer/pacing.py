"""Pacing of provider calls: at once while there is room, in order when there is not, never when it is hopeless.

All workers of a host act as one over shared memory. Any worker that looks lets go whoever is next, in whichever worker
it waits; that worker finds it let go when it looks itself, within `LOOK` seconds.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from service.pacer.access import Access
from service.pacer.grant import Ask, Grant, PoolKey, Refused
from service.pacer.pools import FREE, GRANTED, WAITING, Place, Pools
from service.policy.fairness import CLIENTS, Waiter, predict
from service.policy.pacing import Amounts, Pool
from service.store.shared import SharedState

LOOK = 0.025
"""Seconds between two looks of a worker that has somebody waiting: how long a grant by another worker lies unseen."""
STUCK = 1.0
"""Seconds without the shared state after which those who wait are let through."""
_SOON = 0.005
"""Not more often than this."""


_UNUSED = Pool([0.0] * Pool.WIDTH)
"""What is known of a pool that cannot be had."""


class Waits(Protocol):
    """Accounts time spent waiting: `waiting()` is a context around it."""

    def waiting(self) -> AbstractContextManager[None]: ...


@dataclass(slots=True, eq=False)
class _Waiting:
    """One that waits in this worker, at `number` of its pool's queue."""

    number: int
    grant: Grant
    arrival: float
    deadline: float
    amounts: Amounts
    future: asyncio.Future[None]


class _Line:
    """Those that wait in this worker for one pool."""

    def __init__(self, provider: str, now: float) -> None:
        self.provider = provider
        self.waiting: dict[int, _Waiting] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.looked = now
        """When the shared state was last had."""


class Pacer:
    """Lets calls go. One for each worker, on its event loop; `max_queue` is over all workers, for one pool."""

    def __init__(
        self,
        state: SharedState,
        slot: int,
        *,
        max_queue: int,
        fail_open: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access = Access(state, slot, fail_open)
        self._pools = Pools(state)
        self._slot, self._clock = slot, clock
        self._max_queue = max_queue
        self._most = state.shape.places
        self._lines: dict[bytes, _Line] = {}

    def depth(self, provider: str) -> int:
        """How many wait in this worker."""
        return sum(len(line.waiting) for line in self._lines.values() if line.provider == provider)

    async def acquire(self, key: PoolKey, ask: Ask, waits: Waits | None = None) -> Grant:
        """Leave to make a call, when there is room for it. Raises `Refused`; a cancelled one frees its place."""
        digest = key.digest
        grant = Grant(self._access, self._pools, digest, ask, self._clock)
        waiting = self._ask(key, digest, grant, ask)
        if waiting is None:
            return grant
        with waits.waiting() if waits is not None else nullcontext():
            try:
                await waiting.future
            except asyncio.CancelledError:
                self._left(digest, waiting)
                raise
            finally:
                grant.waited = self._clock() - waiting.arrival
        return grant

    def _ask(self, key: PoolKey, digest: bytes, grant: Grant, ask: Ask) -> _Waiting | None:
        """None: it may go. Raises `Refused`."""
        if not self._access.enter():
            self._access.fail_open()
            grant.estimate = round(ask.input_of(_UNUSED))
            grant.begin_unasked()
            return None
        try:
            now = self._clock()
            found = self._pools.open(digest, now)
            if found is None:
                self._access.fail_open()
                grant.estimate = round(ask.input_of(_UNUSED))
                return None
            index, pool = found
            wanted = ask.input_of(pool)
            grant.estimate = round(wanted)
            amounts = pool.expected(wanted, ask.max_output)
            if not self._pools.places_used(index) and pool.fits(amounts, now):
                self._pools.go(index, pool, self._slot, amounts, now)
                grant.begin(amounts, pool, now)
                return None
            mine, others, tags = self._queue(index, ask.client, amounts, now)
        finally:
            self._access.leave()
        # With many waiting this takes a while: others may use the state meanwhile, and even let this one go.
        seconds, grant.dimension = predict(pool, [*others, mine], tags, mine.place, now)
        grant.predicted = seconds
        one = _Waiting(mine.place, grant, now, now + ask.max_wait, amounts, asyncio.get_running_loop().create_future())
        if mine.place >= self._most:
            raise Refused("queue_full", grant.dimension, seconds)
        if seconds > ask.max_wait:
            self._access.change(lambda: self._drop(digest, one))
            raise Refused("too_long", grant.dimension, seconds)
        line = self._lines.setdefault(digest, _Line(key.provider, now))
        line.waiting[one.number] = one
        self._look_in(digest, line, _SOON)
        return one

    def _queue(self, index: int, client: str, amounts: Amounts, now: float) -> tuple[Waiter, list[Waiter], list[float]]:
        """Put one into the queue: where it stands (behind all places when it is full), who else waits, their tags."""
        pools = self._pools
        pools.beat(self._slot, now)
        others, tags = pools.waiting(index, now), pools.tags(index)
        number = next((n for n, place in enumerate(pools.places(index)) if place[0] == FREE), pools.places_used(index))
        mine = Waiter(now, number, zlib.crc32(client.encode()) % CLIENTS, amounts)
        if len(others) >= self._max_queue or number >= self._most:
            return mine._replace(place=self._most), others, tags
        pools.put(index, number, Place(WAITING, self._slot, mine.client, now, *amounts))
        return mine, others, tags

    def _look_in(self, digest: bytes, line: _Line, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if line.timer is not None:
            if line.timer.when() <= loop.time() + seconds:
                return
            line.timer.cancel()
        line.timer = loop.call_later(seconds, self._look, digest, line)

    def _look(self, digest: bytes, line: _Line) -> None:
        """Let go who may, pick up what this worker was let, and end what has waited for too long."""
        line.timer = None
        now = self._clock()
        pause = LOOK
        if line.waiting and self._access.enter():
            try:
                line.looked = now
                pause = self._look_at(digest, line, now)
            finally:
                self._access.leave()
        elif line.waiting and now - line.looked > STUCK:
            for one in list(line.waiting.values()):
                self._access.fail_open()
                self._access.later(lambda one=one: self._drop(digest, one))  # type: ignore[misc]  # its own, not the last
                one.grant.begin_unasked()
                self._done(line, one)
        if line.waiting:
            self._look_in(digest, line, pause)
        else:
            self._lines.pop(digest, None)

    def _look_at(self, digest: bytes, line: _Line, now: float) -> float:
        """Seconds until the next look."""
        pools = self._pools
        found = pools.open(digest, now)
        if found is None:
            return LOOK
        index, pool = found
        pools.beat(self._slot, now)
        look_at = pools.look_at(index)
        if now >= look_at:
            look_at = pools.serve(index, pool, now)
        for one in list(line.waiting.values()):
            place = pools.place(index, one.number)
            state = place.state
            if state == GRANTED:
                one.grant.begin(one.amounts, pool, now)
            elif state == FREE:  # forgotten by mistake: whoever has waited goes
                pools.go(index, pool, self._slot, one.amounts, now)
                one.grant.begin(one.amounts, pool, now)
            elif now >= one.deadline:
                seconds, dimension = predict(pool, pools.waiting(index, now), pools.tags(index), one.number, now)
                self._done(line, one, Refused("timeout", dimension, seconds))
            else:
                continue
            pools.free(index, one.number)
            self._done(line, one)
        return min(LOOK, max(_SOON, look_at - now))

    @staticmethod
    def _done(line: _Line, one: _Waiting, error: Refused | None = None) -> None:
        line.waiting.pop(one.number, None)
        if not one.future.done():
            if error is None:
                one.future.set_result(None)
            else:
                one.future.set_exception(error)

    def _left(self, digest: bytes, one: _Waiting) -> None:
        """Its client has gone: the place is free, and what may have been taken for it goes back."""
        line = self._lines.get(digest)
        if line is not None and line.waiting.get(one.number) is one:
            del line.waiting[one.number]
            self._access.change(lambda: self._drop(digest, one))
        else:
            one.grant.close(sent=False)
            if one.future.done() and not one.future.cancelled():
                one.future.exception()  # seen: nobody else will

    def _drop(self, digest: bytes, one: _Waiting) -> None:
        now = self._clock()
        found = self._pools.find(digest, now)
        if found is None:
            return
        index, pool = found
        place = self._pools.place(index, one.number)
        if place.state != FREE and place.slot == self._slot and place.arrival == one.arrival:
            if place.state == GRANTED:
                self._pools.never_went(index, pool, self._slot, one.amounts)
            self._pools.free(index, one.number)
