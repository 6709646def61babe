"""Answers of the provider that say no, or make no sense: passed on byte for byte, and counted as what they are."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator

import pytest

from tests.support import claude
from tests.support.scene import Scene, scene
from tests.support.upstream import Script, Seen, answer, json_answer

JSON = "content-type: application/json"


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(json_answer(claude.MESSAGE)) as made:
        yield made


def streams(*parts: bytes) -> Script:
    """A stream of these chunks, complete as HTTP."""

    def script(connection: socket.socket, _seen: Seen) -> None:
        claude.send_events(connection, parts)
        connection.sendall(claude.LAST_CHUNK)

    return script


def refuses(status: str, kind: str, *headers: str, **details: str) -> tuple[Script, bytes]:
    """An error answer, and its body."""
    body = claude.error(kind, **details)
    whole = answer(status, body, JSON, "request-id: req_scripted", *headers)
    return lambda connection, seen: connection.sendall(whole), body


LIMITS = {
    "requests": ("anthropic-ratelimit-requests-remaining: 0", {}),
    "input_tokens": ("anthropic-ratelimit-input-tokens-remaining: 0", {}),
    "output_tokens": ("anthropic-ratelimit-output-tokens-remaining: 0", {}),
    "acceleration": ("anthropic-ratelimit-requests-remaining: 12", {"error_code": "ramp_limit_exceeded"}),
    "spend": ("anthropic-ratelimit-requests-remaining: 12", {"error_code": "enforced_spend_limit_reached"}),
    "unknown": ("anthropic-ratelimit-requests-remaining: 12", {}),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_429_goes_through_as_it_is_and_is_counted_by_the_limit_that_said_no(
    stage: Scene, limit: str, stream: bool
) -> None:
    header, details = LIMITS[limit]
    after = () if limit == "spend" else ("retry-after: 7",)
    script, body = refuses("429 Too Many Requests", "rate_limit_error", header, *after, **details)
    stage.plays(script)
    watch = stage.watch()
    got = stage.ask(stream=stream)
    assert (got.status, got.body) == (429, body)
    assert got.headers.get("retry-after") == (None if limit == "spend" else "7")
    told = watch.told("upstream_429", error_type="rate_limit_error", status=429, attempt=("429", "http_error"))
    assert told.line["limit"] == limit
    assert told.line.get("retry_after_s") == (None if limit == "spend" else 7)
    assert told.attempts[0].attributes.get("claude_proxy.retry_after") == (None if limit == "spend" else "7")


NO = {
    "529": ("529 Overloaded", "overloaded_error", "upstream_overloaded"),
    "500": ("500 Internal Server Error", "api_error", "upstream_error"),
    "504": ("504 Gateway Timeout", "timeout_error", "upstream_timeout"),
    "401": ("401 Unauthorized", "authentication_error", "upstream_error"),
    "403": ("403 Forbidden", "permission_error", "upstream_error"),
    "400": ("400 Bad Request", "invalid_request_error", "client_invalid"),
    "404": ("404 Not Found", "not_found_error", "client_invalid"),
    "402": ("402 Payment Required", "billing_error", "upstream_error"),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("status", NO)
def test_an_error_of_the_provider_goes_through_as_it_is_under_its_outcome(
    stage: Scene, status: str, stream: bool
) -> None:
    line, kind, outcome = NO[status]
    script, body = refuses(line, kind)
    stage.plays(script)
    watch = stage.watch()
    got = stage.ask(stream=stream)
    assert (got.status, got.body, got.headers["request-id"]) == (int(status), body, "req_scripted")
    told = watch.told(outcome, error_type=kind, status=int(status), attempt=(status, "http_error"))
    assert told.line["upstream_request_id"] == "req_scripted"


def test_a_401_is_the_clients_own_when_the_credential_was_its_own() -> None:
    script, body = refuses("401 Unauthorized", "authentication_error")
    with scene(script, ANTHROPIC_API_KEY="", CLAUDE_PROXY_CREDENTIALS="pass") as stage:
        watch = stage.watch()
        assert stage.ask(stream=False, headers={"x-api-key": "sk-ant-wrong"}).body == body
        watch.told("client_auth", error_type="authentication_error", status=401, attempt=("401", "http_error"))


@pytest.mark.parametrize("ending", ["event", "event_then_reset"])
@pytest.mark.parametrize(
    ("kind", "outcome"), [("overloaded_error", "upstream_overloaded"), ("api_error", "upstream_error")]
)
def test_an_error_event_after_the_200_goes_through_once_and_makes_the_outcome(
    stage: Scene, kind: str, outcome: str, ending: str
) -> None:
    said = claude.event("error", error={"type": kind, "message": "said the provider"})
    parts = [claude.start(), claude.BLOCK, claude.delta("a"), said]

    def script(connection: socket.socket, _seen: Seen) -> None:
        claude.send_events(connection, parts)
        if ending == "event":
            connection.sendall(claude.LAST_CHUNK)
        else:
            connection.shutdown(socket.SHUT_RDWR)

    stage.plays(script)
    watch = stage.watch()
    got = stage.ask(stream=True)
    assert got.body == b"".join(parts)
    watch.told(outcome, error_type=kind, attempt=("200", "ok"))


def test_an_event_that_is_not_json_goes_through_and_the_stream_goes_on_but_counts_as_failed(stage: Scene) -> None:
    parts = [claude.start(), b'event: content_block_delta\ndata: {"type": \n\n', claude.BLOCK, claude.last()]
    stage.plays(streams(*parts))
    watch = stage.watch()
    assert stage.ask(stream=True).body == b"".join(parts)
    watch.told("upstream_error", error_type="invalid_response")


@pytest.mark.parametrize("body", [b"<html>oops</html>", b'{"type": "mess', b"", b"[1]", b'{"type":"completion"}'])
def test_a_200_that_is_no_message_goes_through_and_counts_as_failed(stage: Scene, body: bytes) -> None:
    stage.plays(json_answer(body))
    watch = stage.watch()
    got = stage.ask(stream=False)
    assert (got.status, got.body) == (200, body)
    watch.told("upstream_error", error_type="invalid_response")


@pytest.mark.parametrize("body", [b"<html>oops</html>", b'{"type":"message"}'])
def test_generate_answers_502_when_the_provider_sent_no_message(stage: Scene, body: bytes) -> None:
    stage.plays(json_answer(body))
    watch = stage.watch()
    got = stage.ask(stream=False, target="/generate", body={"prompt": "Hi"})
    assert got.status == 502
    assert "not a message" in got.json()["error"]["message"]
    watch.told("upstream_error", error_type="invalid_response", status=502, attempt=("200", "http_error"))


def test_unknown_events_comments_and_odd_line_ends_go_through_byte_for_byte(stage: Scene) -> None:
    parts = [
        b": hello\n\n",
        claude.start().replace(b"\n", b"\r\n"),
        b'event: from_the_future\ndata: {"type":"from_the_future","x":[1, 2]}\nid: 7\nretry: 10\n\n',
        b"data: no name\ndata: two lines\n\n",
        claude.BLOCK,
        claude.delta("Grüße 你好"),
        b": in between\n",
        claude.last(),
    ]
    body = b"".join(parts)
    whole = [body[i : i + 7] for i in range(0, len(body), 7)]
    stage.plays(streams(*whole))
    watch = stage.watch()
    assert stage.ask(stream=True).body == body
    watch.told("upstream_error", error_type="invalid_response")  # "no name" is not JSON


def test_one_event_of_several_hundred_kilobytes_goes_through_byte_for_byte(stage: Scene) -> None:
    huge = claude.delta("x" * 300_000)
    body = claude.start() + claude.BLOCK + huge + claude.last()
    stage.plays(streams(*[body[i : i + 16_000] for i in range(0, len(body), 16_000)]))
    watch = stage.watch()
    assert stage.ask(stream=True).body == body
    told = watch.told("ok")
    assert told.line["output_tokens"] == 7


def test_a_huge_event_that_is_cut_gets_no_error_event_into_its_middle(stage: Scene) -> None:
    huge = claude.start() + claude.delta("x" * 300_000)[:-100]

    def script(connection: socket.socket, _seen: Seen) -> None:
        claude.send_events(connection, [huge])
        connection.shutdown(socket.SHUT_RDWR)

    stage.plays(script)
    watch = stage.watch()
    got = stage.ask(stream=True)
    assert huge.startswith(got.body)
    assert got.cut  # in-band is no longer possible, so the client must see that the stream is not whole
    watch.told("cut_off", error_type="cut_off", attempt=("200", "died_mid_body"))


def test_a_gzip_answer_goes_through_compressed_and_its_tokens_are_counted(stage: Scene) -> None:
    packed = gzip.compress(claude.MESSAGE)
    stage.plays(lambda connection, seen: connection.sendall(answer("200 OK", packed, JSON, "content-encoding: gzip")))
    stage.upstream.seen.clear()
    watch = stage.watch()
    got = stage.ask(stream=False, headers={"accept-encoding": "br, gzip;q=0.9"})
    assert (got.body, got.headers["content-encoding"]) == (packed, "gzip")
    assert stage.upstream.seen[0].header("accept-encoding") == "gzip"
    told = watch.told("ok")
    assert (told.line["input_tokens"], told.line["output_tokens"]) == (40, 7)


def test_a_refusal_is_an_outcome_of_its_own_and_no_failure(stage: Scene) -> None:
    message = json.loads(claude.MESSAGE) | {"stop_reason": "refusal"}
    stage.plays(json_answer(json.dumps(message).encode()))
    watch = stage.watch()
    assert stage.ask(stream=False).status == 200
    watch.told("refused")


HEADERS_NOBODY_MAY_GET = {
    "control character": ("200 OK", "x-odd: a\x01b"),
    "delete": ("200 OK", "x-odd: a\x7fb"),
    "switching protocols": ("101 Switching Protocols", "upgrade: x"),
    "no such status": ("099 Low", "x-odd: a"),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("what", HEADERS_NOBODY_MAY_GET)
def test_an_answer_whose_head_cannot_be_handed_on_is_the_providers_fault(stage: Scene, what: str, stream: bool) -> None:
    status, header = HEADERS_NOBODY_MAY_GET[what]
    stage.plays(lambda connection, seen: connection.sendall(answer(status, claude.MESSAGE, JSON, header)))
    watch = stage.watch()
    got = stage.ask(stream=stream)
    assert (got.status, got.json()["error"]["message"]) == (502, "the provider's answer is not HTTP")
    watch.told("upstream_error", error_type="invalid_response", status=502, attempt=("", "http_error"))
