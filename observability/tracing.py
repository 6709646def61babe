"""Spans: the provider, and the few spans that no instrumentation makes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from observability import catalog
from observability.export import Drop, SpanQueue
from observability.sampling import Head
from observability.scrub import Scrubber
from observability.spans import Span as LightSpan
from observability.spans import TracerProvider

Attributes = Mapping[str, AttributeValue | None]
_ERROR = Status(StatusCode.ERROR)


@dataclass(frozen=True, slots=True)
class Options:
    """How traces are kept and sent: share of trace ids and traces a second taken at the head, the OTLP/HTTP base address
    (empty: nothing leaves), spans that may wait, seconds between exports, seconds from which a request is slow. `off` makes
    no spans at all."""

    ratio: float = 1.0
    per_second: float = 100.0
    endpoint: str = ""
    queue: int = 8192
    delay: float = 1.0
    slow: float = 60.0
    off: bool = False


class Tracing:
    """Makes the provider, starts and ends the spans that are ours.

    Attributes whose value is None are left out: unknown is absent. Only W3C trace context is read and written: incoming
    `baggage` is the client's own and does not go upstream.
    """

    def __init__(
        self,
        service_name: str,
        version: str,
        options: Options,
        on_success: Callable[[], None],
        on_drop: Drop,
        routes: Set[str] = frozenset(),
    ) -> None:
        self.slow = options.slow
        propagate.set_global_textmap(TraceContextTextMapPropagator())
        resource = Resource.create(
            {"service.name": service_name, "service.version": version, "service.instance.id": str(uuid.uuid4())}
        )
        exporter = OTLPSpanExporter(endpoint=f"{options.endpoint}/v1/traces") if options.endpoint else None
        self._queue = SpanQueue(
            exporter,
            resource,
            bound=options.queue,
            delay=options.delay,
            on_success=on_success,
            on_drop=on_drop,
            clean=Scrubber(routes).clean,
        )
        takes = None if options.off else Head(options.ratio, options.per_second).takes
        self.provider = TracerProvider(resource, takes, self._queue.take)
        self._tracer: Tracer = self.provider.get_tracer("claude-proxy", version)

    def stop(self, timeout: float) -> None:
        """Export what waits, within `timeout` seconds."""
        self._queue.shutdown(timeout)

    def keep(self, span: Span, *, upgrade: bool) -> bool:
        """Whether the trace of `span` will be exported; `upgrade` says that it is worth it whatever the head decided."""
        return self._queue.keep(span, upgrade=upgrade)

    def start_inference(
        self, operation: str, model: str, attributes: Attributes, start_time: int | None = None
    ) -> Span:
        """The CLIENT span of one provider call, `chat claude-opus-5-5`; it lasts from `start_time` (Unix nanoseconds)
        until the last chunk."""
        name = f"{operation} {model}".rstrip()
        return self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=_known(attributes), start_time=start_time)

    def start_pause(self, name: str, attributes: Attributes, parent: Span | None) -> Span:
        """An INTERNAL span for waiting on purpose, under `parent` or else under the current span."""
        context = trace.set_span_in_context(parent) if parent is not None else None
        return self._tracer.start_span(name, context, kind=SpanKind.INTERNAL, attributes=_known(attributes))

    @staticmethod
    def end(span: Span, attributes: Attributes, error_type: str | None, seconds: float | None = None) -> None:
        """Set what is known at the end and end the span, as of now or `seconds` after its start; `error_type` makes its
        status ERROR."""
        Tracing.annotate(span, attributes, error_type)
        if seconds is not None and isinstance(span, LightSpan):
            span.end(span.start_time + round(seconds * 1e9))
        else:
            span.end()

    @staticmethod
    def annotate(span: Span, attributes: Attributes, error_type: str | None) -> None:
        """Add to a span that somebody else ends; `error_type` makes it an ERROR."""
        known = _known(attributes)
        if error_type is not None:
            known[catalog.Attr.ERROR_TYPE] = error_type
            span.set_status(_ERROR)
        span.set_attributes(known)


def tell_exception(span: Span, error: Exception) -> None:
    """An ERROR with the exception's type as an event."""
    span.record_exception(error)
    span.set_status(_ERROR)


def _known(attributes: Attributes) -> dict[str, AttributeValue]:
    return {key: value for key, value in attributes.items() if value is not None}
