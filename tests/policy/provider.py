"""A provider's own count, and a gateway in front of it, both in made-up time: what pacing is judged by."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from service.policy.fairness import CLIENTS, Waiter, serve
from service.policy.pacing import DIMENSIONS, STEPS, Amounts, Limit, Pool

Limits = tuple[float, float, float]


class Bucket:
    """A limit as the API keeps it: a minute's worth, refilled evenly, full at first."""

    def __init__(self, limit: float) -> None:
        self.limit, self.level, self.updated = limit, limit, 0.0

    def at(self, now: float) -> float:
        """What is left."""
        self.level = min(self.limit, self.level + (now - self.updated) * self.limit / 60)
        self.updated = now
        return self.level


class Provider:
    """Answers calls with 200 or 429 and counts both."""

    def __init__(self, limits: Limits) -> None:
        self.buckets = [Bucket(limit) for limit in limits]
        self.admitted: list[float] = []
        self.rejected = 0

    def call(self, amounts: Amounts, now: float) -> bool:
        """A call arrives. Output is not reserved."""
        requests, tokens, output = (bucket.at(now) for bucket in self.buckets)
        fits = requests >= 1 - 1e-6 and tokens >= min(amounts[1], self.buckets[1].limit) - 1e-6 and output > 0
        if not fits:
            self.rejected += 1
            return False
        self.admitted.append(now)
        self.buckets[0].level -= 1
        self.buckets[1].level -= amounts[1]
        return True

    def produced(self, output: float, now: float) -> None:
        """A call produced output."""
        self.buckets[2].at(now)
        self.buckets[2].level -= output

    def headers(self, now: float) -> list[Limit]:
        """What its answer tells: `remaining` rounded as the API does."""
        return [
            Limit(name, bucket.limit, max(0.0, min(bucket.limit, round(bucket.at(now) / step) * step)))
            for name, bucket, step in zip(DIMENSIONS, self.buckets, STEPS, strict=True)
        ]


@dataclass
class Wanted:
    """One call: when it is asked for, by whom, what it really takes, and how long each part of it lasts."""

    at: float
    client: int
    amounts: Amounts
    guess: Amounts
    to_provider: float
    to_headers: float
    to_end: float


@dataclass
class Gateway:
    """Paces calls with a `Pool`, as the product does it: at once, or in order when somebody waits."""

    provider: Provider
    pool: Pool = field(default_factory=lambda: Pool([0.0] * Pool.WIDTH))
    tags: list[float] = field(default_factory=lambda: [0.0] * CLIENTS)
    waiting: dict[int, Wanted] = field(default_factory=dict)
    went: list[tuple[float, int]] = field(default_factory=list)
    """When each call went, and whose it was."""
    alarm: float = 0.0

    def run(self, calls: list[Wanted], until: float) -> None:
        """Let time pass until all has happened, or `until`."""
        order = itertools.count()
        events: list[tuple[float, int, Callable[[float], None]]] = []

        def at(when: float, what: Callable[[float], None]) -> None:
            heapq.heappush(events, (when, next(order), what))

        def look(now: float) -> None:
            self.pool.advance(now)
            line = [Waiter(one.at, n, one.client, one.guess) for n, one in self.waiting.items()]
            served = serve(self.pool, line, self.tags, now)
            for waiter in served.granted:
                one = self.waiting.pop(waiter.place)
                self.went.append((now, one.client))
                before = list(self.pool.answered)
                at(now + one.to_provider, lambda t, one=one, now=now, before=before: arrive(t, one, now, before))  # type: ignore[misc]
            if served.next_in is not None:
                self.alarm = now + max(0.001, served.next_in)
                at(self.alarm, wake)

        def wake(now: float) -> None:
            if now == self.alarm:  # else another was set since
                look(now)

        def arrive(now: float, one: Wanted, sent: float, before: list[float]) -> None:
            ok = self.provider.call(one.amounts, now)
            headers = self.provider.headers(now)
            at(now + one.to_headers, lambda t: answer(t, one, sent, before, headers, ok))

        def answer(now: float, one: Wanted, sent: float, before: list[float], headers: list[Limit], ok: bool) -> None:
            self.pool.advance(now)
            self.pool.answer(one.guess, headers if ok else None, sent, before, now)
            if ok:
                self.pool.correct_input(one.guess[1], one.amounts[1], 0, 0)
                at(now + one.to_end, lambda t: end(t, one))
            else:
                self.pool.reject(one.guess, 1.0, None, sent, now)
                self.pool.end(0.0, None)
            look(now)

        def end(now: float, one: Wanted) -> None:
            self.pool.advance(now)
            self.provider.produced(one.amounts[2], now)
            self.pool.end(one.guess[2], one.amounts[2])
            look(now)

        for number, one in enumerate(calls):

            def ask(now: float, number: int = number, one: Wanted = one) -> None:
                self.waiting[number] = one
                if now >= self.alarm:
                    look(now)

            at(one.at, ask)
        while events and events[0][0] <= until:
            now, _, what = heapq.heappop(events)
            what(now)


def backlog(
    count: int, *, seed: int = 0, amounts: Amounts = (1.0, 10.0, 10.0), clients: int = 1, noise: float = 0.0,
    delay: float = 0.5, lasting: float = 2.0,
) -> list[Wanted]:  # fmt: skip
    """So many calls at once, with random delays on their way; guesses are wrong by up to the factor 1 + `noise`."""
    chance = random.Random(seed)
    calls = []
    for number in range(count):
        guess = (
            1.0,
            amounts[1] * (1 + chance.uniform(-noise, noise)),
            amounts[2] * (1 + chance.uniform(-noise, noise)),
        )
        delays = (chance.uniform(0, delay), chance.uniform(0, delay), chance.uniform(0, lasting))
        calls.append(Wanted(number * 1e-6, number % clients, amounts, guess, *delays))
    return calls


def most_in_any_window(times: list[float], limit: float) -> float:
    """By how much the admissions of any window were more than a bucket of `limit` a minute gives: at most 0 is right."""
    worst, level, last = -limit, limit, times[0] if times else 0.0
    for now in sorted(times):
        level = min(limit, level + (now - last) * limit / 60) - 1
        last = now
        worst = max(worst, -level)
    return worst
