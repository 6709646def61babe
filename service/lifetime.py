"""How long a request lives and what it waits for: shared by the door that sees the client and the flow that serves it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum, auto


class Ending(Enum):
    """Why a request is being ended from outside; its task gets a cancellation to go with it."""

    CLIENT_GONE = auto()
    DRAIN = auto()


class Waits:
    """Adds up seconds during which at least one wait was on: overlapping waits count once."""

    __slots__ = ("_clock", "_open", "_since", "_sum", "_within")

    def __init__(self, clock: Callable[[], float], within: Waits | None = None) -> None:
        self._clock = clock
        self._within = within
        """Another account that has this one's waits too."""
        self._open = 0
        self._since = 0.0
        self._sum = 0.0

    def waiting(self) -> Waits:
        """`with waits.waiting():` the block inside is a wait."""
        return self

    def __enter__(self) -> None:
        self._begin(self._clock())

    def __exit__(self, *_ended: object) -> None:
        self._end(self._clock())

    def _begin(self, now: float) -> None:
        # One reading of the clock for both accounts: a process stopped between two would make them differ.
        if not self._open:
            self._since = now
        self._open += 1
        if self._within is not None:
            self._within._begin(now)

    def _end(self, now: float) -> None:
        self._open -= 1
        if not self._open:
            self._sum += now - self._since
        if self._within is not None:
            self._within._end(now)

    def add(self, seconds: float) -> None:
        """Count a wait that was measured elsewhere and overlapped with no other."""
        self._sum += seconds
        if self._within is not None:
            self._within.add(seconds)

    @property
    def seconds(self) -> float:
        """The union of all waits so far, one still on included."""
        return self._sum + (self._clock() - self._since if self._open else 0.0)


class Lifetime:
    """One HTTP request as its door sees it: when it began, whether it must end, what it waits for. Times by `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.started = clock()
        self.started_ns = time.time_ns()
        """The same moment on the wall clock, for the SERVER span."""
        self.ending: Ending | None = None
        self.waited = Waits(clock)
        """Waiting for anybody: what is left of the request's time is our own."""
        self.client = Waits(clock, self.waited)
        """Waiting for the client: its body, or room in its socket."""
        self.upstream = Waits(clock, self.waited)
        """Waiting for the provider, over all calls of the request."""
        self.queue = Waits(clock, self.waited)
        """Waiting for capacity, so that a limit is not overrun."""
        self.backoff = Waits(clock, self.waited)
        """Pausing between two attempts."""


def absorb_cancellation() -> None:
    """The current task goes on although it was cancelled: whoever cancelled it wanted an orderly end, not a stop."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
