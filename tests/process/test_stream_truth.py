"""One streamed request of about a second: what spans, metrics and the log line say is what the client saw."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.support import claude
from tests.support.poll import poll
from tests.support.scene import Scene, scene
from tests.support.told import SLACK
from tests.support.upstream import Seen, json_answer
from tests.support.wire import Wire

STEP = 0.4
"""Seconds between the pieces of the slow stream."""
PIECES = [claude.start(), claude.BLOCK, claude.delta("a"), claude.delta("b"), claude.delta("c"), claude.last()]


class Slow:
    """Six pieces, `STEP` apart: the first content after 2 steps, the end after 5; `sent` tells when each went."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    def __call__(self, connection: socket.socket, _seen: Seen) -> None:
        connection.sendall(claude.SSE_HEAD)
        pause = threading.Event()
        for index, piece in enumerate(PIECES):
            if index:
                pause.wait(STEP)
            self.sent.append(time.perf_counter())
            connection.sendall(claude.chunk(piece))
        connection.sendall(claude.LAST_CHUNK)


def quick(connection: socket.socket, _seen: Seen) -> None:
    """The whole stream at once."""
    claude.send_events(connection, [claude.STREAM])
    connection.sendall(claude.LAST_CHUNK)


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(quick) as made:
        yield made


def new_trace(sampled: bool = True) -> tuple[str, str, str]:
    """Trace id, span id and the traceparent of a caller."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-0{int(sampled)}"


def test_spans_metrics_and_line_last_as_long_as_the_stream_that_the_client_saw(stage: Scene) -> None:
    slow = Slow()
    stage.plays(slow)
    watch = stage.watch()
    in_flight: list[float] = []
    with Wire(stage.gateway.port) as wire:
        began = time.perf_counter()
        wire.ask(claude.ASKED | {"stream": True})
        head = wire.head()
        pieces, arrivals = [], []
        while piece := wire.piece():
            pieces.append(piece)
            arrivals.append(time.perf_counter() - began)
            if len(pieces) in (1, 4):
                in_flight.append(stage.gateway.sample("claude_proxy_in_flight_requests", http_route="/v1/messages"))
        lasted = time.perf_counter() - began
    assert head.status == 200
    assert b"".join(pieces) == b"".join(PIECES)
    assert in_flight == [1, 1]
    assert stage.gateway.sample("claude_proxy_in_flight_requests", http_route="/v1/messages") == 0
    told = watch.told("ok")
    assert lasted > 5 * STEP - 0.01
    assert all(at - (sent - began) < STEP for at, sent in zip(arrivals, slow.sent, strict=True)), (
        "none waits for the next"
    )
    assert told.server.seconds == pytest.approx(lasted, abs=SLACK)
    assert told.chat is not None
    assert told.chat.seconds == pytest.approx(lasted, abs=SLACK)
    assert told.line["ttft_s"] == pytest.approx(arrivals[2], abs=SLACK)
    ((name, at, _),) = told.chat.events
    assert name == "first_chunk"
    assert at - told.chat.start == pytest.approx(arrivals[2], abs=SLACK)
    (attempt,) = told.attempts
    assert attempt.seconds < STEP  # it ends at the headers, and says so
    usage = {k: v for k, v in told.line.items() if k.endswith("_tokens")}
    assert usage == {"input_tokens": 40, "output_tokens": 7, "cache_read_tokens": 5, "cache_write_tokens": 10}
    assert told.line["upstream_s"] == pytest.approx(lasted, abs=SLACK)
    assert told.line["overhead_s"] < SLACK


def test_each_piece_of_a_stream_is_handed_on_when_it_comes_and_pings_are_not_held(stage: Scene) -> None:
    handed = threading.Semaphore(0)
    pieces = [claude.start(), claude.event("ping"), claude.BLOCK, claude.delta("a"), claude.last()]

    def step_by_step(connection: socket.socket, _seen: Seen) -> None:
        connection.sendall(claude.SSE_HEAD)
        for piece in pieces:
            connection.sendall(claude.chunk(piece))
            assert handed.acquire(timeout=30)  # the next piece exists only once the client has this one
        connection.sendall(claude.LAST_CHUNK)

    stage.plays(step_by_step)
    with Wire(stage.gateway.port) as wire:
        wire.ask(claude.ASKED | {"stream": True})
        assert wire.head().status == 200
        for piece in pieces:
            assert wire.piece() == piece
            handed.release()
        assert wire.piece() == b""


def test_the_callers_trace_goes_on_and_each_attempt_sends_its_own_span_up_but_no_baggage(stage: Scene) -> None:
    stage.plays(quick)
    trace_id, span_id, traceparent = new_trace()
    stage.upstream.seen.clear()
    watch = stage.watch()
    headers = {"traceparent": traceparent, "tracestate": "vendor=1", "baggage": "tenant=secret"}
    got = stage.ask(stream=True, headers=headers)
    told = watch.told("ok")
    assert got.headers["x-trace-id"] == told.line["trace_id"] == trace_id
    assert told.server.parent_id == span_id
    (seen,) = stage.upstream.seen
    (attempt,) = told.attempts
    assert seen.header("traceparent") == f"00-{trace_id}-{attempt.span_id}-01"
    assert seen.header("tracestate") == "vendor=1"
    assert seen.header("baggage") is None


def test_a_caller_that_does_not_sample_gets_no_spans_and_no_exemplars_but_metrics_and_a_line(stage: Scene) -> None:
    stage.plays(json_answer(claude.MESSAGE))
    trace_id, _, traceparent = new_trace(sampled=False)
    stage.upstream.seen.clear()
    lines = stage.gateway.settled()
    stage.ask(stream=False, headers={"traceparent": traceparent})
    (line,) = poll(lambda: stage.gateway.requests()[lines:], what="its line")
    assert (line["trace_id"], line["outcome"]) == (trace_id, "ok")
    up = stage.upstream.seen[0].header("traceparent") or ""
    assert up.startswith(f"00-{trace_id}-")
    assert up.endswith("-00")
    kept = stage.ask(stream=False).headers["x-trace-id"]  # exported after it, so by then its own would be there
    stage.sink.trace(kept, 3)
    assert [s for s in stage.sink.spans if s.trace_id == trace_id] == []
    assert trace_id not in exemplars(stage)


def test_every_exemplar_leads_to_an_exported_trace(stage: Scene) -> None:
    stage.plays(quick)
    kept = stage.ask(stream=True).headers["x-trace-id"]
    found = exemplars(stage)
    assert found[kept] >= {
        "claude_proxy_requests",
        "claude_proxy_request_duration_seconds",
        "claude_proxy_overhead_seconds",
        "gen_ai_client_inference_duration_seconds",
        "gen_ai_client_inference_time_to_first_chunk_seconds",
    }
    for trace_id in found:
        stage.sink.trace(trace_id, 3)


def exemplars(stage: Scene) -> dict[str, set[str]]:
    """Trace id -> metric families whose exemplar names it, from the OpenMetrics exposition."""
    accept = "application/openmetrics-text; version=1.0.0"
    answer = httpx.get(stage.gateway.url + "/metrics", headers={"accept": accept}, timeout=30)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(answer.text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.exemplar is not None:
                found.setdefault(sample.exemplar.labels["trace_id"], set()).add(family.name)
    return found


def test_a_large_answer_of_ours_lasts_until_the_client_has_taken_it() -> None:
    message = json.loads(claude.MESSAGE)
    message["content"][0]["text"] = "x" * 200_000
    with scene(json_answer(json.dumps(message).encode())) as own, Wire(own.gateway.port) as wire:
        wire.ask({"prompts": ["Hi"] * 60}, target="/batch_generate")
        head = wire.head()
        time.sleep(1)
        assert own.gateway.sample("claude_proxy_in_flight_requests", http_route="/batch_generate") == 1
        assert len(json.loads(wire.body())["results"]) == 60
        (line,) = own.gateway.wait_requests(1)
        (server,) = own.sink.wait(lambda span: span.kind == "SERVER")
        assert own.gateway.sample("claude_proxy_in_flight_requests", http_route="/batch_generate") == 0
    assert (head.status, line["outcome"]) == (200, "ok")
    assert line["total_s"] == pytest.approx(server.seconds, abs=0.2)
    assert line["client_wait_s"] > 0.8
