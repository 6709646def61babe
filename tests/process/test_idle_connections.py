"""A connection on which no request comes is not kept for ever: each holds a descriptor that a stream could have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support import claude
from tests.support.scene import Scene, scene
from tests.support.upstream import json_answer
from tests.support.wire import Wire

KEEPALIVE = 1.0
PART = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(json_answer(claude.MESSAGE), CLAUDE_PROXY_KEEPALIVE=str(int(KEEPALIVE))) as made:
        yield made


@pytest.mark.parametrize("sent", [b"", PART], ids=["nothing", "half a head"])
def test_a_connection_without_a_request_is_closed_after_the_keep_alive(stage: Scene, sent: bytes) -> None:
    began = time.perf_counter()
    with Wire(stage.gateway.port, timeout=KEEPALIVE + 3) as wire:
        wire.send(sent)
        assert wire.ended()
        assert time.perf_counter() - began > KEEPALIVE * 0.9


def test_a_head_that_only_drips_does_not_keep_it_open(stage: Scene) -> None:
    with Wire(stage.gateway.port) as wire:
        wire.send(PART)
        for _ in range(int(KEEPALIVE * 15)):
            with suppress(OSError):  # closed: that is what it is about
                wire.send(b"a")
            time.sleep(0.1)
        wire.socket.settimeout(0.1)
        assert wire.ended()


def test_the_next_request_of_a_kept_connection_may_come_in_pieces_within_the_keep_alive(stage: Scene) -> None:
    with Wire(stage.gateway.port) as wire:
        for _ in range(2):
            time.sleep(KEEPALIVE * 0.4)
            wire.send(b"GET /healthz HTTP/1.1\r\n")
            time.sleep(KEEPALIVE * 0.3)
            wire.send(b"Host: localhost\r\n\r\n")
            assert wire.answer()[0].status == 200
