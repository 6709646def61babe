"""What a view needs of the connection beyond WSGI: raw headers in order, the body as an async iterator, the lifetime.

The ASGI bridge puts a `Channel` into the environ; under a plain WSGI server one is made from the environ.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from service.errors import BadRequest, LengthTooLarge, RequestTimeout
from service.lifetime import Lifetime

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, WSGIEnvironment

KEY = "claude_proxy.channel"
IDLE = "claude_proxy.idle"
"""Where the environ of a WSGI server says how many seconds may pass inside a body."""
_CHUNK = 65_536

RawHeaders = list[tuple[bytes, bytes]]
"""Header names (lower case) and values as received, in order, repeats kept."""


class Channel:
    """One request's connection. `chunks` can be iterated once and raises `ClientGone` if the client leaves."""

    def __init__(
        self,
        lifetime: Lifetime,
        headers: RawHeaders,
        target: str,
        chunks: Callable[[], AsyncIterator[bytes]],
        *,
        bridged: bool,
    ) -> None:
        self.lifetime = lifetime
        self.headers = headers
        self.target = target
        """Path and query, exactly as the client wrote them."""
        self.chunks = chunks
        self.bridged = bridged

    @classmethod
    def of(cls, environ: WSGIEnvironment) -> Channel:
        """The environ's channel; made on first use under a WSGI server."""
        channel = environ.get(KEY)
        if channel is None:
            channel = environ[KEY] = _from_wsgi(environ)
        assert isinstance(channel, Channel)
        return channel

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises `LengthTooLarge` as soon as it is known to be over `limit` bytes, without reading on."""
        return b"".join([chunk async for chunk in self.stream(limit)])

    async def stream(self, limit: int) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `LengthTooLarge` as `read` does."""
        self.check_length(limit)
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                raise LengthTooLarge(_too_large(limit))
            yield chunk

    def check_length(self, limit: int) -> None:
        """Refuse by Content-Length alone. Raises `LengthTooLarge`, or `BadRequest` for one that is not a number."""
        text = next((value for name, value in self.headers if name == b"content-length"), b"0")
        if not text.isdigit():
            raise BadRequest("Content-Length is not a number", field="Content-Length")
        if int(text) > limit:
            raise LengthTooLarge(_too_large(limit))


def _too_large(limit: int) -> str:
    return f"the request body is over this route's limit of {limit} bytes"


def _from_wsgi(environ: WSGIEnvironment) -> Channel:
    names = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}
    headers: RawHeaders = []
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            headers.append((key[5:].replace("_", "-").lower().encode("latin-1"), value.encode("latin-1")))
        elif key in names and value:
            headers.append((names[key], value.encode("latin-1")))
    stream: InputStream = environ["wsgi.input"]
    length = int(environ.get("CONTENT_LENGTH") or 0)
    lifetime = Lifetime(time.perf_counter)

    def read(size: int) -> bytes:
        with _patience(environ):
            return stream.read(size)

    async def chunks() -> AsyncIterator[bytes]:
        left: float = float("inf") if environ.get("wsgi.input_terminated") else length
        while left > 0:
            with lifetime.client.waiting():
                chunk = await asyncio.to_thread(read, int(min(left, _CHUNK)))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk

    return Channel(lifetime, headers, _target(environ), chunks, bridged=False)


@contextmanager
def _patience(environ: WSGIEnvironment) -> Iterator[None]:
    """Bound a blocking read of the body, where the server hands its socket on. Raises `RequestTimeout`."""
    connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    idle: float | None = environ.get(IDLE)
    if connection is None or idle is None:
        yield
        return
    before = connection.gettimeout()
    connection.settimeout(idle)
    try:
        yield
    except TimeoutError:
        raise RequestTimeout(idle) from None
    finally:
        connection.settimeout(before)


def _target(environ: dict[str, Any]) -> str:
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw and str(raw).startswith("/"):
        return str(raw)
    path = quote((environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "/")).encode("latin-1"))
    return path + (f"?{environ['QUERY_STRING']}" if environ.get("QUERY_STRING") else "")
