"""How many retries there may be: a share of recent traffic, so that retries cannot become the storm."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

WINDOW = 60.0
"""Seconds that traffic counts for: what is older fades out."""
FLOOR = 10.0
"""Retries that are always allowed in a window: with little traffic a share of it would be none."""


def faded(count: float, seconds: float) -> float:
    """What is left of a count after so many seconds; the clock may have gone back."""
    return count * math.exp(-max(0.0, seconds) / WINDOW)


class LocalBudget:
    """One process's own budget; `share` is retries per request."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock = share, clock
        self._requests = self._retries = 0.0
        self._at = clock()

    def _fade(self) -> None:
        now = self._clock()
        self._requests, self._retries = faded(self._requests, now - self._at), faded(self._retries, now - self._at)
        self._at = now

    def count_request(self) -> None:
        """A call is sent for the first time."""
        self._fade()
        self._requests += 1

    def try_retry(self) -> bool:
        """Whether one more retry fits; if so it is counted."""
        self._fade()
        fits = self._retries + 1 <= max(FLOOR, self._share * self._requests)
        self._retries += fits
        return fits
