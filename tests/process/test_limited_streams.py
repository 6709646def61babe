"""A 200 whose stream opens with a rate-limit error is a 429 for everything but its status line."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import claude
from tests.support.asking import new_model
from tests.support.claude import ASKED, LAST_CHUNK, SSE_HEAD, chunk, event
from tests.support.scene import Got, Scene, scene
from tests.support.upstream import Script, Seen


def opens_with_error(kind: str, *headers: str, **details: str) -> Script:
    """A stream whose first and only event is an error."""
    error: dict[str, Any] = {"type": kind, "message": "said the provider"} | ({"details": details} if details else {})

    def play(connection: socket.socket, seen: Seen) -> None:
        head = SSE_HEAD[:-2] + "".join(f"{line}\r\n" for line in headers).encode() + b"\r\n"
        connection.sendall(head + chunk(event("error", error=error)) + LAST_CHUNK)

    return play


def good(connection: socket.socket, seen: Seen) -> None:
    connection.sendall(SSE_HEAD + chunk(claude.STREAM) + LAST_CHUNK)


def in_turn(*scripts: Script) -> Script:
    left = list(scripts)
    return lambda connection, seen: (left.pop(0) if len(left) > 1 else left[0])(connection, seen)


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(good, CLAUDE_PROXY_PACING="on", CLAUDE_PROXY_MAX_RETRIES="2", CLAUDE_PROXY_RETRY_BUDGET="1") as made:
        yield made


def asked(stage: Scene, model: str) -> tuple[Got, dict[str, Any]]:
    """The answer and its log line."""
    got = stage.ask(stream=True, body=ASKED | {"stream": True, "model": model})
    line = stage.gateway.wait_log(
        lambda one: one["event"] == "request" and one["trace_id"] == got.headers["x-trace-id"], "the request's line"
    )
    return got, line


def counted(stage: Scene) -> dict[str, float]:
    """429s by the limit that said no."""
    samples = stage.gateway.samples()
    return {
        dict(labels)["limit"]: value
        for (name, labels), value in samples.items()
        if name == "claude_proxy_upstream_429_total"
    }


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {limit: value - before.get(limit, 0) for limit, value in after.items() if value != before.get(limit, 0)}


USED_UP = "anthropic-ratelimit-input-tokens-remaining: 0"


def test_it_is_tried_again_when_the_provider_asks_and_counted_as_a_429(stage: Scene) -> None:
    before = counted(stage)
    stage.plays(in_turn(opens_with_error("rate_limit_error", USED_UP, "retry-after: 0.4"), good))
    got, line = asked(stage, new_model())
    assert (got.status, got.body) == (200, claude.STREAM)
    assert (line["outcome"], line["attempts"]) == ("ok", 2)
    assert line["backoff_s"] == pytest.approx(0.4, abs=0.2)
    assert grown(before, counted(stage)) == {"input_tokens": 1}


def test_the_next_call_waits_until_the_time_that_it_named(stage: Scene) -> None:
    model = new_model()
    stage.plays(good)
    assert "queue_s" not in asked(stage, model)[1]
    with scene(
        opens_with_error("rate_limit_error", "retry-after: 2"), CLAUDE_PROXY_PACING="on", CLAUDE_PROXY_MAX_RETRIES="0"
    ) as other:
        before = counted(other)
        got, line = asked(other, model)
        assert (got.status, got.events()[0][0], line["outcome"]) == (200, "error", "upstream_429")
        assert (line["limit"], line["retry_after_s"]) == ("unknown", 2)
        assert grown(before, counted(other)) == {"unknown": 1}
        other.plays(good)
        after = asked(other, model)[1]
        assert after["outcome"] == "ok"
        assert after["queue_s"] > 1


def test_in_the_middle_of_a_stream_it_is_the_clients_and_counted_all_the_same(stage: Scene) -> None:
    before, model = counted(stage), new_model()
    error = event("error", error={"type": "rate_limit_error", "message": "no"})

    def play(connection: socket.socket, seen: Seen) -> None:
        head = SSE_HEAD[:-2] + b"retry-after: 1\r\n\r\n"
        connection.sendall(head + chunk(claude.start() + error) + LAST_CHUNK)

    stage.plays(play)
    got, line = asked(stage, model)
    assert (got.body, line["outcome"], line["attempts"]) == (claude.start() + error, "upstream_429", 1)
    assert grown(before, counted(stage)) == {"unknown": 1}
    stage.plays(good)
    assert asked(stage, model)[1]["queue_s"] > 0.3


def test_a_spend_limit_is_not_tried_again_and_holds_nobody_up(stage: Scene) -> None:
    before, model = counted(stage), new_model()
    stage.plays(opens_with_error("rate_limit_error", error_code="enforced_spend_limit_reached"))
    got, line = asked(stage, model)
    assert (got.status, line["attempts"], line["limit"]) == (200, 1, "spend")
    assert got.headers["x-should-retry"] == "false"
    assert grown(before, counted(stage)) == {"spend": 1}
    stage.plays(good)
    assert "queue_s" not in asked(stage, model)[1]


def test_being_overloaded_is_no_429(stage: Scene) -> None:
    before, model = counted(stage), new_model()
    stage.plays(in_turn(opens_with_error("overloaded_error", USED_UP), good))
    assert asked(stage, model)[1]["attempts"] == 2
    assert grown(before, counted(stage)) == {}
