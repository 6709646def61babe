"""Sends one prepared request to a provider, as one attempt span with its own `traceparent`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import httpx
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import AsyncOpenTelemetryTransport, RequestInfo, ResponseInfo
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import Span, TracerProvider

from observability.catalog import Attr
from service.upstream.transport import Transport

_PORTS = {"http": 80, "https": 443}


class Response(Protocol):
    """What callers need of an answer; `stream` raises `DiedMidBody` or `Stalled`, and must be closed."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> httpx.Headers: ...
    @property
    def stream(self) -> Stream: ...


class Stream(Protocol):
    """Bytes as they arrive."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """What goes up: `target` is path and query as they are to stand on the wire, `headers` exactly those to be sent.

    A `body` that is an iterator is streamed and can be sent once. `first_byte_timeout` is in seconds.
    """

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes | AsyncIterator[bytes]
    first_byte_timeout: float


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
        self._provider = provider
        self.idle_timeout = idle_timeout
        self._timeouts = {"connect": connect_timeout, "idle": idle_timeout}
        self._transport: AsyncOpenTelemetryTransport | None = None

    async def send(self, prepared: Prepared, parent: Span | None) -> Response:
        """Send and return once the answer's headers are in; the caller must close it. Raises `UpstreamFailed`."""
        request = self._request(prepared)
        if self._transport is None:
            self._transport = self._instrumented(self._make())
        if parent is None:
            return cast(Response, await self._transport.handle_async_request(request))
        parent.set_attributes(self._server)
        with trace.use_span(parent, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            return cast(Response, await self._transport.handle_async_request(request))

    @property
    def is_open(self) -> bool:
        """Whether there is a pool: it is made at the first request."""
        return self._transport is not None

    async def aclose(self) -> None:
        """Close the pool."""
        if self._transport is not None:
            await self._transport.aclose()

    def _request(self, prepared: Prepared) -> httpx.Request:
        if not prepared.target.startswith("/"):
            # Anything else could move the end of the address, and with it the host that gets our credential.
            raise ValueError("a target begins with a slash")
        url = self.base_url + prepared.target
        extensions: dict[str, Any] = {
            "timeout": self._timeouts | {"first_byte": prepared.first_byte_timeout},
            "url": url,
            "streaming_body": not isinstance(prepared.body, bytes),
        }
        return httpx.Request(
            prepared.method, url, headers=prepared.headers, content=prepared.body, extensions=extensions
        )

    def _instrumented(self, transport: Transport) -> AsyncOpenTelemetryTransport:
        # The stock instrumentor patches httpx's own transports only; a transport of another kind must be wrapped.
        return AsyncOpenTelemetryTransport(
            transport,
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),
            request_hook=_on_request,
            response_hook=_on_response,
        )


async def _on_request(span: Span, _request: RequestInfo) -> None:
    # The instrumentation ends this span when the headers are in; the chat span above it lasts to the last byte.
    span.set_attribute(Attr.SPAN_ENDS_AT, "headers")


async def _on_response(span: Span, _request: RequestInfo, response: ResponseInfo) -> None:
    headers = response.headers
    if headers is None:
        return
    for attribute, header in ((Attr.RETRY_AFTER, "retry-after"), (Attr.ANTHROPIC_REQUEST_ID, "request-id")):
        if (value := headers.get(header)) is not None:
            span.set_attribute(attribute, value)
