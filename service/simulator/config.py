"""What a simulator is told before it starts, and the clock it lives by."""

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from service.simulator.faults import Rule


class Clock(Protocol):
    """Time as the simulator sees it; tests bring one that they move by hand."""

    def time(self) -> float:
        """Seconds since the epoch, never going back."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this clock."""


class SystemClock:
    """The machine's clock, immune to steps of the wall clock."""

    def __init__(self) -> None:
        self._epoch = time.time() - time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch, never going back."""
        return self._epoch + time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Limits:
    """Rate limits of one API key and model class, each per minute."""

    requests: int
    input_tokens: int
    output_tokens: int


UNLIMITED = Limits(10**9, 10**12, 10**12)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be chosen; the defaults behave like a small, quick Claude on the Start tier."""

    seed: int = 1
    ttfb_ms: float = 150.0  # median time to the first byte of an answer
    gap_ms: float = 20.0  # median time between two chunks
    jitter: float = 0.25  # sigma of the log-normal around both
    output_tokens: int = 120  # median length of an answer
    limits: Limits | None = None  # None: the Start tier of the model's class
    api_keys: frozenset[str] = frozenset()  # empty: any key is good
    batch_seconds: float = 1.0  # how long a message batch stays in progress
    record_requests: int = 1_000  # requests kept for /_simulator/requests
    record_calls: int = 10_000  # calls kept one by one in /_simulator/counts
    record_headers: bool = False  # keep credentials in recorded headers as they came
    schedule: tuple[Rule, ...] = ()
