"""Spans: the provider, the export that counts its losses, and the few spans that no instrumentation makes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence

from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from observability import catalog

Attributes = Mapping[str, AttributeValue | None]


class CountingExporter(SpanExporter):
    """Hands spans to `inner` and tells how it went; never raises."""

    def __init__(
        self, inner: SpanExporter, on_success: Callable[[], None], on_drop: Callable[[str, int], None]
    ) -> None:
        self._inner = inner
        self._on_success, self._on_drop = on_success, on_drop

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch; whatever goes wrong is a failure that has been counted."""
        try:
            result = self._inner.export(spans)
        except Exception:  # noqa: BLE001 counted; an exporter's bug must not stop the export thread
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._on_success()
        else:
            self._on_drop("export_failed", len(spans))
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held here."""
        return self._inner.force_flush(timeout_millis)


def make_provider(
    service_name: str, version: str, endpoint: str, on_success: Callable[[], None], on_drop: Callable[[str, int], None]
) -> TracerProvider:
    """A provider that exports over OTLP/HTTP to `endpoint`, or nowhere when it is empty.

    Only W3C trace context is read and written: incoming `baggage` is the client's own and does not go upstream.
    """
    propagate.set_global_textmap(TraceContextTextMapPropagator())
    resource = Resource.create(
        {"service.name": service_name, "service.version": version, "service.instance.id": str(uuid.uuid4())}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    if endpoint:
        exporter = CountingExporter(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces"), on_success, on_drop)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class Tracing:
    """Starts and ends the spans that are ours. Attributes whose value is None are left out: unknown is absent."""

    def __init__(self, provider: TracerProvider, version: str) -> None:
        self.provider = provider
        self._tracer: Tracer = provider.get_tracer("claude-proxy", version)

    def start_inference(self, operation: str, model: str, attributes: Attributes) -> Span:
        """The CLIENT span of one provider call, `chat claude-opus-5-5`; it lasts until the last chunk."""
        return self._tracer.start_span(
            f"{operation} {model}".rstrip(), kind=SpanKind.CLIENT, attributes=_known(attributes)
        )

    @staticmethod
    def end(span: Span, attributes: Attributes, error_type: str | None) -> None:
        """Set what is known at the end and end the span; `error_type` makes its status ERROR."""
        span.set_attributes(_known(attributes))
        if error_type is not None:
            span.set_attribute(catalog.Attr.ERROR_TYPE, error_type)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    @staticmethod
    def annotate(span: Span, attributes: Attributes, error_type: str | None) -> None:
        """Add what its instrumentation cannot know to a span that somebody else ends; `error_type` makes it an ERROR."""
        span.set_attributes(_known(attributes))
        if error_type is not None:
            span.set_attribute(catalog.Attr.ERROR_TYPE, error_type)
            span.set_status(Status(StatusCode.ERROR))


def _known(attributes: Attributes) -> dict[str, AttributeValue]:
    return {key: value for key, value in attributes.items() if value is not None}
