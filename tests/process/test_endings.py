"""A client that leaves: the call upstream ends at once, and telemetry says whose end it was."""

from __future__ import annotations

import json
import queue
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import claude
from tests.support.scene import Scene, scene
from tests.support.upstream import RawUpstream, Seen, Upstream, answer
from tests.support.wire import Wire

AT_ONCE = 2.0
"""Seconds: what is at once on a busy machine. Who waits for the server to cancel the request waits for three."""
STREAMED = claude.ASKED | {"stream": True}


class Waiting:
    """A script that sends `first`, then waits and notes when the gateway closes the connection."""

    def __init__(self, first: bytes = b"") -> None:
        self.first = first
        self.reached: queue.Queue[float] = queue.Queue()
        self.closed: queue.Queue[float] = queue.Queue()

    def __call__(self, connection: socket.socket, _seen: Seen) -> None:
        connection.sendall(self.first)
        self.reached.put(time.perf_counter())
        try:
            connection.recv(1)
        except ConnectionError:
            pass
        self.closed.put(time.perf_counter())


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(Waiting()) as made:
        yield made


@pytest.mark.parametrize("leaves", [Wire.close, Wire.reset])
def test_a_client_that_leaves_in_mid_stream_ends_the_call_upstream_at_once(stage: Scene, leaves: object) -> None:
    script = Waiting(claude.SSE_HEAD + claude.chunk(claude.start() + claude.BLOCK + claude.delta("a")))
    stage.plays(script)
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.ask(STREAMED)
        wire.head()
        assert wire.piece()
        assert callable(leaves)
        leaves(wire)
        left = time.perf_counter()
    assert script.closed.get(timeout=30) - left < AT_ONCE
    told = watch.told("client_abort", error_type="client_abort", attempt=("200", "aborted"))
    assert told.line["input_tokens"] == 40
    assert "output_tokens" not in told.line  # nobody said: unknown is absent


def test_a_client_that_leaves_while_a_plain_request_waits_ends_the_call_upstream_at_once(stage: Scene) -> None:
    script = Waiting()
    stage.plays(script)
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.ask(claude.ASKED)
        script.reached.get(timeout=30)
        wire.close()
        left = time.perf_counter()
    assert script.closed.get(timeout=30) - left < AT_ONCE
    watch.told("client_abort", error_type="client_abort", status=None, attempt=("", "aborted"))


def test_a_client_that_leaves_in_the_middle_of_a_plain_answer_ends_the_call_upstream_at_once(stage: Scene) -> None:
    script = Waiting(answer("200 OK", claude.MESSAGE, "content-type: application/json")[:-20])
    stage.plays(script)
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.ask(claude.ASKED)
        script.reached.get(timeout=30)
        wire.close()
        left = time.perf_counter()
    assert script.closed.get(timeout=30) - left < AT_ONCE
    watch.told("client_abort", error_type="client_abort", status=None, attempt=("200", "aborted"))


def test_a_client_that_leaves_a_batch_of_prompts_ends_every_call_upstream_at_once(stage: Scene) -> None:
    script = Waiting()
    stage.plays(script)
    lines = len(stage.gateway.log())
    with Wire(stage.gateway.port) as wire:
        wire.ask({"prompts": ["a", "b", "c"]}, target="/batch_generate")
        for _ in range(3):
            script.reached.get(timeout=30)
        wire.close()
        left = time.perf_counter()
    for _ in range(3):
        assert script.closed.get(timeout=30) - left < AT_ONCE
    request = stage.gateway.wait_log(
        lambda line: line["event"] == "request" and line["route"] == "/batch_generate", "the batch's line"
    )
    assert request["outcome"] == "client_abort"
    calls = [line for line in stage.gateway.log()[lines:] if line["event"] == "call"]
    assert [call["outcome"] for call in calls] == ["client_abort"] * 3
    assert {call["request_id"] for call in calls} == {request["request_id"]}


def test_a_client_that_leaves_an_aggregate_of_several_providers_is_counted_to_none_of_them() -> None:
    script = Waiting()
    with Upstream(script) as upstream:
        keys = {"GEMINI_API_KEY": "AIza-x", "CLAUDE_PROXY_GEMINI_BASE_URL": upstream.url}
        with scene(upstream, **keys) as stage, Wire(stage.gateway.port) as wire:
            tasks = {"a": {"prompt": "x"}, "b": {"prompt": "x", "provider": "gemini"}}
            wire.ask({"tasks": tasks}, target="/aggregate")
            for _ in tasks:
                script.reached.get(timeout=10)
            wire.close()
            (line,) = stage.gateway.wait_requests(1)
    assert line["outcome"] == "client_abort"
    assert "provider" not in line


def test_a_client_that_leaves_during_its_upload_is_an_abort_and_nothing_goes_upstream(stage: Scene) -> None:
    stage.upstream.seen.clear()
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + b'{"model": ')
    told = watch.told("client_abort", error_type="client_abort", status=499, attempt=None, chat=False)
    assert told.server.status == "UNSET"
    assert stage.upstream.seen == []


def test_a_client_that_leaves_during_a_streamed_upload_takes_the_call_upstream_with_it() -> None:
    closed: queue.Queue[float] = queue.Queue()
    reached: queue.Queue[float] = queue.Queue()

    def drain(connection: socket.socket) -> None:
        got = b""
        while b"half" not in got:
            got += connection.recv(65_536)
        reached.put(time.perf_counter())
        try:
            while connection.recv(65_536):
                pass
        except ConnectionError:
            pass
        closed.put(time.perf_counter())

    with scene(RawUpstream(drain)) as stage:
        watch = stage.watch()
        with Wire(stage.gateway.port) as wire:
            wire.send(b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf")
            reached.get(timeout=30)
            wire.close()
            left = time.perf_counter()
        assert closed.get(timeout=30) - left < AT_ONCE
        watch.told(
            "client_abort", error_type="client_abort", status=499, attempt=("", "aborted"), rejected=None, chat=False
        )


def test_a_client_that_leaves_after_message_stop_had_everything_so_it_is_ok(stage: Scene) -> None:
    script = Waiting(claude.SSE_HEAD + claude.chunk(claude.STREAM))
    stage.plays(script)
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.ask(STREAMED)
        wire.head()
        assert wire.piece() == claude.STREAM
        wire.close()
        left = time.perf_counter()
    assert script.closed.get(timeout=30) - left < AT_ONCE
    told = watch.told("ok")
    assert told.line["output_tokens"] == 7


def test_a_client_that_sends_its_next_request_early_is_not_taken_for_one_that_left(stage: Scene) -> None:
    def quick(connection: socket.socket, _seen: Seen) -> None:
        connection.sendall(answer("200 OK", claude.MESSAGE, "content-type: application/json"))

    stage.plays(quick)
    body = json.dumps(claude.ASKED).encode()
    one = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with Wire(stage.gateway.port) as wire:
        wire.send(one * 3)
        assert [wire.answer()[1] for _ in range(3)] == [claude.MESSAGE] * 3
