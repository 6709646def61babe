"""Pools in shared memory: each method is a few reads and writes under a lock that the caller holds.

A pool's `unanswered` and `open` are the sums of its workers' rows, so that a dead worker's part can be taken out.
"""

from __future__ import annotations

from typing import NamedTuple

from service.policy.fairness import Waiter, serve
from service.policy.pacing import Amounts, Pool
from service.store.shared import SharedState

FREE, WAITING, GRANTED = 0.0, 1.0, 2.0
"""What a place in a queue is; a granted one is paid for and waits to be picked up by its worker."""
ALIVE = 1.0
"""Seconds after which a worker that has not looked is not waited for."""


class Place(NamedTuple):
    """One place of a pool's queue, as it lies in memory."""

    state: float
    slot: float
    client: float
    arrival: float
    requests: float
    input_tokens: float
    output_tokens: float

    @property
    def amounts(self) -> Amounts:
        """What is wanted."""
        return self.requests, self.input_tokens, self.output_tokens


class Pools:
    """The pools of a host."""

    def __init__(self, state: SharedState) -> None:
        self._state = state

    def open(self, key: bytes, now: float) -> tuple[int, Pool] | None:
        """The pool of `key`, as of `now`; None: all places are taken by busy ones."""
        index = self._state.pool(key, now, self._idle)
        return None if index is None else (index, self._read(index, now))

    def find(self, key: bytes, now: float) -> tuple[int, Pool] | None:
        """The pool of `key`, as of `now`, if there is one."""
        index = self._state.pool_keys.find(key)
        return None if index is None else (index, self._read(index, now))

    def _read(self, index: int, now: float) -> Pool:
        pool = Pool(self._state.pools.read(index))
        pool.advance(now)
        return pool

    def _idle(self, index: int) -> bool:
        return Pool(self._state.pools.read(index)).idle and not self.places_used(index)

    def save(self, index: int, pool: Pool, *, look_at: float = 0.0) -> None:
        """Keep `pool`. `look_at`: nobody of those who wait may go before."""
        state = self._state
        state.pools.write(index, pool.values())
        if used := state.lines.read(index)[0]:
            state.lines.write(index, (used, look_at))

    def count(self, index: int, slot: int, *, calls: float = 0.0, amounts: Amounts) -> None:
        """Add to a worker's row."""
        at = index * self._state.shape.slots + slot
        opened, requests, incoming, outgoing = self._state.rows.read(at)
        row = opened + calls, requests + amounts[0], incoming + amounts[1], outgoing + amounts[2]
        self._state.rows.write(at, row if min(row) >= 0 else [max(0.0, number) for number in row])

    def go(self, index: int, pool: Pool, slot: int, amounts: Amounts, now: float) -> None:
        """A call of worker `slot` goes."""
        self.count(index, slot, calls=1, amounts=amounts)
        pool.take(amounts, now)
        self.save(index, pool)

    def never_went(self, index: int, pool: Pool, slot: int, amounts: Amounts) -> None:
        """A call that was let go did not."""
        pool.put_back(amounts)
        self.save(index, pool)
        self.count(index, slot, calls=-1, amounts=(-amounts[0], -amounts[1], -amounts[2]))

    def places_used(self, index: int) -> int:
        """0: nobody waits, nor has anybody a place to be picked up."""
        return int(self._state.lines.read(index)[0])

    def look_at(self, index: int) -> float:
        """Before this, nobody who waits may go."""
        return self._state.lines.read(index)[1]

    def places(self, index: int) -> list[tuple[float, ...]]:
        """The queue as it lies in memory, free places included; each is a `Place`."""
        return self._state.places.read_many(index * self._state.shape.places, self.places_used(index))

    def place(self, index: int, number: int) -> Place:
        """One place of the queue."""
        return Place(*self._state.places.read(index * self._state.shape.places + number))

    def put(self, index: int, number: int, place: Place) -> None:
        """Write a place; one at the end makes the queue longer. All are to be looked at anew."""
        self._state.places.write(index * self._state.shape.places + number, place)
        used = self.places_used(index)
        self._state.lines.write(index, (max(used, number + 1), 0.0))

    def free(self, index: int, number: int) -> None:
        """Empty a place; free ones at the end make the queue shorter. Others are to be looked at anew."""
        self._state.places.clear(index * self._state.shape.places + number)
        used = self.places_used(index)
        while used and self.place(index, used - 1).state == FREE:
            used -= 1
        self._state.lines.write(index, (used, 0.0))

    def beat(self, slot: int, now: float) -> None:
        """Worker `slot` looks after those of it that wait."""
        self._state.beats.write(slot, (now,))

    def waiting(self, index: int, now: float) -> list[Waiter]:
        """Those who wait and whose workers are alive."""
        beats = self._state.beats.read_many(0, self._state.slots)
        alive = {float(slot) for slot, (beat,) in enumerate(beats) if now - beat <= ALIVE}
        return [
            Waiter(arrival, number, int(client), (requests, incoming, outgoing))
            for number, (state, slot, client, arrival, requests, incoming, outgoing) in enumerate(self.places(index))
            if state == WAITING and slot in alive
        ]

    def tags(self, index: int) -> list[float]:
        """What each client has been given."""
        return list(self._state.tags.read(index))

    def serve(self, index: int, pool: Pool, now: float) -> float:
        """Let go whoever may, whichever worker it waits in. Gives the time before which nobody else may."""
        tags = self.tags(index)
        served = serve(pool, self.waiting(index, now), tags, now)
        for one in served.granted:
            place = self.place(index, one.place)
            self.put(index, one.place, place._replace(state=GRANTED))
            self.count(index, int(place.slot), calls=1, amounts=place.amounts)
        self._state.tags.write(index, tags)
        look_at = now + served.next_in if served.next_in is not None else now
        self.save(index, pool, look_at=look_at)
        return look_at

    def forget(self, index: int, slot: int) -> None:
        """Worker `slot` is dead."""
        state = self._state
        pool = Pool(state.pools.read(index))
        for number, place in enumerate(map(Place._make, self.places(index))):
            if place.state != FREE and place.slot == slot:
                if place.state == GRANTED:
                    pool.put_back(place.amounts)
                self.free(index, number)
        first = index * state.shape.slots
        state.rows.clear(first + slot)
        sums = [sum(column) for column in zip(*state.rows.read_many(first, state.slots), strict=True)]
        pool.open, pool.unanswered = sums[0], sums[1:]
        self.save(index, pool)
