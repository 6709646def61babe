"""A client that takes nothing of its answer is let go after the idle timeout, with its call; one that is only slow is not."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import claude
from tests.support.poll import poll
from tests.support.scene import Scene, scene
from tests.support.upstream import Seen
from tests.support.wire import Wire

IDLE = 0.5
PIECE = claude.delta("x" * 20_000)


def endless(connection: socket.socket, _seen: Seen) -> None:
    """More than all buffers on the way hold, until the gateway leaves."""
    try:
        claude.send_events(connection, [claude.start(), claude.BLOCK])
        while True:
            connection.sendall(claude.chunk(PIECE))
    except OSError:
        return


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(endless, CLAUDE_PROXY_IDLE_TIMEOUT=str(IDLE)) as made:
        yield made


def asked(stage: Scene) -> Wire:
    """A connection on which a stream was asked for."""
    wire = Wire(stage.gateway.port)
    wire.ask(claude.ASKED | {"stream": True})
    return wire


def in_flight(stage: Scene) -> float:
    return stage.gateway.sample("claude_proxy_in_flight_requests", http_route="/v1/messages")


def test_a_client_that_takes_nothing_any_more_ends_its_call_as_its_own_leaving(stage: Scene) -> None:
    watch = stage.watch()
    with asked(stage) as wire:
        assert wire.head().status == 200
        told = watch.told("client_abort", error_type="client_abort", attempt=("200", "aborted"))
        assert IDLE * 0.9 < told.line["client_wait_s"] < IDLE * 2 + 2
        poll(lambda: in_flight(stage) == 0, what="nothing in flight")


def test_a_client_that_reads_slowly_is_served(stage: Scene) -> None:
    before = len(stage.gateway.requests())
    with asked(stage) as wire:
        assert wire.head().status == 200
        until = time.monotonic() + 5 * IDLE
        while time.monotonic() < until:
            assert wire.socket.recv(65_536)
            time.sleep(0.1)
        assert in_flight(stage) == 1
    line = stage.gateway.wait_requests(before + 1)[-1]
    assert line["outcome"] == "client_abort"
    assert line["client_wait_s"] > 2 * IDLE  # it was waited for
