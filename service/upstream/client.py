"""Sends one prepared request to a provider, as one attempt span with its own `traceparent`.

The span is the one that `opentelemetry-instrumentation-httpx` would make (a test runs both and compares), without what that
costs: a second parse of the address, two context switches, attributes for metrics that nobody reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import httpx
import msgspec
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.util.http import redact_url

from observability import tracing
from observability.catalog import Attr, Http
from service.upstream.transport import Headers, Timeouts, Transport

_PORTS = {"http": 80, "https": 443}
_SHOWN = ((Attr.RETRY_AFTER, "retry-after"), (Attr.ANTHROPIC_REQUEST_ID, "request-id"))


class Response(Protocol):
    """What callers need of an answer; `stream` raises `DiedMidBody` or `Stalled`, and must be closed."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def stream(self) -> Stream: ...


class Stream(Protocol):
    """Bytes as they arrive."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


class Prepared(msgspec.Struct, frozen=True):
    """What goes up: `target` is path and query as they are to stand on the wire, `headers` exactly those to be sent.

    A `body` that is an iterator is streamed and can be sent once. `first_byte_timeout` is in seconds.
    """

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes | AsyncIterator[bytes]
    first_byte_timeout: float

    @property
    def is_safe(self) -> bool:
        """Whether sending it twice changes nothing and costs nothing: it reads, or counts tokens."""
        return self.method in ("GET", "HEAD") or self.target.partition("?")[0].endswith(
            ("/count_tokens", ":countTokens")
        )


class Client:
    """A connection pool to one provider. Its transport is made on first use, on the loop that uses it."""

    def __init__(
        self,
        base_url: str,
        make_transport: Callable[[], Transport],
        provider: TracerProvider,
        *,
        connect_timeout: float,
        idle_timeout: float,
    ) -> None:
        self.base_url = base_url
        self._make = make_transport
        address = httpx.URL(base_url)
        self._server: dict[str, str | int] = {
            Attr.SERVER_ADDRESS: address.host,
            Attr.SERVER_PORT: address.port or _PORTS[address.scheme],
        }
        self._peer = _peer(address)
        self._shown_url = redact_url(str(address)).rstrip("/")
        """Without a user's password, and as conventions want it."""
        self._tracer = provider.get_tracer("claude-proxy")
        self.idle_timeout = idle_timeout
        self._connect_timeout = connect_timeout
        self._transport: Transport | None = None

    async def send(self, prepared: Prepared, parent: Span | None, resend_count: int = 0) -> Response:
        """Send and return once the answer's headers are in; the caller must close it. Raises `UpstreamFailed`.

        `parent` is the call's span (None: the current one), `resend_count` says how often it was sent before.
        """
        if not prepared.target.startswith("/"):
            # Anything else could move the end of the address, and with it the host that gets our credential.
            raise ValueError("a target begins with a slash")
        transport = self._transport = self._transport or self._make()
        span = self._begin(prepared, parent, resend_count)
        try:
            received = await transport.send(
                prepared.method,
                self.base_url + prepared.target,
                [*prepared.headers, *_trace_context(span)],
                prepared.body,
                Timeouts(self._connect_timeout, prepared.first_byte_timeout, self.idle_timeout),
            )
            _tell_answer(span, received)
        except asyncio.CancelledError:
            span.set_attribute(Attr.ERROR_TYPE, "aborted")  # by us, or by the client: no fault of the provider's
            raise
        except Exception as error:
            span.set_attribute(Attr.ERROR_TYPE, type(error).__qualname__)
            tracing.tell_exception(span, error)
            raise
        finally:
            span.end()
        return received

    @property
    def is_open(self) -> bool:
        """Whether there is a pool: it is made at the first request."""
        return self._transport is not None

    async def aclose(self) -> None:
        """Close the pool."""
        if self._transport is not None:
            await self._transport.aclose()

    def _begin(self, prepared: Prepared, parent: Span | None, resend_count: int) -> Span:
        """The attempt's span. It ends when the headers are in, and says so; the call's span lasts to the last byte."""
        if parent is not None:
            parent.set_attributes(self._server)
        attributes = {
            Http.METHOD: prepared.method,
            Http.URL_FULL: self._shown_url + prepared.target,
            **self._peer,
            Attr.SPAN_ENDS_AT: "headers",
        }
        if resend_count:
            attributes[Attr.RESEND_COUNT] = resend_count
        context = None if parent is None else trace.set_span_in_context(parent)
        return self._tracer.start_span(prepared.method, context, SpanKind.CLIENT, attributes)


def _peer(address: httpx.URL) -> dict[str, str | int]:
    """Whom we call; a port only where the address names one."""
    host: dict[str, str | int] = {Attr.SERVER_ADDRESS: address.host, Http.PEER_ADDRESS: address.host}
    return host if address.port is None else host | {Attr.SERVER_PORT: address.port, Http.PEER_PORT: address.port}


def _trace_context(span: Span) -> list[tuple[bytes, bytes]]:
    """The W3C headers that make the provider's spans children of this one."""
    context = span.get_span_context()
    if not context.is_valid:
        return []
    flags = f"{context.trace_flags:02x}"
    found = [(b"traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}".encode())]
    if context.trace_state:
        found.append((b"tracestate", context.trace_state.to_header().encode()))
    return found


def _tell_answer(span: Span, received: Response) -> None:
    if not span.is_recording():
        return
    status, headers = received.status_code, received.headers
    attributes: dict[str, str | int] = {Http.STATUS: status, Http.PROTOCOL_VERSION: "1.1"}
    if status >= 400:
        attributes[Attr.ERROR_TYPE] = str(status)
        span.set_status(StatusCode.ERROR)
    for attribute, header in _SHOWN:
        if (value := headers.get(header)) is not None:
            attributes[attribute] = value
    span.set_attributes(attributes)


class Clients:
    """The pools of all providers, by name."""

    def __init__(self, by_name: Mapping[str, Client], idle_timeout: float) -> None:
        self._by_name = by_name
        self.idle_timeout = idle_timeout

    def __getitem__(self, name: str) -> Client:
        return self._by_name[name]

    @property
    def is_open(self) -> bool:
        """Whether there is any pool: each is made at its first request."""
        return any(client.is_open for client in self._by_name.values())

    async def aclose(self) -> None:
        """Close them all."""
        for client in self._by_name.values():
            await client.aclose()
