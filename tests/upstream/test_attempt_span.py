"""The attempt span is httpx's instrumentation's: both run over the same calls, cleaned as on their way out, and are compared."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import AsyncOpenTelemetryTransport, RequestInfo, ResponseInfo
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import Span, SpanContext, SpanKind, TraceFlags, TraceState

from observability.catalog import Attr, Http
from observability.scrub import Scrubber
from service import settings
from service.errors import NotSent
from service.upstream.client import Client, Prepared
from service.upstream.transport import Transport
from tests.support.claude import LAST_CHUNK, SSE_HEAD, chunk
from tests.support.processes import nobody
from tests.support.upstream import Script, Upstream, answer, json_answer, reset

assert settings  # sets the stable HTTP conventions before the instrumentation reads which are wanted

CLEAN = Scrubber(["/v1/messages"]).clean


class Flagged(Sampler):
    """Records every span and samples those whose parent is, as the head sampler does."""

    def should_sample(self, parent_context: Any, *_args: Any, **options: Any) -> SamplingResult:
        attributes = options.get("attributes") or _args[3]
        parent = trace.get_current_span(parent_context).get_span_context()
        decision = Decision.RECORD_AND_SAMPLE if parent.trace_flags.sampled else Decision.RECORD_ONLY
        return SamplingResult(decision, attributes, parent.trace_state)

    def get_description(self) -> str:
        return "Flagged"


class KeepAll(SimpleSpanProcessor):
    """Those that are not sampled too."""

    def on_end(self, span: ReadableSpan) -> None:
        self.span_exporter.export((span,))


class Send(Protocol):
    """One way to send: the span's parent is current, or handed over."""

    def __call__(
        self, provider: TracerProvider, url: str, prepared: Prepared, parent: Span | None
    ) -> Awaitable[Any]: ...


async def by_hand(provider: TracerProvider, url: str, prepared: Prepared, parent: Span | None) -> None:
    """As the product does."""
    client = Client(url, Transport, provider, connect_timeout=5, idle_timeout=5)
    try:
        await (await client.send(prepared, parent)).stream.aclose()
    finally:
        await client.aclose()


async def by_instrumentation(provider: TracerProvider, url: str, prepared: Prepared, parent: Span | None) -> None:
    """As the product did: the same transport wrapped, with the two hooks."""
    wrapped = AsyncOpenTelemetryTransport(
        Transport(),
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        request_hook=_on_request,
        response_hook=_on_response,
    )
    full = url + prepared.target
    request = httpx.Request(
        prepared.method, full, headers=prepared.headers, content=prepared.body,
        extensions={"timeout": {"connect": 5, "first_byte": prepared.first_byte_timeout, "idle": 5}, "url": full},
    )  # fmt: skip
    with trace.use_span(parent or trace.get_current_span()):
        try:
            response = await wrapped.handle_async_request(request)
            await response.aclose()
        finally:
            await wrapped.aclose()


async def _on_request(span: Span, _request: RequestInfo) -> None:
    span.set_attribute(Attr.SPAN_ENDS_AT, "headers")


async def _on_response(span: Span, _request: RequestInfo, response: ResponseInfo) -> None:
    assert response.headers is not None
    for attribute, header in ((Attr.RETRY_AFTER, "retry-after"), (Attr.ANTHROPIC_REQUEST_ID, "request-id")):
        if (value := response.headers.get(header)) is not None:
            span.set_attribute(attribute, value)


@dataclass(frozen=True)
class Told:
    """What is to be equal of a span, and what went up with it."""

    name: str
    kind: SpanKind
    parent: SpanContext | None
    status: trace.StatusCode
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    flags: int
    traceparent_is_its_own: bool
    tracestate: str | None


def _run(
    send: Send, url: str, upstream: Upstream | None, prepared: Prepared, context: SpanContext, *, handed: bool
) -> tuple[Told, str]:
    """What one way tells of one call, and the name of what it raised."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=Flagged(), shutdown_on_exit=False)
    provider.add_span_processor(KeepAll(exporter))
    raised = ""

    async def work() -> None:
        parent = trace.NonRecordingSpan(context)
        with trace.use_span(trace.INVALID_SPAN if handed else parent):
            await send(provider, url, prepared, parent if handed else None)

    try:
        asyncio.run(work())
    except Exception as error:  # noqa: BLE001 compared
        raised = type(error).__name__
    (span,) = map(CLEAN, exporter.get_finished_spans())
    own = span.context
    up = {name.lower(): value for name, value in (upstream.seen[-1].headers if upstream is not None else [])}
    expected = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
    told = Told(
        span.name, span.kind, span.parent, span.status.status_code, dict(span.attributes or {}),
        [(event.name, dict(event.attributes or {})) for event in span.events],
        own.trace_flags, up.get("traceparent", expected) == expected, up.get("tracestate"),
    )  # fmt: skip
    return told, raised


def _both(case: tuple[Script | None, Prepared], context: SpanContext, *, handed: bool) -> list[tuple[Told, str]]:
    """One call sent both ways to the same address; no script: nobody listens there."""
    script, prepared = case
    if script is None:
        with nobody() as url:
            return [_run(send, url, None, prepared, context, handed=handed) for send in (by_hand, by_instrumentation)]
    with Upstream(script) as upstream:
        return [
            _run(send, upstream.url, upstream, prepared, context, handed=handed)
            for send in (by_hand, by_instrumentation)
        ]


CONTEXTS = {
    "sampled": SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=TraceFlags(1)),
    "not sampled": SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=TraceFlags(0)),
    "random trace id": SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=TraceFlags(3)),
    "with a state": SpanContext(0xA1, 0xB2, False, TraceFlags(1), TraceState([("vendor", "x"), ("other", "y")])),
}


def _post(target: str = "/v1/messages", first_byte: float = 5) -> Prepared:
    return Prepared("POST", target, [(b"content-type", b"application/json")], b"{}", first_byte)


def _status(line: str, *headers: str) -> Script:
    return lambda connection, seen: connection.sendall(answer(line, b"{}", *headers))


def _stream(connection: socket.socket, _seen: object) -> None:
    connection.sendall(SSE_HEAD + chunk(b"event: ping\ndata: {}\n\n") + LAST_CHUNK)


CASES: dict[str, tuple[Script | None, Prepared]] = {
    "ok": (json_answer(b"{}"), _post()),
    "stream": (_stream, _post()),
    "get with a query": (json_answer(b"{}"), Prepared("GET", "/v1/messages?limit=2&key=sk-ant-x", [], b"", 5)),
    "delete of an id": (json_answer(b"{}"), Prepared("DELETE", "/v1/messages/msgbatch_01A?", [], b"", 5)),
    "redirect": (_status("302 Found", "location: /x"), _post()),
    "400": (_status("400 Bad Request", "request-id: req_1"), _post()),
    "429": (_status("429 Too Many Requests", "retry-after: 7", "request-id: req_2"), _post()),
    "529": (_status("529 Overloaded", "request-id: req_3"), _post()),
    "refused": (None, _post()),
    "reset": (lambda connection, seen: reset(connection), _post()),
    "no answer": (lambda connection, seen: connection.close(), _post()),
    "not http": (lambda connection, seen: connection.sendall(b"SSH-2.0\r\n\r\n"), _post()),
    "timeout": (lambda connection, seen: None, _post(first_byte=0.05)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("handed", [True, False], ids=["parent handed over", "parent current"])
def test_the_span_by_hand_is_the_instrumentations(name: str, handed: bool) -> None:
    ours, theirs = _both(CASES[name], CONTEXTS["sampled"], handed=handed)
    assert ours == theirs
    assert ours[0].traceparent_is_its_own


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_callers_trace_goes_on_upstream_as_the_instrumentation_carried_it(context: str) -> None:
    ours, theirs = _both(CASES["ok"], CONTEXTS[context], handed=True)
    assert ours == theirs
    assert ours[0].parent == CONTEXTS[context]
    assert ours[0].tracestate == (CONTEXTS[context].trace_state.to_header() or None)


@contextmanager
def _client(script: Script) -> Iterator[tuple[Callable[..., ReadableSpan], Upstream]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def send(**options: Any) -> ReadableSpan:
        async def work() -> None:
            client = Client(upstream.url, Transport, provider, connect_timeout=5, idle_timeout=5)
            await (await client.send(_post(), None, **options)).stream.aclose()
            await client.aclose()

        asyncio.run(work())
        return exporter.get_finished_spans()[-1]

    with Upstream(script) as upstream:
        yield send, upstream


def test_a_second_try_says_that_it_is_one_and_a_first_does_not() -> None:
    with _client(json_answer(b"{}")) as (send, _):
        assert Attr.RESEND_COUNT not in (send().attributes or {})
        assert (send(resend_count=2).attributes or {})[Attr.RESEND_COUNT] == 2


def test_a_cancelled_call_ends_its_span_without_calling_it_an_error() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def work(url: str) -> None:
        client = Client(url, Transport, provider, connect_timeout=5, idle_timeout=5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.send(_post(), None)
        await client.aclose()

    with Upstream(lambda connection, seen: None) as upstream:
        asyncio.run(work(upstream.url))
    (span,) = exporter.get_finished_spans()
    told = span.attributes or {}
    assert (span.status.status_code, span.events, Http.STATUS in told) == (trace.StatusCode.UNSET, (), False)
    assert told[Attr.ERROR_TYPE] == "aborted"


def test_with_tracing_off_the_trace_still_goes_on() -> None:
    async def work(url: str) -> None:
        client = Client(url, Transport, TracerProvider(sampler=ALWAYS_OFF), connect_timeout=5, idle_timeout=5)
        parent = trace.NonRecordingSpan(CONTEXTS["sampled"])
        await (await client.send(_post(), parent)).stream.aclose()
        await client.aclose()

    with Upstream(json_answer(b"{}")) as upstream:
        asyncio.run(work(upstream.url))
    assert (upstream.seen[0].header("traceparent") or "").startswith(f"00-{0xA1:032x}-")


def test_the_words_of_a_failure_are_told_nowhere() -> None:
    (ours, _), _ = _both(CASES["refused"], CONTEXTS["sampled"], handed=True)
    named = f"{NotSent.__module__}.{NotSent.__qualname__}"
    assert ours.events == [("exception", {Http.EXCEPTION_TYPE: named, Http.EXCEPTION_ESCAPED: "False"})]


def test_a_password_in_the_providers_address_is_not_told() -> None:
    client = Client("https://user:secret@api.example:8443", Transport, trace.NoOpTracerProvider(), connect_timeout=1, idle_timeout=1)  # fmt: skip
    assert client._shown_url == "https://REDACTED:REDACTED@api.example:8443"
