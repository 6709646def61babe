"""The yardstick: the least that an HTTP gateway in asyncio can do. Frames messages, pools upstream connections, no more."""

from __future__ import annotations

import asyncio
import sys

from tests.bench import helper
from tests.bench.framing import Framer


class Front(asyncio.Protocol):
    """A client's connection: whole requests go to an idle upstream connection, its bytes come back as they arrive."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._framer = Framer()
        self._request = b""
        self._back: Back | None = None
        self._opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._back is not None:
            self._back.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._request += data
        if not self._framer.feed(data):
            return
        request, self._request = self._request, b""
        if Back.idle:
            self._back = Back.idle.pop()
            self._back.send(self, request)
        else:
            self._opening = self._loop.create_task(self._open(request))

    async def _open(self, request: bytes) -> None:
        _, self._back = await self._loop.create_connection(Back, "127.0.0.1", Back.port)
        self._back.send(self, request)

    def answered(self) -> None:
        """The whole answer has been handed on."""
        self._back = None


class Back(asyncio.Protocol):
    """An upstream connection, serving one client at a time."""

    idle: list[Back] = []
    port = 0

    def __init__(self) -> None:
        self._framer = Framer()
        self._front: Front | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.idle:
            self.idle.remove(self)
        if self._front is not None:
            self._front.transport.abort()

    def send(self, front: Front, request: bytes) -> None:
        """Send a client's request."""
        self._front = front
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        front = self._front
        if front is None:
            return
        front.transport.write(data)
        if self._framer.feed(data):
            self._front = None
            self.idle.append(self)
            front.answered()


if __name__ == "__main__":
    Back.port = int(sys.argv[1])
    helper.serve(Front)
