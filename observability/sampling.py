"""Which traces the head takes, where their callers have not decided: a share of the trace ids, within a rate.

The flag goes upstream. A trace that is not taken is still recorded, because its end may upgrade it (`SpanQueue.keep`);
then its later spans carry the flag.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.sdk.trace.sampling import TraceIdRatioBased


class Head:
    """`ratio` of the trace ids, as every SDK computes it, and at most `per_second` traces."""

    def __init__(self, ratio: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._bound = TraceIdRatioBased(ratio).bound
        self._per_second = per_second
        self._clock = clock
        self._allowance, self._filled = per_second, clock()

    def takes(self, trace_id: int) -> bool:
        """Whether a trace that begins here is taken."""
        return trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound and self._is_within_rate()

    def _is_within_rate(self) -> bool:
        """A token bucket one second deep."""
        now = self._clock()
        self._allowance = min(self._per_second, self._allowance + (now - self._filled) * self._per_second)
        self._filled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True
