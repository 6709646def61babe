"""Which traces are kept: a head decision whose flag goes upstream, and an end that may only upgrade it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

if TYPE_CHECKING:
    from observability.export import SpanQueue


class HeadSampler(Sampler):
    """The caller's flag if it sent one, else a share of the trace ids within `per_second` traces.

    A trace that is not taken is still recorded, because its end may upgrade it; then its later spans carry the flag.
    """

    def __init__(
        self, ratio: float, per_second: float, queue: SpanQueue, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ratio = TraceIdRatioBased(ratio)
        self._per_second = per_second
        self._queue = queue
        self._clock = clock
        self._allowance, self._filled = per_second, clock()

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """The SDK's hook, at the start of every span."""
        parent = trace.get_current_span(parent_context).get_span_context()
        if not parent.is_valid:
            taken = trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._ratio.bound and self._within_rate()
        else:
            taken = parent.trace_flags.sampled or (not parent.is_remote and self._queue.is_upgraded(parent.span_id))
        decision = Decision.RECORD_AND_SAMPLE if taken else Decision.RECORD_ONLY
        return SamplingResult(decision, attributes, parent.trace_state if parent.is_valid else None)

    def get_description(self) -> str:
        """For the SDK's own messages."""
        return f"HeadSampler({self._ratio.rate}, {self._per_second}/s)"

    def _within_rate(self) -> bool:
        """A token bucket one second deep."""
        now = self._clock()
        self._allowance = min(self._per_second, self._allowance + (now - self._filled) * self._per_second)
        self._filled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True
