"""What a client of ours may do: requests and tokens per minute, requests at a time, money per day.

Counts hold what was used, not what is left, so other limits after a reload apply to the same counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

DAY = 86_400.0
_LITTLE = 1e-6
_BUSY = 1.0
"""Seconds to come back after when all that one may have at a time are in use: nobody knows when one ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A client's limits; None: no such limit. `budget` is in nano-dollars per UTC day."""

    requests: float | None = None
    tokens: float | None = None
    concurrency: int | None = None
    budget: int | None = None


class Reached(NamedTuple):
    """Which limit says no, and the seconds until it might not."""

    limit: str
    retry_after: float


class Left(NamedTuple):
    """For rate-limit headers: what one limit is, what is left of it, seconds until it is all there again."""

    limit: float
    remaining: float
    reset: float


class Counts:
    """What one client has used. All zero: nothing."""

    __slots__ = ("day", "requests", "spent", "tokens", "updated")
    WIDTH = 5

    def __init__(self, values: Sequence[float]) -> None:
        self.requests, self.tokens, self.updated, self.day, self.spent = values

    def values(self) -> tuple[float, ...]:
        """What to keep."""
        return self.requests, self.tokens, self.updated, self.day, self.spent

    def advance(self, limits: Limits, now: float, wall: float) -> None:
        """What was used flows back evenly, as the limit refills; a clock that went backwards gives nothing back.

        `now` is monotonic, `wall` Unix seconds: the day changes at UTC midnight, and never back.
        """
        passed = now - self.updated
        if passed > 0:
            self.updated = now
            self.requests = _flowed(self.requests, limits.requests, passed)
            self.tokens = _flowed(self.tokens, limits.tokens, passed)
        if (day := wall // DAY) > self.day:
            self.day, self.spent = day, 0.0

    def refusal(self, limits: Limits, active: float, wall: float) -> Reached | None:
        """The limit that keeps one more request out: the one that does so for longest. `active` are under way."""
        found = []
        if limits.requests is not None:
            burst = max(limits.requests, 1.0) if limits.requests > 0 else 0.0  # less than one a minute is one at times
            if self.requests + 1 > burst + _LITTLE:
                found.append(Reached("requests", _until(self.requests + 1 - burst, limits.requests)))
        if limits.tokens is not None and self.tokens >= limits.tokens:
            found.append(Reached("tokens", _until(self.tokens + 1 - limits.tokens, limits.tokens)))
        if limits.concurrency is not None and active >= limits.concurrency:
            found.append(Reached("concurrency", _BUSY))
        if limits.budget is not None and self.spent >= limits.budget:
            found.append(Reached("budget", (self.day + 1) * DAY - wall))
        return max(found, key=lambda one: one.retry_after, default=None)

    def left(self, limits: Limits, active: float, wall: float) -> dict[str, Left]:
        """Every limit there is, by name."""
        found = {}
        if limits.requests is not None:
            found["requests"] = _left(limits.requests, self.requests)
        if limits.tokens is not None:
            found["tokens"] = _left(limits.tokens, self.tokens)
        if limits.concurrency is not None:
            found["concurrency"] = Left(limits.concurrency, max(0.0, limits.concurrency - active), 0.0)
        if limits.budget is not None:
            rest = (self.day + 1) * DAY - wall
            found["budget"] = Left(limits.budget, max(0.0, limits.budget - self.spent), rest)
        return found


def _flowed(used: float, limit: float | None, seconds: float) -> float:
    per_second = (used if limit is None else limit) / 60
    return max(0.0, used - per_second * seconds)


def _until(lacking: float, limit: float) -> float:
    return lacking * 60 / limit if limit > 0 else DAY


def _left(limit: float, used: float) -> Left:
    return Left(limit, max(0.0, limit - used), used * 60 / limit if limit > 0 else 0.0)
