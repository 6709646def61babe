"""The bridge that runs Flask on the worker's loop, as an ASGI application.

Each request is one asyncio task whose body is a greenlet; async views await right on the loop. Two things end a request
from outside, both as a cancellation with a reason in its `Lifetime`: its client leaves, or the worker must stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import greenback

from observability.exposition import Place
from service.app import Gateway
from service.errors import ClientGone, GatewayError, RequestTimeout
from service.lifetime import Ending, Lifetime, absorb_cancellation
from service.web.channel import KEY, Channel
from service.web.flask_loop import ResponseBody, Stream

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BLOCKED = 0.0005
"""Seconds after which a send counts as waiting for the client; a shorter one is our own CPU."""
_LINGER = 2.0
"""Seconds that an unread body is discarded after an early answer: closing at once would reset the answer away."""
_LAST_LINGER = 0.5
"""The same while the process goes: less than its worker waits for requests that it has ended."""


class Bridge:
    """An ASGI application around a Flask app; `active` are the requests under way."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.app = gateway.app
        self.place = Place()
        """Among which siblings this process stands; its worker says so before the start."""
        self.active: dict[Lifetime, asyncio.Task[Any]] = {}
        self.idle = asyncio.Event()
        self.idle.set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    def drain(self) -> None:
        """Say that the process is going: `/readyz` answers 503 from now on."""
        self.app.draining = True

    def end_all(self, why: Ending) -> None:
        """End every request under way, each in the way its view knows."""
        for lifetime, task in list(self.active.items()):
            if lifetime.ending is None:
                lifetime.ending = why
                task.cancel()

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        lifetime = Lifetime(time.perf_counter)
        task = asyncio.current_task()
        assert task is not None
        self.active[lifetime] = task
        self.idle.clear()
        body = _RequestBody(receive, lifetime, task, self._gateway.client.idle_timeout)
        try:
            await self._serve(scope, body, lifetime, send)
            await body.linger()
        except GatewayError:
            # A large answer died on its way; its record is closed. Left incomplete, so that the client sees it cut.
            return
        except asyncio.CancelledError:
            if lifetime.ending is None:
                raise
            absorb_cancellation()
        finally:
            body.unwatch()
            del self.active[lifetime]
            if not self.active:
                self.idle.set()

    async def _serve(self, scope: Message, body: _RequestBody, lifetime: Lifetime, send: Send) -> None:
        environ = _environ(scope, body, lifetime)
        start: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            start[:] = [(status, headers)]

        response = await greenback.with_portal_run_sync(self.app, environ, start_response)
        assert isinstance(response, ResponseBody)
        try:
            status, headers = start[0]
            raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            if self.app.draining and not any(name == b"connection" for name, _ in raw):
                raw.append((b"connection", b"close"))
            await send({"type": "http.response.start", "status": int(status[:3]), "headers": raw})
            if response.stream is not None:
                await _send_stream(response.stream, lifetime, send)
            else:
                for chunk in response:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            try:
                if response.stream is not None:
                    await response.stream.aclose()
            finally:
                response.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._gateway.start(self.place)
        except Exception as error:  # noqa: BLE001 reported to the server, which stops
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._gateway.stop()
        await send({"type": "lifespan.shutdown.complete"})


async def _send_stream(stream: Stream, lifetime: Lifetime, send: Send) -> None:
    clock = lifetime.clock
    async for chunk in stream:
        before = clock()
        try:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            if (blocked := clock() - before) > _BLOCKED:
                lifetime.client.add(blocked)


class _RequestBody:
    """The request's body off ASGI `receive`; once it is in, `receive` is watched for the client's leaving."""

    def __init__(self, receive: Receive, lifetime: Lifetime, task: asyncio.Task[Any], idle: float) -> None:
        self._receive = receive
        self._idle = idle
        self._lifetime = lifetime
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        self._complete = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Raises `ClientGone` if the client leaves before the body is in, `RequestTimeout` if it stops sending."""
        while not self._complete:
            try:
                with self._lifetime.client.waiting():
                    async with asyncio.timeout(self._idle):
                        message = await self._receive()
            except TimeoutError:
                raise RequestTimeout(self._idle) from None
            if message["type"] == "http.disconnect":
                self._lifetime.ending = Ending.CLIENT_GONE
                raise ClientGone("the client left before its request was complete")
            self._complete = not message.get("more_body", False)
            if self._complete:
                self._watcher = asyncio.create_task(self._watch())
            if chunk := message.get("body", b""):
                yield chunk

    async def _watch(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._lifetime.ending is None:
            self._lifetime.ending = Ending.CLIENT_GONE
            self._task.cancel()

    def unwatch(self) -> None:
        """Stop watching: the response is complete or abandoned."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def linger(self) -> None:
        """Discard what the client still sends after an early answer, so that it gets to read that answer."""
        if self._complete:
            return
        try:
            async with asyncio.timeout(_LINGER if self._lifetime.ending is None else _LAST_LINGER):
                while not self._complete:
                    message = await self._receive()
                    self._complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        except TimeoutError:
            return


def _environ(scope: Message, body: _RequestBody, lifetime: Lifetime) -> dict[str, Any]:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    target = (raw + b"?" + query if query else raw).decode("latin-1")
    host, port = scope.get("server") or ("localhost", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode("utf-8").decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "RAW_URI": target,
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": "HTTP/" + scope["http_version"],
        "REMOTE_ADDR": scope["client"][0] if scope.get("client") else "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": _NoInput(),
        "wsgi.errors": _NoInput(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        KEY: Channel(lifetime, scope["headers"], target, body.chunks, bridged=True),
    }
    for name, value in scope["headers"]:
        key = name.decode("latin-1").upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ


class _NoInput:
    """Stands where WSGI wants files: bodies are read through the channel, errors go through structlog."""

    def read(self, size: int = -1) -> bytes:
        """Always empty."""
        return b""

    def write(self, text: str) -> int:
        """Discards."""
        return len(text)

    def flush(self) -> None:
        """Nothing to do."""
