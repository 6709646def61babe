"""The host's retry budget: retries stay a share of the traffic of all workers, so that they cannot become the storm."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import blake2b

from service.pacer.access import Access
from service.policy.budget import FLOOR, faded
from service.store.shared import SharedState

WIDTH = 3
"""Numbers kept for a provider: requests, retries, and when they were last faded."""

_CALM = 0.5
"""Retries of late below which a failure is the first of its storm."""


class RetryBudget:
    """One provider's budget; `share` is retries per request. Without the shared state a retry is allowed."""

    def __init__(
        self,
        state: SharedState,
        slot: int,
        provider: str,
        share: float,
        *,
        fail_open: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._share, self._clock = state, share, clock
        self._key = blake2b(provider.encode(), digest_size=16).digest()
        self._access = Access(state, slot, fail_open)

    def count_request(self) -> None:
        """A call is sent for the first time."""
        self._access.soon(self._count)

    def try_retry(self) -> bool:
        """Whether one more retry fits; if so it is counted."""
        if not self._access.enter():
            self._access.fail_open()
            return True
        try:
            index, requests, retries = self._faded()
            if retries < _CALM:
                requests = 0.0  # what calm times have earned is not for the storm: its own requests count
            fits = self._fits(requests, retries)
            self._write(index, requests, retries + fits)
            return fits
        finally:
            self._access.leave()

    def has_room(self) -> bool:
        """Whether one more retry would fit."""
        if not self._access.enter():
            self._access.fail_open()
            return True
        try:
            _, requests, retries = self._faded()
            return self._fits(requests, retries)
        finally:
            self._access.leave()

    def _fits(self, requests: float, retries: float) -> bool:
        return retries + 1 <= max(FLOOR, self._share * requests)

    def _count(self) -> None:
        index, requests, retries = self._faded()
        self._write(index, requests + 1, retries)

    def _faded(self) -> tuple[int, float, float]:
        now = self._clock()
        index = self._state.provider(self._key, now)
        requests, retries, at = self._state.providers.read(index)
        return index, faded(requests, now - at), faded(retries, now - at)

    def _write(self, index: int, requests: float, retries: float) -> None:
        self._state.providers.write(index, (requests, retries, self._clock()))
