"""Attempts after the first: what the provider gets, what the client gets, and what the spans, metrics and line say of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import claude
from tests.support.claude import ASKED, BLOCK, LAST_CHUNK, MODEL, delta, event, last, start
from tests.support.otlp import SpanSeen
from tests.support.scene import Scene, scene
from tests.support.upstream import Script, Seen, answer, reset
from tests.support.wire import Wire

JSON = "content-type: application/json"
STAND_IN = "claude-sonnet-5-5"


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(in_turn(), CLAUDE_PROXY_MAX_RETRIES="2", CLAUDE_PROXY_RETRY_BUDGET="1") as made:
        yield made


def in_turn(*scripts: Script) -> Script:
    """Each request gets the next script; the last one goes on."""
    left = list(scripts)

    def play(connection: socket.socket, seen: Seen) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(connection, seen)

    return play


def says(status: str, body: bytes, *headers: str) -> Script:
    return lambda connection, seen: connection.sendall(answer(status, body, JSON, "request-id: req_scripted", *headers))


def streams(*events: bytes) -> Script:
    def play(connection: socket.socket, seen: Seen) -> None:
        claude.send_events(connection, events)
        connection.sendall(LAST_CHUNK)

    return play


GOOD = says("200 OK", claude.MESSAGE)
OVERLOADED = says("529 Overloaded", claude.error("overloaded_error"), "retry-after-ms: 20")
LIMITED = says(
    "429 Too Many Requests",
    claude.error("rate_limit_error"),
    "retry-after: 0.03",
    "anthropic-ratelimit-requests-remaining: 0",
)


def asked(stage: Scene, *scripts: Script, stream: bool = False, body: Any = None) -> tuple[Any, int]:
    """The client's answer, and how many requests the provider got for it."""
    stage.plays(in_turn(*scripts))
    before = len(stage.upstream.seen)
    return stage.ask(stream=stream, body=body), len(stage.upstream.seen) - before


def line_of(stage: Scene, lines: int) -> dict[str, Any]:
    return stage.gateway.wait_requests(lines + 1)[lines]


def spans_of(stage: Scene, line: dict[str, Any], count: int) -> tuple[SpanSeen, list[SpanSeen]]:
    """The chat span, and what is under it in order of start."""
    spans = stage.sink.trace(line["trace_id"], count)
    assert len(spans) == count, [s.name for s in spans]
    (chat,) = [s for s in spans if s.name.startswith("chat")]
    return chat, sorted((s for s in spans if s.parent_id == chat.span_id), key=lambda s: s.start)


def test_an_overload_is_retried_when_the_provider_said_and_everything_tells_of_it(stage: Scene) -> None:
    lines, before = stage.gateway.settled(), stage.gateway.samples()
    got, sent = asked(stage, OVERLOADED, OVERLOADED, GOOD)
    assert (got.status, got.body, sent) == (200, claude.MESSAGE, 3)
    assert "x-should-retry" not in got.headers
    line = line_of(stage, lines)
    assert (line["outcome"], line["attempts"], line["status"]) == ("ok", 3, 200)
    assert 0.04 <= line["backoff_s"] < line["call_s"]
    assert line["overhead_s"] < line["total_s"] - 0.04
    chat, under = spans_of(stage, line, 7)
    assert [s.name for s in under] == ["POST", "backoff", "POST", "backoff", "POST"]
    attempts, pauses = under[::2], under[1::2]
    assert [s.attributes.get("http.request.resend_count") for s in attempts] == [None, 1, 2]
    assert [s.attributes["http.response.status_code"] for s in attempts] == [529, 529, 200]
    assert [s.kind for s in pauses] == ["INTERNAL"] * 2
    for pause in pauses:
        assert pause.attributes == {
            "claude_proxy.retry.reason": "overloaded",
            "claude_proxy.retry.backoff_seconds": 0.02,
            "claude_proxy.retry.asked_by": "provider",
        }
        assert 0.02 <= pause.seconds < line["call_s"]
    assert chat.status == "UNSET"
    grown = {k: v - before.get(k, 0) for k, v in stage.gateway.samples().items() if v != before.get(k, 0)}
    who = {("gen_ai_provider_name", "anthropic"), ("gen_ai_request_model", MODEL)}
    tries = {tuple(sorted(k[1] - who)): v for k, v in grown.items() if k[0] == "claude_proxy_upstream_attempts_total"}
    assert tries == {
        (("reason", "http_error"), ("status", "529")): 2,
        (("reason", "ok"), ("status", "200")): 1,
    }
    waits = (
        "claude_proxy_retry_wait_seconds_count",
        frozenset({("gen_ai_provider_name", "anthropic"), ("reason", "overloaded")}),
    )
    assert grown[waits] == 2


def test_every_attempt_has_a_traceparent_of_its_own_under_the_same_trace(stage: Scene) -> None:
    lines = stage.gateway.settled()
    asked(stage, LIMITED, GOOD)
    line = line_of(stage, lines)
    _, under = spans_of(stage, line, 5)
    sent = [seen.header("traceparent") for seen in stage.upstream.seen[-2:]]
    assert [str(value).split("-")[1:3] for value in sent] == [[line["trace_id"], s.span_id] for s in under[::2]]


def test_when_the_retries_are_used_up_the_client_gets_the_last_answer_and_is_told_not_to_retry(stage: Scene) -> None:
    lines = stage.gateway.settled()
    got, sent = asked(stage, OVERLOADED)
    assert (got.status, got.body, sent) == (529, claude.error("overloaded_error"), 3)
    assert got.headers["x-should-retry"] == "false"
    line = line_of(stage, lines)
    assert (line["outcome"], line["attempts"], line["error_type"]) == ("upstream_overloaded", 3, "overloaded_error")


def test_a_429s_wait_is_the_providers_and_its_limit_is_told(stage: Scene) -> None:
    lines = stage.gateway.settled()
    got, sent = asked(stage, LIMITED, GOOD)
    assert (got.status, sent) == (200, 2)
    line = line_of(stage, lines)
    assert (line["limit"], line["attempts"]) == ("requests", 2)
    assert line["backoff_s"] >= 0.03


def test_a_wait_longer_than_our_patience_is_the_clients_to_make(stage: Scene) -> None:
    far = says("429 Too Many Requests", claude.error("rate_limit_error"), "retry-after: 3600")
    got, sent = asked(stage, far)
    assert (got.status, sent, got.headers["retry-after"]) == (429, 1, "3600")
    assert "x-should-retry" not in got.headers


def test_a_spend_limit_is_passed_on_at_once_with_the_word_that_nobody_need_try(stage: Scene) -> None:
    spend = claude.error("rate_limit_error", error_code="enforced_spend_limit_reached")
    got, sent = asked(stage, says("429 Too Many Requests", spend, "x-should-retry: true"))
    assert (got.status, sent, got.headers.get_list("x-should-retry")) == (429, 1, ["false"])


def test_a_bad_request_is_passed_on_at_once_without_a_word_of_ours(stage: Scene) -> None:
    got, sent = asked(stage, says("400 Bad Request", claude.error("invalid_request_error")))
    assert (got.status, sent) == (400, 1)
    assert "x-should-retry" not in got.headers


def test_an_error_as_a_streams_very_first_event_is_retried_and_the_client_sees_only_the_good_stream(
    stage: Scene,
) -> None:
    lines = stage.gateway.settled()
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    got, sent = asked(stage, streams(error), streams(start(), BLOCK, delta("Hel"), last()), stream=True)
    assert (got.status, sent) == (200, 2)
    assert got.body == start() + BLOCK + delta("Hel") + last()
    line = line_of(stage, lines)
    assert (line["outcome"], line["attempts"]) == ("ok", 2)


@pytest.mark.parametrize("before", [(event("ping"),), (start(),)], ids=["ping", "message_start"])
def test_after_any_other_first_event_an_error_is_the_clients(stage: Scene, before: tuple[bytes, ...]) -> None:
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    got, sent = asked(stage, streams(*before, error), stream=True)
    assert (got.status, sent, got.body) == (200, 1, b"".join((*before, error)))


def test_when_every_try_opens_with_an_error_the_last_ones_bytes_are_passed_on(stage: Scene) -> None:
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    got, sent = asked(stage, streams(error), stream=True)
    assert (got.status, sent, got.body) == (200, 3, error)


def test_a_call_that_was_sent_and_not_answered_is_not_sent_again(stage: Scene) -> None:
    lines = stage.gateway.settled()
    got, sent = asked(stage, lambda connection, seen: reset(connection))
    assert (got.status, sent) == (502, 1)
    assert line_of(stage, lines)["error_type"] == "no_answer"


def test_an_attempt_without_an_answer_has_no_request_id_of_the_one_before(stage: Scene) -> None:
    lines = stage.gateway.settled()
    got, sent = asked(stage, OVERLOADED, lambda connection, seen: reset(connection))
    assert (got.status, sent) == (502, 2)
    line = line_of(stage, lines)
    assert (line["attempts"], line.get("upstream_request_id")) == (2, None)


def test_but_one_that_changes_and_costs_nothing_is(stage: Scene) -> None:
    stage.plays(in_turn(lambda connection, seen: reset(connection), says("200 OK", b'{"data":[]}')))
    before = len(stage.upstream.seen)
    with stage.gateway.client() as client:
        assert client.get("/v1/models").status_code == 200
    assert len(stage.upstream.seen) - before == 2


def test_the_clients_own_timeout_bounds_all_attempts_together(stage: Scene) -> None:
    stage.plays(in_turn(says("529 Overloaded", claude.error("overloaded_error"), "retry-after: 5"), GOOD))
    before = len(stage.upstream.seen)
    got = stage.ask(stream=False, headers={"x-stainless-timeout": "2"})
    assert (got.status, len(stage.upstream.seen) - before) == (529, 1)
    assert "x-should-retry" not in got.headers


def test_a_client_that_leaves_during_the_pause_costs_no_other_attempt(stage: Scene) -> None:
    lines = stage.gateway.settled()
    answered = threading.Event()

    def overloaded(connection: socket.socket, seen: Seen) -> None:
        says("529 Overloaded", claude.error("overloaded_error"), "retry-after: 50")(connection, seen)
        answered.set()

    stage.plays(in_turn(overloaded, GOOD))
    before = len(stage.upstream.seen)
    with Wire(stage.gateway.port) as wire, stage.gateway.client() as client:
        wire.ask(ASKED)
        assert answered.wait(30)
        for _ in range(5):  # the gateway's loop has gone round since: it has read that
            assert client.get("/healthz").status_code == 200
    line = line_of(stage, lines)
    assert (line["outcome"], line["attempts"], len(stage.upstream.seen) - before) == ("client_abort", 1, 1)


def test_a_fan_outs_calls_are_retried_each_for_itself(stage: Scene) -> None:
    stage.plays(in_turn(OVERLOADED, GOOD))
    lines = stage.gateway.settled()
    with stage.gateway.client() as client:
        answered = client.post("/batch_generate", json={"prompts": ["a", "b"]}).json()
    assert [sorted(result) for result in answered["results"]] == [sorted(answered["results"][0])] * 2
    assert "error" not in answered["results"][0]
    line_of(stage, lines)
    calls = [line for line in stage.gateway.log() if line["event"] == "call"][-2:]
    assert sorted(call["attempts"] for call in calls) == [1, 2]


def test_a_stand_in_speaks_when_the_model_wanted_is_overloaded_and_the_answer_says_so() -> None:
    def by_model(connection: socket.socket, seen: Seen) -> None:
        (GOOD if json.loads(seen.body)["model"] == STAND_IN else OVERLOADED)(connection, seen)

    settings = {"CLAUDE_PROXY_MAX_RETRIES": "1", "CLAUDE_PROXY_FALLBACKS": f"{MODEL}=claude-opus-5,{STAND_IN}"}
    with scene(by_model, **settings) as made:
        before = made.gateway.samples()
        body = ASKED | {"metadata": {"user_id": "u"}, "unknown_field": [1, 2.50, "é"]}
        got = made.ask(stream=False, body=body)
        assert (got.status, got.headers["x-claude-proxy-model"]) == (200, STAND_IN)
        models = [json.loads(seen.body)["model"] for seen in made.upstream.seen]
        assert models == [MODEL, MODEL, "claude-opus-5", "claude-opus-5", STAND_IN]
        assert json.loads(made.upstream.seen[-1].body) == body | {"model": STAND_IN}
        assert b"2.50" in made.upstream.seen[-1].body or b"2.5" in made.upstream.seen[-1].body
        (line,) = made.gateway.wait_requests(1)
        assert (line["model"], line["wanted_model"], line["attempts"]) == (STAND_IN, MODEL, 5)
        grown = made.gateway.samples()
        handed = {k[1]: v for k, v in grown.items() if k[0] == "claude_proxy_fallback_total"}
        provider = ("gen_ai_provider_name", "anthropic")
        assert handed == {
            frozenset({provider, ("from", MODEL), ("to", "claude-opus-5")}): 1,
            frozenset({provider, ("from", "claude-opus-5"), ("to", STAND_IN)}): 1,
        }
        assert before.keys() < grown.keys()
        chat, _ = spans_of(made, line, 9)
        assert chat.attributes["claude_proxy.fallback.from"] == MODEL
        assert chat.attributes["gen_ai.request.model"] == STAND_IN
