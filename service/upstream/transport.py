"""An httpx transport over one aiohttp session that adds nothing to a request and keeps three failures apart.

*Not sent* (`NotSent`): no connection was made. *Sent, no answer* (`NoAnswer`, `AnswerTimeout`): it may have been billed.
*Died mid-body* (`DiedMidBody`, `Stalled`): the answer had begun. The stock `httpx-aiohttp` folds the first two together,
shares a cookie jar between callers and adds Accept, Accept-Encoding and User-Agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import cast

import aiohttp
import certifi
import httpx
import msgspec
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from service.errors import (
    AnswerTimeout,
    ConnectTimeout,
    DiedMidBody,
    GatewayError,
    InvalidAnswer,
    NoAnswer,
    NotSent,
    Stalled,
)

_SLICE = 256 * 1024
"""Bytes of a request body handed to the socket at a time, so that a 32 MB prompt does not hold the loop."""

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""What no header's value may hold; aiohttp lets most of it through, our own server does not."""

_NOT_OURS_TO_ADD = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)


class Headers(dict[str, str]):
    """An answer's headers: values by lower-case name (repeats joined by a comma), and `raw`, as they came and in order."""

    __slots__ = ("raw",)

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self.raw = list(raw)
        for raw_name, raw_value in raw:
            name, value = _text(raw_name).lower(), _text(raw_value)
            self[name] = f"{self[name]}, {value}" if name in self else value


class Timeouts(msgspec.Struct, frozen=True, gc=False):
    """Seconds: to connect, until the answer's headers (it stands still while a streamed body's next piece is awaited), of
    silence inside the body."""

    connect: float
    first_byte: float
    idle: float


class Received(msgspec.Struct, frozen=True):
    """An answer whose headers are in. `stream` must be closed."""

    status_code: int
    reason: str
    headers: Headers
    stream: Body


class Transport(httpx.AsyncBaseTransport):
    """Sends prepared requests. Make it on the loop that will use it; `aclose` it there."""

    def __init__(self, *, proxy: str | None = None, ca_file: str = "") -> None:
        self._proxy = proxy
        context = ssl.create_default_context(cafile=ca_file or certifi.where())
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15, ttl_dns_cache=60, ssl=context)
        connector._factory = functools.partial(  # type: ignore[assignment]  # a subclass
            _Protocol, loop=asyncio.get_running_loop()
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NOT_OURS_TO_ADD,
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None),
            max_line_size=65_536,
            max_field_size=65_536,
        )
        # aiohttp would silently send an idempotent request twice when a kept connection turns out closed; every try
        # must be one that we counted.
        self._session._retry_connection = False

    async def send(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | AsyncIterator[bytes],
        timeouts: Timeouts,
    ) -> Received:
        """Send and return when the answer's headers are in. `url` goes up as it is written, `headers` in their order.

        Raises `NotSent`, `NoAnswer`, `AnswerTimeout`, `InvalidAnswer`, or what the body's own iterator raised.
        """
        up = [(_text(name), _text(value)) for name, value in headers]
        try:
            async with asyncio.timeout(timeouts.first_byte) as clock:
                response = await self._session.request(
                    method,
                    URL(url, encoded=True),
                    headers=up,
                    data=_data(body, up, clock, timeouts.first_byte),
                    allow_redirects=False,
                    proxy=self._proxy,
                    timeout=_client_timeout(timeouts.connect),
                )
        except (aiohttp.ClientError, OSError) as error:
            failure = _failure(error, timeouts)
            raise failure from (None if failure is error.__cause__ else error)
        if response.status < 200 or _CONTROL.search(b"".join([value for _name, value in response.raw_headers])):
            response.close()
            raise InvalidAnswer("the provider's answer is not HTTP")
        if response.connection is not None and response.connection.protocol is not None:
            response.connection.protocol.read_timeout = timeouts.idle
            response.connection.protocol.start_timeout()  # else it would run from the next bytes on only
        headers_in = Headers(response.raw_headers)
        return Received(response.status, response.reason or "", headers_in, Body(response, timeouts.idle))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The same under httpx's interface. Timeouts come in `request.extensions["timeout"]`, by the names of `Timeouts`;
        `"url"` is the address as it is to stand on the wire (httpx's own would be normalised); `"streaming_body"` true
        says that `request.stream` is to be pulled, not read."""
        pulled = request.extensions.get("streaming_body")
        received = await self.send(
            request.method,
            request.extensions["url"],
            [(k.lower(), v) for k, v in request.headers.raw if k.lower() != b"transfer-encoding"],
            aiter(cast(httpx.AsyncByteStream, request.stream)) if pulled else request.content,
            Timeouts(**request.extensions["timeout"]),
        )
        return httpx.Response(
            received.status_code,
            headers=received.headers.raw,
            stream=received.stream,
            request=request,
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": received.reason.encode()},
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.close()


class _Protocol(ResponseHandler):
    """aiohttp's, except that a body whose framing breaks (a chunk size that is no number) fails and does not hang for ever."""

    def connection_lost(self, exc: BaseException | None) -> None:
        body = self._payload
        super().connection_lost(exc)
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("the connection ended inside the body"))


class Body(httpx.AsyncByteStream):
    """The answer's body, chunk by chunk as it arrives; closed early, it closes the connection at once."""

    def __init__(self, response: aiohttp.ClientResponse, idle: float) -> None:
        self._response = response
        self._idle = idle

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Raises `DiedMidBody` or `Stalled`."""
        content = self._response.content
        if content.exception() is not None and content._buffer:
            return content._read_nowait(-1)  # what came before the end came; readany() would drop it
        try:
            chunk = await content.readany()
        except aiohttp.SocketTimeoutError as error:
            raise Stalled(f"the provider sent nothing for {self._idle:g} s in the middle of its answer") from error
        except (aiohttp.ClientError, OSError) as error:
            raise DiedMidBody("the provider's connection ended in the middle of its answer") from error
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Give the connection back when the body was read to its end, else close it."""
        if self._response.content.at_eof() and self._response.content.exception() is None:
            self._response.release()
        else:
            self._response.close()


def _data(
    body: bytes | AsyncIterator[bytes], headers: list[tuple[str, str]], clock: asyncio.Timeout, first_byte: float
) -> bytes | AsyncIterator[bytes] | None:
    """The body as aiohttp takes it."""
    if not isinstance(body, bytes):
        return _pulled(body, clock, first_byte)
    if len(body) <= _SLICE:
        return body or None
    if not any(name == "content-length" for name, _ in headers):
        headers.append(("content-length", str(len(body))))  # slices would go up chunked
    return _slices(body)


async def _pulled(pieces: AsyncIterator[bytes], clock: asyncio.Timeout, first_byte: float) -> AsyncIterator[bytes]:
    """A streamed body. While its next piece is awaited the client is slow, not the provider: only from then on `clock` runs."""
    loop, more = asyncio.get_running_loop(), True
    while more:
        _set(clock, None)
        try:
            piece = await anext(pieces, None)
        finally:
            _set(clock, loop.time() + first_byte)
        if more := piece is not None:
            yield piece


def _set(clock: asyncio.Timeout, when: float | None) -> None:
    with contextlib.suppress(RuntimeError):  # it is over: the answer began, or failed to, before the body was in
        clock.reschedule(when)


async def _slices(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _SLICE):
        yield content[start : start + _SLICE]


def _failure(error: aiohttp.ClientError | OSError, timeouts: Timeouts) -> GatewayError:
    """What aiohttp's exception before the headers means; whatever is not surely *not sent* counts as sent."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return ConnectTimeout(f"no connection to the provider within {timeouts.connect:g} s")
        case aiohttp.ClientConnectorError() | aiohttp.InvalidURL() | aiohttp.ClientHttpProxyError():
            return NotSent("no connection to the provider could be made")
        case TimeoutError():
            return AnswerTimeout(f"the provider did not begin to answer within {timeouts.first_byte:g} s")
        case aiohttp.ClientResponseError():
            return InvalidAnswer("the provider's answer is not HTTP")
        case _ if isinstance(error.__cause__, GatewayError):
            return error.__cause__  # the request body's own iterator failed, in aiohttp's writer task
        case _:
            return NoAnswer("the provider closed the connection without an answer; the call may have been billed")


@functools.lru_cache(maxsize=8)
def _client_timeout(connect: float) -> aiohttp.ClientTimeout:
    """One object per setting, not per request."""
    return aiohttp.ClientTimeout(total=None, connect=connect)


def _text(raw: bytes) -> str:
    """A header's name or value; aiohttp writes it as UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
