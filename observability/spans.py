"""OpenTelemetry's tracing API over light spans: plain slots while a request runs, the SDK's form only for what leaves.

Whether a trace is kept is known at its end, so every span is recorded; at full load most are then dropped. The SDK's own
span takes locks, bounded copies of its attributes and a sampler's result for each: a tenth of a request's CPU for spans
that nobody will see. Anything written against the API, instrumentations too, works with these as with the SDK's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import getrandbits

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes, AttributeValue

from observability.attributes import EXCEPTION_EVENT, Http

_RANDOM = TraceFlags.RANDOM_TRACE_ID
_FLAGS = tuple(TraceFlags(flags) for flags in range(4))
"""By their bits: sampled, random trace id."""
_UNSET = Status(StatusCode.UNSET)

Ended = Callable[["Span"], None]


class Local:
    """The spans of one request in this process: a local root and what began under it. See `observability.export`."""

    __slots__ = ("closed", "decided", "ended", "kept", "reserved", "root")

    def __init__(self, root: int) -> None:
        self.root = root
        """The root's span id."""
        self.ended: list[Span] = []
        self.decided = self.kept = self.closed = False
        self.reserved = 0


class Span(trace.Span):
    """One span. `set_…` and `add_event` after its end change nothing."""

    __slots__ = (
        "_context", "_ended", "attributes", "end_time", "events", "kind", "links", "local", "name", "parent", "scope",
        "start_time", "status",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        local: Local,
        kind: SpanKind,
        attributes: Attributes,
        scope: InstrumentationScope,
        start_time: int | None,
        ended: Ended,
    ) -> None:
        self.name, self._context, self.parent, self.local, self.kind = name, context, parent, local, kind
        self.attributes: dict[str, AttributeValue] = dict(attributes) if attributes else {}
        self.events: list[tuple[str, Attributes, int]] = []
        self.links: Sequence[Link] = ()
        self.status = _UNSET
        self.scope, self._ended = scope, ended
        self.start_time = time.time_ns() if start_time is None else start_time
        self.end_time: int | None = None

    def get_span_context(self) -> SpanContext:
        """Its ids and flags."""
        return self._context

    def is_recording(self) -> bool:
        """Whether it has not ended."""
        return self.end_time is None

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one."""
        if self.end_time is None:
            self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several."""
        if self.end_time is None:
            self.attributes.update(attributes)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Something that happened, now or at `timestamp` (Unix nanoseconds)."""
        if self.end_time is None:
            self.events.append((name, attributes, time.time_ns() if timestamp is None else timestamp))

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """As the API has it: OK is final, UNSET changes nothing."""
        new = status if isinstance(status, Status) else Status(status, description)
        final = self.status.status_code is StatusCode.OK or new.status_code is StatusCode.UNSET
        if self.end_time is None and not final:
            self.status = new

    def update_name(self, name: str) -> None:
        """Rename it."""
        if self.end_time is None:
            self.name = name

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Its type as an event. Its words and traceback may quote anything: they are told nowhere."""
        kind = type(exception)
        named = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        told = {Http.EXCEPTION_TYPE: named, Http.EXCEPTION_ESCAPED: str(escaped)}
        self.add_event(EXCEPTION_EVENT, {**told, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """It has ended, now or at `end_time` (Unix nanoseconds); only the first call counts."""
        if self.end_time is None:
            self.end_time = time.time_ns() if end_time is None else end_time
            self._ended(self)

    def readable(self, resource: Resource) -> ReadableSpan:
        """The SDK's form of it, for exporters."""
        return ReadableSpan(
            name=self.name,
            context=self._context,
            parent=self.parent,
            resource=resource,
            attributes={k: tuple(v) if isinstance(v, list) else v for k, v in self.attributes.items()},
            events=[Event(name, attributes, timestamp) for name, attributes, timestamp in self.events],
            links=self.links,
            kind=self.kind,
            status=self.status,
            start_time=self.start_time,
            end_time=self.end_time,
            instrumentation_scope=self.scope,
        )


class Tracer(trace.Tracer):
    """Makes spans. `takes` is the head decision on a trace id that no caller has decided; None: no spans at all."""

    def __init__(self, scope: InstrumentationScope, takes: Callable[[int], bool] | None, ended: Ended) -> None:
        self._scope, self._takes, self._ended = scope, takes, ended

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        """A span under the one that is current in `context`; its flag is its caller's, or the head's, or that of a
        promise made meanwhile."""
        above = trace.get_current_span(context)
        parent, span_id, local = above.get_span_context(), getrandbits(64) or 1, None
        if parent.is_valid:
            trace_id, state, sampled = parent.trace_id, parent.trace_state, parent.trace_flags.sampled
            random = parent.trace_flags & _RANDOM
            if isinstance(above, Span) and not above.local.closed:
                local = above.local
                sampled = sampled or local.kept
        else:
            trace_id, state, random = getrandbits(128) or 1, None, _RANDOM
            sampled = self._takes is not None and self._takes(trace_id)
        if self._takes is None:
            return trace.NonRecordingSpan(SpanContext(trace_id, span_id, False, _FLAGS[random], state))
        own = SpanContext(trace_id, span_id, False, _FLAGS[random | sampled], state)
        given = parent if parent.is_valid else None
        span = Span(name, own, given, local or Local(span_id), kind, attributes, self._scope, start_time, self._ended)
        if links:
            span.links = links
        return span

    @contextmanager
    def start_as_current_span(  # type: ignore[override]  # the API's decorator on top of it is private
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[trace.Span]:
        """The same, current in the block inside."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span


class TracerProvider(trace.TracerProvider):
    """Hands out tracers; every span that ends goes to `ended`, and to the processors that were added."""

    def __init__(self, resource: Resource, takes: Callable[[int], bool] | None, ended: Ended) -> None:
        self.resource = resource
        self._takes, self._first = takes, ended
        self._processors: tuple[SpanProcessor, ...] = ()

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        """The API's; the arguments become the scope."""
        scope = InstrumentationScope(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        return Tracer(scope, self._takes, self._end)

    def add_span_processor(self, processor: SpanProcessor) -> None:
        """The SDK's way to see every span as it ends, whether it is kept or not."""
        self._processors = (*self._processors, processor)

    def _end(self, span: Span) -> None:
        self._first(span)
        for processor in self._processors:
            processor.on_end(span.readable(self.resource))
