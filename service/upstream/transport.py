"""An httpx transport over one aiohttp session that adds nothing to a request and keeps three failures apart.

*Not sent* (`NotSent`): no connection was made. *Sent, no answer* (`NoAnswer`, `AnswerTimeout`): it may have been billed.
*Died mid-body* (`DiedMidBody`, `Stalled`): the answer had begun. The stock `httpx-aiohttp` folds the first two together,
shares a cookie jar between callers and adds Accept, Accept-Encoding and User-Agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import cast

import aiohttp
import certifi
import httpx
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

_NOT_OURS_TO_ADD = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)


class Transport(httpx.AsyncBaseTransport):
    """Sends prepared requests. Make it on the loop that will use it; `aclose` it there.

    Timeouts come in `request.extensions["timeout"]` as seconds: `connect`, `first_byte` (until the answer's headers; it
    stands still while a streamed body's next piece is awaited) and `idle` (silence inside the body). `"url"` is the
    address as it is to stand on the wire (httpx's own would be normalised); `"streaming_body"` true says that
    `request.stream` is to be pulled, not read.
    """

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

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send and return when the answer's headers are in. Raises `NotSent`, `NoAnswer`, `AnswerTimeout`, `InvalidAnswer`."""
        timeouts: dict[str, float] = request.extensions["timeout"]
        with _before_the_answer(timeouts):
            async with asyncio.timeout(timeouts["first_byte"]) as clock:
                response = await self._session.request(
                    request.method,
                    URL(request.extensions["url"], encoded=True),
                    headers=[(k, v) for k, v in request.headers.multi_items() if k != "transfer-encoding"],
                    data=_body(request, clock, timeouts["first_byte"]),
                    allow_redirects=False,
                    proxy=self._proxy,
                    timeout=aiohttp.ClientTimeout(total=None, connect=timeouts["connect"]),
                )
        if response.connection is not None and response.connection.protocol is not None:
            response.connection.protocol.read_timeout = timeouts["idle"]
            response.connection.protocol.start_timeout()  # else it would run from the next bytes on only
        return httpx.Response(
            response.status,
            headers=cast("list[tuple[bytes, bytes]]", response.raw_headers),
            stream=_Body(response, timeouts["idle"]),
            request=request,
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": (response.reason or "").encode()},
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


class _Body(httpx.AsyncByteStream):
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


def _body(request: httpx.Request, clock: asyncio.Timeout, first_byte: float) -> bytes | AsyncIterator[bytes] | None:
    if request.extensions.get("streaming_body"):
        return _pulled(aiter(cast(httpx.AsyncByteStream, request.stream)), clock, first_byte)
    content = request.content
    if len(content) > _SLICE:
        return _slices(content)
    return content or None


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


@contextlib.contextmanager
def _before_the_answer(timeouts: dict[str, float]) -> Iterator[None]:
    """Map aiohttp's exceptions up to the headers; whatever is not surely *not sent* counts as sent."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise ConnectTimeout(f"no connection to the provider within {timeouts['connect']:g} s") from error
    except (aiohttp.ClientConnectorError, aiohttp.InvalidURL, aiohttp.ClientHttpProxyError) as error:
        raise NotSent("no connection to the provider could be made") from error
    except TimeoutError as error:
        raise AnswerTimeout(f"the provider did not begin to answer within {timeouts['first_byte']:g} s") from error
    except aiohttp.ClientResponseError as error:
        raise InvalidAnswer("the provider's answer is not HTTP") from error
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error.__cause__, GatewayError):
            raise error.__cause__ from None  # the request body's own iterator failed, in aiohttp's writer task
        raise NoAnswer("the provider closed the connection without an answer; the call may have been billed") from error
