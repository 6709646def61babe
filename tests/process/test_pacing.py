"""Waiting for room under the provider's limits: who waits, for how long, who is told to come back, and what is told of it.

Each test asks a model of its own, so that nobody has told anything of its limits before.
"""

from __future__ import annotations

import itertools
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import claude
from tests.support.asking import (
    ask,
    asked,
    client_keys,
    headroom,
    key_of,
    line_of,
    new_model,
    says,
    start,
    text_of,
    wait_queue,
)
from tests.support.otlp import SpanSeen
from tests.support.poll import poll
from tests.support.scene import Got, Scene, scene
from tests.support.told import SLACK
from tests.support.upstream import Script, Seen
from tests.support.wire import Wire

PROVIDER = {"gen_ai_provider_name": "anthropic"}
PLENTY = says(*headroom(requests=(100_000, 99_999)))
LATE = 2.0
"""Seconds by which a busy machine may come too late to the end of a wait."""
PACED = {"CLAUDE_PROXY_PACING": "on", "CLAUDE_PROXY_QUEUE_TIMEOUT": "30", "CLAUDE_PROXY_QUEUE_SIZE": "5"}


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(PLENTY, CLAUDE_PROXY_CLIENT_KEYS=client_keys("alice", "bob"), **PACED) as made:
        yield made


def used_up(stage: Scene, per_minute: int, model: str | None = None, client: str = "alice") -> str:
    """A model of which nothing is left: there is room for one request every `60 / per_minute` s, the first half as much later."""
    model = model or new_model()
    stage.plays(says(*headroom(requests=(per_minute, 0))))
    assert ask(stage, asked(model=model), client).status == 200
    stage.plays(PLENTY)
    return model


def spans_of(stage: Scene, line: dict[str, Any], count: int) -> dict[str, SpanSeen]:
    spans = stage.sink.trace(line["trace_id"], count)
    assert len(spans) == count, [span.name for span in spans]
    return {span.name.split(" ")[0]: span for span in spans}


def no_wait(stage: Scene, got: Got) -> bool:
    """It was answered without a wait."""
    assert got.status == 200, got.body
    return "queue_s" not in line_of(stage, got)


def test_who_finds_no_room_waits_until_there_is_and_everything_tells_of_it(stage: Scene) -> None:
    model = used_up(stage, 20)
    before, sent = stage.gateway.samples(), len(stage.upstream.seen)
    waiting = start(stage, asked(model=model))
    wait_queue(stage, 1)
    assert len(stage.upstream.seen) == sent
    got = waiting.got()
    assert (got.status, got.body, len(stage.upstream.seen)) == (200, claude.MESSAGE, sent + 1)
    line = line_of(stage, got)
    assert (line["outcome"], line["attempts"]) == ("ok", 1)
    assert 2 < line["queue_s"] < 4.5 + LATE
    assert line["overhead_s"] <= line["total_s"] - line["queue_s"] - line["upstream_s"] + 0.001
    assert line["call_s"] <= line["total_s"] - line["queue_s"]
    spans = spans_of(stage, line, 4)
    wait, chat, server = spans["wait"], spans["chat"], spans["POST"] if spans["POST"].kind == "SERVER" else None
    server = server or next(s for s in stage.sink.trace(line["trace_id"], 4) if s.kind == "SERVER")
    assert (wait.name, wait.kind, wait.status) == ("wait for capacity", "INTERNAL", "UNSET")
    assert wait.parent_id == chat.parent_id == server.span_id
    assert server.start <= wait.start <= wait.end <= chat.start
    assert wait.attributes["claude_proxy.queue.dimension"] == "requests"
    assert -0.3 < line["queue_s"] - wait.attributes["claude_proxy.queue.predicted_seconds"] < LATE
    assert wait.seconds == pytest.approx(line["queue_s"], abs=SLACK)
    wait_queue(stage, 0)
    after = stage.gateway.samples()
    grown = {k: v - before.get(k, 0) for k, v in after.items() if k[0].startswith("claude_proxy_queue_wait_seconds")}
    labels = frozenset(PROVIDER.items())
    assert grown["claude_proxy_queue_wait_seconds_count", labels] == 1
    assert grown["claude_proxy_queue_wait_seconds_sum", labels] == pytest.approx(line["queue_s"], abs=SLACK)


def test_who_finds_room_has_no_wait_told_of_it(stage: Scene) -> None:
    watch = stage.watch()
    assert ask(stage, asked(model=new_model())).status == 200
    assert "queue_s" not in watch.told("ok").line


def test_a_stream_waits_too(stage: Scene) -> None:
    model = used_up(stage, 30)
    got = ask(stage, asked(model=model, stream=True))
    assert (got.status, got.body) == (200, claude.STREAM)
    line = line_of(stage, got)
    assert line["queue_s"] > 0.2
    assert line["ttft_s"] < line["total_s"] - line["queue_s"]


def test_each_prompt_of_a_fan_out_waits_for_itself(stage: Scene) -> None:
    model = used_up(stage, 40)
    stage.plays(says(*headroom(requests=(40, 0))))
    got = ask(stage, {"prompts": ["a", "b", "c"], "model": model}, target="/batch_generate")
    assert all("error" not in each for each in got.json()["results"])
    line = line_of(stage, got)
    calls = [one for one in stage.gateway.log() if one["event"] == "call" and one["trace_id"] == line["trace_id"]]
    waits = sorted(call["queue_s"] for call in calls)
    assert len(waits) == 3
    assert all(later - earlier > 0.5 for earlier, later in itertools.pairwise(waits)), waits
    assert waits[-1] - 0.001 <= line["queue_s"] < waits[-1] + waits[0]
    wait_queue(stage, 0)


def test_who_would_wait_for_too_long_is_told_at_once_when_to_come_back(stage: Scene) -> None:
    began = time.monotonic()
    model = used_up(stage, 2)
    sent, watch = len(stage.upstream.seen), stage.watch()
    got = ask(stage, asked(model=model))
    took = time.monotonic() - began
    assert took < 15
    assert got.status == 429
    assert 44 - took <= int(got.headers["retry-after"]) <= 45  # one and a half requests, at two a minute
    assert "x-should-retry" not in got.headers
    error = got.json()["error"]
    assert error["type"] == "rate_limit_error"
    assert "requests per minute" in error["message"]
    assert error["details"]["limit"] == "requests"
    assert 0 <= int(got.headers["retry-after"]) - error["details"]["retry_after_seconds"] < 1
    told = watch.told(
        "queue_rejected",
        error_type="queue_rejected",
        status=429,
        attempt=None,
        rejected="rate_limit_error",
        chat=False,
    )
    assert "queue_s" not in told.line
    assert len(stage.upstream.seen) == sent


@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        ("429 Too Many Requests", "rate_limit_error", "upstream_429"),
        ("529 Overloaded", "overloaded_error", "upstream_overloaded"),
    ],
)
def test_when_there_is_no_room_for_a_retry_the_provider_has_the_last_word(status: str, kind: str, outcome: str) -> None:
    settings = PACED | {"CLAUDE_PROXY_QUEUE_TIMEOUT": "5", "CLAUDE_PROXY_MAX_RETRIES": "2"}
    with scene(says(*headroom(requests=(2, 2))), **settings) as made:
        model = new_model()
        assert ask(made, asked(model=model)).status == 200
        made.plays(says("retry-after: 1", status=status, body=claude.error(kind)))
        got = ask(made, asked(model=model))
        assert (got.status, got.body) == (int(status[:3]), claude.error(kind))
        line = line_of(made, got)
        assert (line["outcome"], line["attempts"], line["model"]) == (outcome, 1, model)
        assert line["backoff_s"] > 0.9
        assert len(made.upstream.seen) == 2
        assert made.gateway.sample("claude_proxy_rejected_total", http_route="/v1/messages") == 0


def test_a_stand_in_that_there_is_no_room_for_has_not_spoken() -> None:
    model, stand_in = new_model(), new_model()
    settings = PACED | {"CLAUDE_PROXY_QUEUE_TIMEOUT": "5", "CLAUDE_PROXY_MAX_RETRIES": "0"}
    with scene(says(*headroom(requests=(1, 0))), CLAUDE_PROXY_FALLBACKS=f"{model}={stand_in}", **settings) as made:
        assert ask(made, asked(model=stand_in)).status == 200
        made.plays(says(status="529 Overloaded", body=claude.error("overloaded_error")))
        got = ask(made, asked(model=model))
        assert (got.status, "x-claude-proxy-model" in got.headers) == (529, False)
        line = line_of(made, got)
        assert (line["model"], line["attempts"], "wanted_model" in line) == (model, 1, False)
        assert len(made.upstream.seen) == 2


def test_longer_than_a_minute_is_not_for_the_client_to_wait_by_itself(stage: Scene) -> None:
    got = ask(stage, asked(model=used_up(stage, 1)))
    assert (got.status, got.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in got.headers
    assert got.json()["error"]["details"]["retry_after_seconds"] > 60


def test_the_clients_own_timeout_bounds_the_wait(stage: Scene) -> None:
    model = used_up(stage, 6)
    got = ask(stage, asked(model=model), x_stainless_timeout="4")
    assert (got.status, got.json()["error"]["details"]["limit"]) == (429, "requests")
    assert 4 < int(got.headers["retry-after"]) <= 15


def test_the_queue_is_bounded(stage: Scene) -> None:
    model = used_up(stage, 12)
    wires = [Wire(stage.gateway.port) for _ in range(5)]
    for wire in wires:
        wire.ask(asked(model=model), f"x-api-key: {key_of('alice')}")
    wait_queue(stage, 5)
    got = ask(stage, asked(model=model))
    assert got.status == 429
    assert "too many requests wait" in got.json()["error"]["message"]
    assert 20 < int(got.headers["retry-after"]) <= 33
    lines, sent = stage.gateway.settled(), len(stage.upstream.seen)
    for wire in wires:
        wire.close()
    wait_queue(stage, 0)
    left = stage.gateway.wait_requests(lines + 5)[lines:]
    assert {(line["outcome"], line["attempts"]) for line in left} == {("client_abort", 0)}
    assert len(stage.upstream.seen) - sent <= 1


def test_a_client_that_leaves_frees_its_place_and_costs_nothing(stage: Scene) -> None:
    model = used_up(stage, 15)
    lines, sent = stage.gateway.settled(), len(stage.upstream.seen)
    first = Wire(stage.gateway.port)
    first.ask(asked(model=model), f"x-api-key: {key_of('alice')}")
    wait_queue(stage, 1)
    second = start(stage, asked(model=model))
    wait_queue(stage, 2)
    first.close()
    wait_queue(stage, 1)
    gone = stage.gateway.wait_requests(lines + 1)[lines]
    assert (gone["outcome"], gone["attempts"]) == ("client_abort", 0)
    assert gone["queue_s"] > 0
    assert "cost_usd" not in gone or gone["cost_usd"] == 0
    assert set(spans_of(stage, gone, 2)) == {"wait", "POST"}
    got = second.got()
    line = line_of(stage, got)
    (wait,) = [s for s in stage.sink.trace(line["trace_id"], 4) if s.name.startswith("wait")]
    assert (got.status, len(stage.upstream.seen) - sent) == (200, 1)
    assert line["queue_s"] < wait.attributes["claude_proxy.queue.predicted_seconds"] - 2


def test_first_come_first_served(stage: Scene) -> None:
    model = used_up(stage, 12)
    sent = len(stage.upstream.seen)
    waiting = []
    for number in range(4):
        waiting.append(start(stage, asked(str(number), model=model)))
        wait_queue(stage, number + 1)
    stage.plays(says(*headroom(requests=(120, 0))))
    assert [each.got().status for each in waiting] == [200] * 4
    assert [text_of(seen) for seen in stage.upstream.seen[sent:]] == ["0", "1", "2", "3"]


def test_a_client_with_many_requests_does_not_keep_another_out(stage: Scene) -> None:
    model = used_up(stage, 12)
    sent = len(stage.upstream.seen)
    waiting = []
    for number, client in enumerate(("alice", "alice", "alice", "alice", "bob")):
        waiting.append(start(stage, asked(client, model=model), client))
        wait_queue(stage, number + 1)
    stage.plays(says(*headroom(requests=(120, 0))))
    assert [each.got().status for each in waiting] == [200] * 5
    assert "bob" in [text_of(seen) for seen in stage.upstream.seen[sent:]][:2]


def limited(*headers: str) -> Script:
    """The provider's own no."""
    return says(*headers, status="429 Too Many Requests", body=claude.error("rate_limit_error"))


def test_after_a_429_nobody_is_sent_before_the_time_that_it_named(stage: Scene) -> None:
    model = new_model()
    times: list[float] = []

    def at(script: Script) -> Script:
        """Which notes when it answers."""

        def play(connection: socket.socket, seen: Seen) -> None:
            times.append(time.monotonic())
            script(connection, seen)

        return play

    stage.plays(at(limited("retry-after: 4", *headroom(requests=(600, 0)))))
    assert ask(stage, asked(model=model)).status == 429
    stage.plays(at(PLENTY))
    waiting = [start(stage, asked(model=model)) for _ in range(2)]
    wait_queue(stage, 2)
    assert len(times) == 1
    assert [each.got().status for each in waiting] == [200, 200]
    said, first, _ = times
    assert first - said > 3.99


def test_after_a_429_for_long_the_others_are_told_to_come_back_then(stage: Scene) -> None:
    model = new_model()
    stage.plays(limited("retry-after: 40"))
    assert ask(stage, asked(model=model)).status == 429
    stage.plays(PLENTY)
    sent = len(stage.upstream.seen)
    got = ask(stage, asked(model=model))
    assert (got.status, len(stage.upstream.seen)) == (429, sent)
    assert 35 <= int(got.headers["retry-after"]) <= 41
    assert line_of(stage, got)["outcome"] == "queue_rejected"


def test_a_spend_limit_closes_nothing(stage: Scene) -> None:
    model = new_model()
    spend = claude.error("rate_limit_error", error_code="enforced_spend_limit_reached")
    stage.plays(says(*headroom(requests=(100, 50)), status="429 Too Many Requests", body=spend))
    assert ask(stage, asked(model=model)).status == 429
    stage.plays(PLENTY)
    assert no_wait(stage, ask(stage, asked(model=model)))


NONSENSE: dict[str, Script] = {
    "missing": says(),
    "no reset": says("anthropic-ratelimit-requests-limit: 10", "anthropic-ratelimit-requests-remaining: 0"),
    "no number": says(*headroom(requests=(10, 0))[1:], "anthropic-ratelimit-requests-limit: ten"),
    "negative": says(*headroom(requests=(10, -3))),
    "none at all": says(*headroom(requests=(0, 0), input_tokens=(0, 0))),
    "more than there is": says(*headroom(requests=(10, 5_000_000))),
    "too long": says(*headroom(requests=(10**30, 0))),
}


@pytest.mark.parametrize("script", NONSENSE.values(), ids=NONSENSE)
def test_headers_that_make_no_sense_keep_nobody_waiting(stage: Scene, script: Script) -> None:
    model = new_model()
    stage.plays(script)
    assert all(no_wait(stage, ask(stage, asked(model=model))) for _ in range(6))


def test_another_models_limit_is_its_own(stage: Scene) -> None:
    used_up(stage, 2)
    assert no_wait(stage, ask(stage, asked(model=new_model())))


def test_what_is_no_inference_is_not_paced(stage: Scene) -> None:
    model = used_up(stage, 2)
    assert no_wait(stage, ask(stage, asked(model=model), target="/v1/messages/count_tokens"))
    with stage.gateway.client(headers={"x-api-key": key_of("alice")}) as client:
        assert client.get("/v1/models").status_code == 200


def message(**usage: int) -> bytes:
    """A whole message that says so of its tokens."""
    return claude.MESSAGE.replace(b'"input_tokens": 25', f'"input_tokens": {usage["input_tokens"]}'.encode()).replace(
        b'"cache_read_input_tokens": 5', f'"cache_read_input_tokens": {usage["cache_read"]}'.encode()
    )


def test_what_was_read_from_the_cache_slows_nobody_down_and_what_was_not_does(stage: Scene) -> None:
    model = new_model()
    stage.plays(says(*headroom(input_tokens=(6000, 6000)), body=message(input_tokens=10, cache_read=500_000)))
    assert all(no_wait(stage, ask(stage, asked(model=model))) for _ in range(4))
    stage.plays(says(*headroom(input_tokens=(6000, 6000)), body=message(input_tokens=500_000, cache_read=0)))
    assert no_wait(stage, ask(stage, asked(model=model)))
    got = ask(stage, asked(model=model))
    assert (got.status, got.json()["error"]["details"]["limit"]) == (429, "input_tokens")


def test_a_retry_waits_for_room_like_everybody() -> None:
    with scene(PLENTY, CLAUDE_PROXY_MAX_RETRIES="2", **PACED) as made:
        model = new_model()
        turns = iter((says(*headroom(requests=(20, 15))), limited("retry-after-ms: 100"), PLENTY))
        made.plays(lambda connection, seen: next(turns)(connection, seen))
        assert no_wait(made, ask(made, asked(model=model)))
        got = ask(made, asked(model=model))
        line = line_of(made, got)
        assert (got.status, line["attempts"], len(made.upstream.seen)) == (200, 2, 3)
        assert line["backoff_s"] < 1 < line["queue_s"]
        spans = spans_of(made, line, 6)
        assert spans["wait"].parent_id == spans["chat"].span_id


def test_a_wait_that_proves_longer_than_foreseen_ends_in_a_429() -> None:
    release = threading.Event()

    def by_text(connection: socket.socket, seen: Seen) -> None:
        if text_of(seen) == "held":
            release.wait(30)
            limited("retry-after: 40")(connection, seen)
        else:
            says(*headroom(requests=(20, 0 if text_of(seen) == "last" else 9)))(connection, seen)

    with scene(by_text, **PACED | {"CLAUDE_PROXY_QUEUE_TIMEOUT": "8"}) as made:
        model = new_model()
        assert ask(made, asked("first", model=model)).status == 200
        held = start(made, asked("held", model=model))
        poll(lambda: len(made.upstream.seen) == 2, what="the held one to be sent")
        assert ask(made, asked("last", model=model)).status == 200
        waiting = start(made, asked(model=model))
        wait_queue(made, 1)
        release.set()
        assert held.got().status == 429
        got = waiting.got()
        assert (got.status, len(made.upstream.seen)) == (429, 3)
        assert "in the time that it may wait" in got.json()["error"]["message"]
        assert 20 < int(got.headers["retry-after"]) <= 40
        line = line_of(made, got)
        assert (line["outcome"], line["attempts"]) == ("queue_rejected", 0)
        assert 7.9 < line["queue_s"] < 8 + LATE
        assert set(spans_of(made, line, 2)) == {"wait", "POST"}
        wait_queue(made, 0)


def test_a_stand_in_speaks_for_a_model_whose_limits_have_no_room() -> None:
    model, first, second = new_model(), new_model(), new_model()
    settings = PACED | {"CLAUDE_PROXY_QUEUE_TIMEOUT": "15", "CLAUDE_PROXY_FALLBACKS": f"{model}={first},{second}"}
    with scene(PLENTY, **settings) as made:
        for each in (first, model):
            used_up(made, 2, each)
        sent = len(made.upstream.seen)
        got = ask(made, asked(model=model))
        assert (got.status, got.headers["x-claude-proxy-model"]) == (200, second)
        line = line_of(made, got)
        assert (line["outcome"], line["wanted_model"], line["attempts"]) == ("ok", model, 1)
        assert len(made.upstream.seen) == sent + 1
        used_up(made, 1, second)
        assert ask(made, asked(model=model)).status == 429


def test_a_drain_ends_those_who_wait_with_a_503() -> None:
    settings = PACED | {"CLAUDE_PROXY_GRACEFUL_TIMEOUT": "4"}
    with scene(PLENTY, **settings) as made:
        model = used_up(made, 6)
        with Wire(made.gateway.port) as wire:
            wire.ask(asked(model=model))
            wait_queue(made, 1)
            made.gateway.process.send_signal(signal.SIGTERM)
            head, body = wire.answer()
        assert (head.status, head.get("retry-after")) == (503, "1")
        assert b"shutting down" in body
        assert made.gateway.wait() == 0
        line = made.gateway.requests()[-1]
        assert (line["outcome"], line["status"], line["attempts"]) == ("draining", 503, 0)
        assert set(spans_of(made, line, 2)) == {"wait", "POST"}
        assert len(made.upstream.seen) == 1


def test_each_credential_that_is_passed_on_has_limits_of_its_own_and_is_told_nowhere() -> None:
    with scene(PLENTY, CLAUDE_PROXY_CREDENTIALS="pass", ANTHROPIC_API_KEY="", **PACED) as made:
        model = used_up(made, 2)
        assert ask(made, asked(model=model)).status == 429
        assert no_wait(made, ask(made, asked(model=model), "bob"))
        bearer = ask(made, asked(model=model), "carol", authorization="Bearer token-of-dave")
        assert no_wait(made, bearer)
        assert [seen.header("x-api-key") for seen in made.upstream.seen[:2]] == [key_of("alice"), key_of("bob")]
        with made.gateway.client() as client:
            told = client.get("/metrics").text + "\n".join(made.gateway.lines)
        told += b"".join(made.sink.bodies).decode("latin-1")
        assert "key-of-" not in told
        assert "token-of-dave" not in told


def test_switched_off_nobody_waits() -> None:
    with scene(PLENTY, CLAUDE_PROXY_PACING="off") as made:
        model = used_up(made, 2)
        assert no_wait(made, ask(made, asked(model=model)))
