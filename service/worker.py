"""The door for gunicorn: its ASGI worker, with a drain that starts at once and ends inside the grace."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import resource
import sys
from array import array
from contextlib import suppress
from enum import IntEnum
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

from gunicorn.asgi.lifespan import LifespanManager
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers.gasgi import ASGIWorker

from observability.exposition import Place
from service.asgi import Bridge
from service.lifetime import Ending

_JUST_ACCEPTED = 0.05
"""Seconds after the last accept in which a connection becomes one that is counted."""
_UNTIDY = 2
"""Collections of the middle generation since the last full one, after which an idle worker makes one: some 300,000
objects that came and went."""
_LAST_WORDS = 3.0
"""Seconds kept at the end of the grace for in-band endings and the last flush."""


class Order(IntEnum):
    """What the master has told a worker beyond its signals (which do not say why)."""

    SERVE = 0
    SUPERSEDED = 1
    STOP = 2


class _Protocol(ASGIProtocol):  # type: ignore[misc]
    """gunicorn's, but no client holds a connection, and what hangs on it, without giving or taking anything.

    The first request's head must come within the keep-alive too, as it has it for every later one. A client that takes
    nothing of its answer for the idle timeout is as good as gone: its connection is cut, and that ends its call.
    """

    # It keeps the parser that it finds on the class it is called for, and looks for it on gunicorn's.
    _check_h1c_protocol_available = ASGIProtocol._check_h1c_protocol_available

    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arm_keepalive_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_again(self._untaken())

    def resume_writing(self) -> None:
        self._forget()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _look_again(self, untaken: int) -> None:
        patience: float = self.worker.app.settings.idle_timeout
        self._stuck = self.worker.loop.call_later(patience, self._look, untaken)

    def _look(self, before: int) -> None:
        untaken = self._untaken()
        if untaken == before:
            self.transport.abort()
        else:
            self._look_again(untaken)

    def _untaken(self) -> int:
        """Bytes on their way to the client, in the system's buffer too: it may be long before that has room again."""
        queued = array("i", [0])
        with suppress(OSError):
            ioctl(self.transport.get_extra_info("socket").fileno(), TIOCOUTQ, queued)
        return int(self.transport.get_write_buffer_size()) + queued[0]

    def _forget(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None


class Worker(ASGIWorker):  # type: ignore[misc]
    """gunicorn's ASGI worker with a drain that starts at once and ends inside the grace.

    SIGTERM: stop accepting, let requests finish; at grace - 3 s the rest ends in-band. After a reload (HUP) there is no
    deadline but the calls' own timeouts. SIGINT and SIGQUIT end everything now. Always flushes telemetry before it goes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Made in the master before the fork, so both sides see it: one byte, an Order.
        self._order = mmap.mmap(-1, 1)
        self.slot = 0
        """Lowest index that no living worker has; given by the master before the fork."""
        self._wake = asyncio.Event()
        self._stopping = False

    def tell(self, order: Order) -> None:
        """From the master: what the next SIGTERM means."""
        self._order[0] = order

    def init_process(self) -> None:
        """Raise the descriptor limit (a stream takes two), then start."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # A thread that encodes spans or writes rows gives the loop its turn back after half a millisecond, not five.
        sys.setswitchinterval(0.0005)
        self.log.info("room for %d concurrent streams (two descriptors each)", (hard - 64) // 2)
        super().init_process()

    def load_wsgi(self) -> None:
        """Make the application, and tell it where it stands."""
        self.app.slot = self.slot
        super().load_wsgi()
        # What is loaded by now stays: freezing it, and collecting less often, saved a tenth of the CPU per request.
        gc.collect()
        gc.freeze()
        gc.set_threshold(5_000, 20, 50)
        taken = self.app.slots
        self.asgi.place = Place(self.slot, self.app.token, lambda: [n for n, there in enumerate(taken[:]) if there])

    def handle_exit_signal(self) -> None:
        """SIGTERM: begin the drain now, not at the next heartbeat.

        `alive` stays true meanwhile: gunicorn would close kept connections that it has not told so, as their clients
        send the next request. The bridge tells them.
        """
        self._stopping = True
        self._wake.set()

    def handle_quit_signal(self) -> None:
        """SIGINT, SIGQUIT: end now."""
        super().handle_quit_signal()
        self._wake.set()

    async def _serve(self) -> None:
        bridge: Bridge = self.asgi
        self.lifespan = LifespanManager(self.asgi, self.log, self.state)
        await self.lifespan.startup()
        for sock in self.sockets:
            server = await self.loop.create_server(lambda: _Protocol(self), sock=sock.sock, backlog=self.cfg.backlog)
            self.servers.append(server)
        # The order too: between the fork and its handlers a worker loses every signal.
        while self.alive and not self._stopping and self._order[0] == Order.SERVE:  # type: ignore[has-type]
            await self._beat()
            if not bridge.active and gc.get_count()[2] > _UNTIDY:
                # While nobody waits for it: what a burst left behind goes now, not with some later burst.
                gc.collect()
            if self.ppid != os.getppid():
                self.log.info("the master is gone; worker %s stops", self.pid)
                break
        bridge.drain()
        for server in self.servers:
            server.close()
        await asyncio.sleep(_JUST_ACCEPTED)
        await self._finish(bridge)
        self.alive = False
        await self.lifespan.shutdown()

    async def _beat(self) -> None:
        """Tell the master that the loop runs, then wait for a signal, a second at most."""
        self.notify()
        try:
            await asyncio.wait_for(self._wake.wait(), 1.0)
        except TimeoutError:
            return
        self._wake.clear()

    async def _finish(self, bridge: Bridge) -> None:
        self.log.info("draining: %d requests under way", len(bridge.active))
        order, began = self._order[0], self.loop.time()
        while not self._quick_shutdown and not self._is_done(bridge, self.loop.time() - began):
            await self._beat_until_idle(bridge)
            if self._order[0] != order:  # reloaded first, stopped now: the grace begins with the stop
                order, began = self._order[0], self.loop.time()
        bridge.end_all(Ending.DRAIN)
        try:
            await asyncio.wait_for(bridge.idle.wait(), 1.0)
        except TimeoutError:
            self.log.warning("%d requests did not end in time", len(bridge.active))

    def _is_done(self, bridge: Bridge, waited: float) -> bool:
        if self._order[0] == Order.SUPERSEDED:
            # Kept connections get their whole keep-alive: closing one as its next request arrives would cut somebody.
            return not bridge.active and (self.nr_conns == 0 or waited > self.cfg.keepalive)
        return not bridge.active or waited > self.cfg.graceful_timeout - _LAST_WORDS

    async def _beat_until_idle(self, bridge: Bridge) -> None:
        self.notify()
        waits = [asyncio.ensure_future(self._wake.wait())]
        if bridge.active:
            waits.append(asyncio.ensure_future(bridge.idle.wait()))
        await asyncio.wait(waits, timeout=0.25, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self._wake.clear()
