"""A gzip request body goes up as it came; what it says is read off the loop, and its limit holds inflated too."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator

import pytest

from service.upstream.anthropic import Request
from service.web import native
from tests.support import claude
from tests.support.scene import Scene, scene
from tests.support.upstream import json_answer
from tests.support.wire import Head, Wire

MB = 1024 * 1024
PACKED = "content-encoding: gzip"


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(json_answer(claude.MESSAGE)) as made:
        yield made


def post(stage: Scene, body: bytes) -> tuple[Head, bytes]:
    with Wire(stage.gateway.port) as wire:
        wire.request("POST", "/v1/messages", body, "content-type: application/json", PACKED)
        return wire.answer()


def padded(size: int) -> bytes:
    """A request body of that many bytes, in a thousandth of them."""
    body = json.dumps(claude.ASKED).encode()
    return gzip.compress(body + b" " * (size - len(body)))


def test_a_packed_body_goes_up_as_it_came_up_to_the_routes_limit_inflated(stage: Scene) -> None:
    stage.upstream.seen.clear()
    watch, body = stage.watch(), padded(32 * MB)
    assert post(stage, body)[0].status == 200
    assert stage.upstream.seen[0].body == body
    watch.told("ok")


def test_a_packed_body_over_the_routes_limit_inflated_is_a_413(stage: Scene) -> None:
    stage.upstream.seen.clear()
    head, body = post(stage, padded(32 * MB + 1))
    error = json.loads(body)["error"]
    assert (head.status, error["type"]) == (413, "request_too_large")
    assert f"inflated, is over this route's limit of {32 * MB} bytes" in error["message"]
    assert stage.upstream.seen == []


def test_a_body_that_is_not_the_gzip_it_says_is_a_400_that_names_the_header(stage: Scene) -> None:
    head, body = post(stage, json.dumps(claude.ASKED).encode())
    assert (head.status, json.loads(body)["error"]["details"]["field"]) == (400, "Content-Encoding")


def test_a_packed_body_is_inflated_and_decoded_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    for name in ("_inflated", "decode"):
        real = getattr(native, name)

        def spy(*args: object, real: object = real) -> object:
            threads.append(threading.current_thread())
            assert callable(real)
            return real(*args)

        monkeypatch.setattr(native, name, spy)
    peek = asyncio.run(native._peek(padded(1000), [(b"content-encoding", b"gzip")], MB, Request))
    assert peek is not None
    assert peek.model == claude.ASKED["model"]
    assert len(threads) == 2
    assert threading.current_thread() not in threads
