"""Bad days of the provider: each is a status or an in-band event that names the cause, and one outcome everywhere."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support import claude
from tests.support.processes import nobody
from tests.support.scene import Got, Scene, scene
from tests.support.upstream import Script, Seen, answer, json_answer, reset

FIRST = [claude.start(), claude.BLOCK, claude.delta("a")]
"""What every stream here begins with."""
JSON = "content-type: application/json"
LATE = 2.0
"""Seconds by which a busy machine may come too late to the end of a time."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    waits = {"CLAUDE_PROXY_FIRST_BYTE_TIMEOUT": "1.5", "CLAUDE_PROXY_IDLE_TIMEOUT": "1.5"}
    with scene(json_answer(claude.MESSAGE), **waits, CLAUDE_PROXY_TOTAL_TIMEOUT="4") as made:
        yield made


@pytest.fixture(scope="module")
def impatient() -> Iterator[Scene]:
    """The total timeout is shorter than every other."""
    with scene(json_answer(claude.MESSAGE), CLAUDE_PROXY_TOTAL_TIMEOUT="1.5") as made:
        yield made


def until_left(connection: socket.socket) -> None:
    """Stay silent until the gateway gives up."""
    connection.recv(1)


def plays(*parts: bytes, then: Callable[[socket.socket], None] = socket.socket.close) -> Script:
    """Sends these bytes, then does that."""

    def script(connection: socket.socket, _seen: Seen) -> None:
        for part in parts:
            connection.sendall(part)
        then(connection)

    return script


def shut(connection: socket.socket) -> None:
    """FIN."""
    connection.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Day:
    """One bad day: what the provider does, and what must be said of it."""

    script: Script
    outcome: str
    error_type: str
    says: str
    """A part of the message that the client gets."""
    status: int = 502
    kind: str = "api_error"
    attempt: tuple[str, str] = ("", "")


NO_ANSWER = {
    "hangs": Day(
        plays(then=until_left), "upstream_timeout", "upstream_timeout", "did not begin to answer within 1.5 s", 504,
        "timeout_error", ("", "timeout"),
    ),
    "resets": Day(plays(then=reset), "upstream_error", "no_answer", "without an answer", attempt=("", "no_answer")),
    "closes": Day(plays(then=shut), "upstream_error", "no_answer", "without an answer", attempt=("", "no_answer")),
    "half_a_head": Day(
        plays(b"HTTP/1.1 200 OK\r\ncontent-ty", then=shut), "upstream_error", "no_answer", "without an answer",
        attempt=("", "no_answer"),
    ),
    "not_http": Day(
        plays(b"SSH-2.0-OpenSSH_9.6\r\n", then=until_left), "upstream_error", "invalid_response", "is not HTTP",
        attempt=("", "http_error"),
    ),
}  # fmt: skip


def assert_ours(got: Got, day: Day) -> None:
    """The client got a whole error of ours that says why."""
    assert (got.status, got.cut) == (day.status, False)
    error = got.json()["error"]
    assert (error["type"], error["details"]["source"]) == (day.kind, "claude-proxy")
    assert day.says in error["message"]
    assert error["details"]["trace_id"] == got.headers["x-trace-id"]
    assert got.json()["request_id"] == got.headers["x-request-id"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("day", NO_ANSWER.values(), ids=NO_ANSWER)
def test_a_provider_that_gives_no_answer_is_an_error_of_ours_that_says_why(
    stage: Scene, day: Day, stream: bool
) -> None:
    stage.plays(day.script)
    watch = stage.watch()
    got = stage.ask(stream=stream)
    assert_ours(got, day)
    told = watch.told(day.outcome, error_type=day.error_type, status=day.status, attempt=day.attempt)
    assert told.line["stream"] is stream
    assert told.attempts[0].status == "ERROR"


def test_a_provider_that_refuses_connections_was_sent_nothing() -> None:
    with nobody() as url, scene(plays(), CLAUDE_PROXY_ANTHROPIC_BASE_URL=url) as stage:
        watch = stage.watch()
        got = stage.ask(stream=True)
        day = Day(plays(), "upstream_unreachable", "upstream_unreachable", "no connection", attempt=("", "not_sent"))
        assert_ours(got, day)
        watch.told(day.outcome, error_type=day.error_type, status=502, attempt=day.attempt)


def dies(*parts: bytes, then: Callable[[socket.socket], None] = shut) -> Script:
    """A stream of these chunks, ended without the last chunk."""
    return plays(claude.SSE_HEAD, *map(claude.chunk, parts), then=then)


HALF = claude.delta("b")[:-20]
IN_STREAM = {
    "fin_in_an_event": Day(dies(*FIRST, HALF), "cut_off", "cut_off", "ended in the middle", attempt=("200", "died_mid_body")),
    "fin_between_events": Day(dies(*FIRST), "cut_off", "cut_off", "ended in the middle", attempt=("200", "died_mid_body")),
    "rst": Day(dies(*FIRST, then=reset), "cut_off", "cut_off", "ended in the middle", attempt=("200", "died_mid_body")),
    "no_message_stop": Day(
        plays(claude.SSE_HEAD, *map(claude.chunk, FIRST), claude.LAST_CHUNK, then=until_left),
        "cut_off", "cut_off", "before its last event", attempt=("200", "died_mid_body"),
    ),
    "eof_framed_in_an_event": Day(
        plays(claude.SSE_HEAD_UNTIL_CLOSE, *FIRST, HALF, then=shut), "cut_off", "cut_off", "before its last event",
        attempt=("200", "died_mid_body"),
    ),
    "stalls": Day(
        dies(*FIRST, then=until_left), "stalled", "stalled", "sent nothing for 1.5 s", kind="timeout_error",
        attempt=("200", "stalled"),
    ),
    "stalls_in_an_event": Day(
        dies(*FIRST, HALF, then=until_left), "stalled", "stalled", "sent nothing for 1.5 s", kind="timeout_error",
        attempt=("200", "stalled"),
    ),
    "garbage": Day(
        plays(claude.SSE_HEAD_UNTIL_CLOSE, *FIRST, b"<html>\x00\xff oops", then=shut), "cut_off", "cut_off",
        "before its last event", attempt=("200", "died_mid_body"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("day", IN_STREAM.values(), ids=IN_STREAM)
def test_a_stream_that_dies_ends_with_one_error_event_at_an_events_end(stage: Scene, day: Day) -> None:
    stage.plays(day.script)
    watch = stage.watch()
    got = stage.ask(stream=True)
    assert (got.status, got.cut) == (200, False)
    assert got.body.startswith(b"".join(FIRST))
    events = got.events()
    assert [name for name, _ in events] == ["message_start", "content_block_start", "content_block_delta", "error"]
    error = events[-1][1]
    assert (error["type"], error["error"]["type"]) == ("error", day.kind)
    assert day.says in error["error"]["message"]
    assert error["error"]["details"]["trace_id"] == got.headers["x-trace-id"]
    told = watch.told(day.outcome, error_type=day.error_type, attempt=day.attempt)
    assert "output_tokens" not in told.line


IN_BODY = {
    "short_of_its_length": Day(
        plays(answer("200 OK", claude.MESSAGE, JSON)[:-30], then=shut), "cut_off", "cut_off", "ended in the middle",
        attempt=("200", "died_mid_body"),
    ),
    "reset_in_the_body": Day(
        plays(answer("200 OK", claude.MESSAGE, JSON)[:-30], then=reset), "cut_off", "cut_off", "ended in the middle",
        attempt=("200", "died_mid_body"),
    ),
    "stalls_in_the_body": Day(
        plays(answer("200 OK", claude.MESSAGE, JSON)[:-30], then=until_left), "stalled", "stalled",
        "sent nothing for 1.5 s", 504, "timeout_error", ("200", "stalled"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("day", IN_BODY.values(), ids=IN_BODY)
def test_a_plain_answer_that_dies_is_an_error_of_ours_that_says_why(stage: Scene, day: Day) -> None:
    stage.plays(day.script)
    watch = stage.watch()
    assert_ours(stage.ask(stream=False), day)
    watch.told(day.outcome, error_type=day.error_type, status=day.status, attempt=day.attempt)


def test_a_stream_that_drips_past_the_total_timeout_is_ended(stage: Scene) -> None:
    def drips(connection: socket.socket, _seen: Seen) -> None:
        claude.send_events(connection, FIRST)
        connection.settimeout(0.2)
        while True:
            try:
                connection.recv(1)
                return
            except TimeoutError:
                connection.sendall(claude.chunk(claude.event("ping")))

    stage.plays(drips)
    watch = stage.watch()
    got = stage.ask(stream=True)
    name, error = got.events()[-1]
    assert (name, error["error"]["type"]) == ("error", "timeout_error")
    assert "total timeout of 4 s" in error["error"]["message"]
    told = watch.told("upstream_timeout", error_type="upstream_timeout", attempt=("200", "timeout"))
    assert 4 <= told.line["total_s"] < 4 + LATE


SILENCES = {
    "before_headers": plays(then=until_left),
    "in_a_stream": dies(*FIRST, then=until_left),
    "in_a_body": plays(answer("200 OK", claude.MESSAGE, JSON)[:-30], then=until_left),
}


@pytest.mark.parametrize("where", SILENCES)
def test_the_total_timeout_also_ends_a_call_whose_provider_says_nothing(impatient: Scene, where: str) -> None:
    impatient.plays(SILENCES[where])
    watch = impatient.watch()
    stream = where == "in_a_stream"
    got = impatient.ask(stream=stream)
    error = got.events()[-1][1] if stream else got.json()
    assert error["error"]["type"] == "timeout_error"
    assert "1.5 s" in error["error"]["message"]
    status = {"before_headers": "", "in_a_stream": "200", "in_a_body": "200"}[where]
    told = watch.told(
        "upstream_timeout", error_type="upstream_timeout", status=200 if stream else 504, attempt=(status, "timeout")
    )
    assert 1.5 <= told.line["total_s"] < 1.5 + LATE
