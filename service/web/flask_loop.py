"""Flask on the worker's event loop: async views await on it, and the request context lives until the response is closed.

Under the bridge a view runs in a greenlet of the request's own asyncio task (greenback), so `async_to_sync` awaits right
there. Under a WSGI server the coroutine goes, with the caller's contextvars, to one background loop per process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import greenback
from flask import Flask, Request, Response, request
from werkzeug.datastructures import Headers
from werkzeug.routing import MapAdapter

from service.errors import Draining
from service.lifetime import Ending, absorb_cancellation
from service.web.auth import take_key_from_query
from service.web.channel import Channel

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

T = TypeVar("T")


_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))


class Stream(Protocol):
    """A body that is iterated once, or closed."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """End what stands behind it, if it has not ended; may be called always."""


class StreamedResponse(Response):
    """A response whose body is an async iterator: the bridge consumes it natively, WSGI pulls it through the loop."""

    stream_body: Stream
    automatically_set_content_length = False  # werkzeug would measure the empty list it is made with

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        """As they are: they are the provider's, and nothing is to be put right in them."""
        return self.headers


class LoopFlask(Flask):
    """Flask with one loop. `draining` turns true when the process begins to shut down."""

    draining = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ready: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.url_map.strict_slashes = self.url_map.merge_slashes = False  # no route answers with a redirect

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """As Flask's, which finds out anew for every hook and view of every request whether it is async."""
        ready = self._ready.get(func)
        if ready is None:
            ready = self._ready[func] = super().ensure_sync(func)
        return ready

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """As Flask's, less what it makes of the client's `Host`: no route depends on it, no address is built from it."""
        if request is None:
            return super().create_url_adapter(None)
        environ = request.environ
        path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")
        script, query = environ.get("SCRIPT_NAME", ""), environ.get("QUERY_STRING", "")
        scheme, method = environ["wsgi.url_scheme"], environ["REQUEST_METHOD"]
        return MapAdapter(self.url_map, "", script, "", scheme, path, method, query)

    def async_to_sync(self, func: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
        """Run `func` on this process's loop and wait for it; a drain's cancellation becomes `Draining`."""

        def run(*args: Any, **kwargs: Any) -> T:
            channel = Channel.of(request.environ)
            coroutine = func(*args, **kwargs)
            if not channel.bridged:
                return cast(T, background().run(coroutine))
            try:
                return greenback.await_(coroutine)
            except asyncio.CancelledError:
                if channel.lifetime.ending is not Ending.DRAIN:
                    raise
                absorb_cancellation()
                raise Draining("the gateway is shutting down") from None

        return run

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """As Flask's, but the context is popped when the returned body is closed: spans and teardown cover the stream."""
        if environ["REQUEST_METHOD"] not in _METHODS:
            environ["REQUEST_METHOD"] = "_OTHER"  # no route takes it, and the stock metrics make a label of it
        take_key_from_query(environ)
        context = self.request_context(environ)
        error: BaseException | None = None
        try:
            context.push()
            try:
                response = self.full_dispatch_request()
            except Exception as exception:  # noqa: BLE001 Flask's own contract: handle_exception logs and answers 500
                error = exception
                response = self.handle_exception(exception)
            inner = response(environ, start_response)
        except BaseException as exception:
            context.pop(exception)
            raise
        stream = response.stream_body if isinstance(response, StreamedResponse) else None
        return ResponseBody(inner, stream, lambda: context.pop(error), bridged=Channel.of(environ).bridged)


class ResponseBody:
    """What `wsgi_app` returns: `stream` when the body is async (for the bridge), else plain bytes; `close` ends the context."""

    def __init__(
        self,
        inner: Iterable[bytes],
        stream: Stream | None,
        on_close: Callable[[], None],
        *,
        bridged: bool,
    ) -> None:
        self.stream = stream
        self._inner = inner
        self._on_close: Callable[[], None] | None = on_close
        self._bridged = bridged

    def __iter__(self) -> Iterator[bytes]:
        if self.stream is None:
            yield from self._inner
            return
        loop, chunks = background(), aiter(self.stream)
        while (chunk := loop.run(anext(chunks, None))) is not None:
            yield chunk

    def close(self) -> None:
        """End the request context, once. The bridge has closed `stream` itself by then."""
        if self._on_close is None:
            return
        on_close, self._on_close = self._on_close, None
        try:
            if self.stream is not None and not self._bridged:
                background().run(self.stream.aclose())
            cast(Any, self._inner).close()
        finally:
            on_close()


class BackgroundLoop:
    """An event loop in a daemon thread, for processes whose server has none."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="claude-proxy-loop", daemon=True).start()

    def run(self, awaitable: Any) -> Any:
        """Await on the loop from another thread, in the caller's context; returns or raises what it did."""
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        context = contextvars.copy_context()

        async def carry() -> None:
            try:
                done.set_result(await awaitable)
            except BaseException as error:  # noqa: BLE001 handed to the waiting thread as it is
                done.set_exception(error)

        kept: list[asyncio.Task[None]] = []  # the loop itself keeps only a weak reference
        self.loop.call_soon_threadsafe(lambda: kept.append(self.loop.create_task(carry(), context=context)))
        return done.result()


_lock = threading.Lock()
_background: BackgroundLoop | None = None


def background() -> BackgroundLoop:
    """The process's background loop, started on first use."""
    global _background
    with _lock:
        if _background is None:
            _background = BackgroundLoop()
        return _background
