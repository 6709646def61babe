"""Waiting on purpose, told as it is: spans, metrics and the request's books, for capacity and between attempts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span

from observability import catalog
from observability.catalog import Attr
from observability.start import Telemetry
from observability.tracing import Attributes
from service.account.call import Call
from service.account.exchange import Exchange


class Pauses:
    """Tells of pauses as they happen."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._metrics = telemetry.metrics
        self._tracing = telemetry.tracing

    @contextmanager
    def for_capacity(self, exchange: Exchange, call: Call) -> Iterator[Span]:
        """The block inside waits for room. The span is still to be told what for, and ended, by `waited_for`."""
        span = self._tracing.start_pause(catalog.QUEUE_SPAN, {Attr.PROVIDER: call.provider}, call.span)
        began = exchange.lifetime.clock()
        self._metrics.add(catalog.QUEUE_DEPTH, (call.provider,), 1)
        try:
            with exchange.lifetime.queue.waiting():
                yield span
        finally:
            self._metrics.add(catalog.QUEUE_DEPTH, (call.provider,), -1)
            seconds = exchange.lifetime.clock() - began
            call.queued += seconds
            self._metrics.observe(catalog.QUEUE_WAIT, seconds, (call.provider,))

    def waited_for(self, span: Span, dimension: str | None, predicted: float | None) -> None:
        """A wait is over that was for `dimension`, and was expected to last `predicted` seconds."""
        rounded = None if predicted is None else round(predicted, 3)
        self._tracing.end(span, {Attr.LIMITED_BY: dimension, Attr.PREDICTED_WAIT: rounded}, None)

    @contextmanager
    def before_retry(
        self, exchange: Exchange, call: Call, reason: str, seconds: float, asked_by: str
    ) -> Iterator[None]:
        """The block inside waits `seconds` before another attempt, because of `reason`; `asked_by` set the time."""
        attributes: Attributes = {
            Attr.RETRY_REASON: reason,
            Attr.BACKOFF_SECONDS: round(seconds, 3),
            Attr.BACKOFF_ASKED_BY: asked_by,
        }
        span = self._tracing.start_pause(catalog.BACKOFF_SPAN, attributes, call.span)
        began = exchange.lifetime.clock()
        try:
            with exchange.lifetime.backoff.waiting():
                yield
        finally:
            waited = exchange.lifetime.clock() - began
            call.paused += waited
            self._metrics.observe(catalog.RETRY_WAIT, waited, (call.provider, reason))
            span.end()

    def handed_over(self, call: Call, stand_in: str) -> None:
        """The call goes to a stand-in model."""
        self._metrics.add(catalog.FALLBACKS, (call.provider, call.model or "", stand_in))

    def cache_asked(self, route: str, result: str) -> None:
        """The answer cache was asked."""
        self._metrics.add(catalog.CACHE_REQUESTS, (route, result))

    def failed_open(self) -> None:
        """A decision was made without the host's shared state."""
        self._metrics.add(catalog.LIMITER_FAIL_OPEN)
