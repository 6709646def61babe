"""A client that stops sending its body, or taking its answer, is let go; one that is slow at either is served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import claude
from tests.support.scene import Scene, scene
from tests.support.upstream import Seen, json_answer
from tests.support.wire import Wire

IDLE = 1.5
HELD, STREAMED = "/v1/messages", "/v1/files"


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(
        json_answer(claude.MESSAGE), CLAUDE_PROXY_IDLE_TIMEOUT=str(IDLE), CLAUDE_PROXY_FIRST_BYTE_TIMEOUT=str(IDLE)
    ) as made:
        yield made


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("target", [HELD, STREAMED])
def test_a_body_that_stops_coming_is_a_408_of_the_clients(stage: Scene, target: str, framing: str) -> None:
    watch, began = stage.watch(), time.perf_counter()
    piece = b'{"model": ' if framing.startswith("Content") else claude.chunk(b'{"model": ')
    with Wire(stage.gateway.port) as wire:
        wire.send(f"POST {target} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode() + piece)
        head, body = wire.answer()
        assert IDLE <= time.perf_counter() - began < IDLE + 5
        assert (head.status, head.get("connection")) == (408, "close")
        error = json.loads(body)["error"]
        assert error["type"] == "invalid_request_error"
        assert "1.5 s, the idle timeout (CLAUDE_PROXY_IDLE_TIMEOUT)" in error["message"]
        assert wire.ended()
    streamed = target == STREAMED
    told = watch.told(
        "client_invalid",
        error_type="client_invalid",
        status=408,
        attempt=("", "aborted") if streamed else None,
        rejected="invalid_request_error",
        chat=False,
    )
    assert told.line["client_wait_s"] >= IDLE * 0.9


@pytest.mark.parametrize("target", [HELD, STREAMED])
def test_a_body_that_comes_slowly_is_served(stage: Scene, target: str) -> None:
    body = json.dumps(claude.ASKED).encode()
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.send(f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        for start in range(0, len(body), len(body) // 4 + 1):
            time.sleep(IDLE * 0.3)  # not a wait for something: four of them are longer than the idle timeout
            wire.send(body[start : start + len(body) // 4 + 1])
        assert wire.answer()[0].status == 200
    watch.told("ok", chat=target == HELD)


MEGABYTES = b"x" * (24 * 1024 * 1024)
"""More than all buffers on the way hold."""


def pours(connection: socket.socket, _seen: Seen) -> None:
    """A stream of large events, as fast as it is taken."""
    connection.sendall(claude.SSE_HEAD + claude.chunk(claude.start() + claude.BLOCK))
    try:
        for start in range(0, len(MEGABYTES), 60_000):
            connection.sendall(claude.chunk(claude.delta(MEGABYTES[start : start + 60_000].decode())))
        connection.sendall(claude.chunk(claude.last()) + claude.LAST_CHUNK)
    except OSError:  # the gateway has hung up
        return


def test_an_answer_that_is_in_is_not_longer_under_way_for_a_client_that_does_not_take_it(stage: Scene) -> None:
    stage.plays(json_answer(claude.MESSAGE.replace(b'"usage"', b'"padding": "' + MEGABYTES + b'", "usage"')))
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.ask(claude.ASKED)
        told = watch.told("client_abort", error_type="client_abort", attempt=("200", "ok"))
    assert told.line["client_wait_s"] > IDLE * 0.9
    assert told.chat is not None
    assert told.chat.seconds < told.server.seconds - IDLE * 0.9
    stage.plays(json_answer(claude.MESSAGE))


def test_what_a_slow_reader_takes_is_not_the_providers_time() -> None:
    with scene(pours, CLAUDE_PROXY_TOTAL_TIMEOUT="1") as stage:
        watch = stage.watch()
        with Wire(stage.gateway.port) as wire:
            wire.ask(claude.ASKED | {"stream": True})
            assert wire.head().status == 200
            time.sleep(1.5)
            assert b"message_stop" in wire.body()[-200:]
        assert watch.told("ok").line["client_wait_s"] > 1
