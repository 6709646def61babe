"""An answer given again: to whom, what it costs, and that everything says so."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import claude
from tests.support.claude import ASKED, BLOCK, LAST_CHUNK, delta, event, start
from tests.support.scene import Got, Scene, scene
from tests.support.upstream import Seen, answer

KEYS = {name: f"key-of-{name}" for name in ("alice", "bob")}


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    keys = " ".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items())
    with scene(
        answers, CLAUDE_PROXY_CACHE_TTL="60", CLAUDE_PROXY_CLIENT_KEYS=keys, CLAUDE_PROXY_METRICS_TOKEN=""
    ) as made:
        yield made


def answers(connection: socket.socket, seen: Seen) -> None:
    if b'"stream": true' in seen.body or b'"stream":true' in seen.body:
        claude.send_events(connection, [start(), BLOCK, delta("Hel"), delta("lo"), claude.last()])
        connection.sendall(LAST_CHUNK)
    else:
        connection.sendall(
            answer("200 OK", claude.MESSAGE, "content-type: application/json", "request-id: req_scripted")
        )


def ask(
    stage: Scene, text: str, *, client: str = "alice", stream: bool = False, headers: dict[str, str] | None = None
) -> tuple[Got, int]:
    """The answer, and how many requests the provider got for it."""
    before = len(stage.upstream.seen)
    body = ASKED | {"stream": stream, "messages": [{"role": "user", "content": text}]}
    got = stage.ask(stream=stream, body=body, headers={"x-api-key": KEYS[client]} | (headers or {}))
    return got, len(stage.upstream.seen) - before


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_request_again_gets_the_same_bytes_costs_nothing_and_says_so(stage: Scene, stream: bool) -> None:
    began = time.monotonic()
    first, sent = ask(stage, "again", stream=stream)
    assert (first.headers["x-claude-proxy-cache"], sent) == ("miss", 1)
    lines, before = stage.gateway.settled(), stage.gateway.samples()
    second, sent = ask(stage, "again", stream=stream)
    assert (second.status, second.body, sent) == (200, first.body, 0)
    assert second.headers["x-claude-proxy-cache"] == "hit"
    assert 0 <= int(second.headers["age"]) <= time.monotonic() - began
    assert second.headers["content-type"] == first.headers["content-type"]
    assert "request-id" not in second.headers
    line = stage.gateway.wait_requests(lines + 1)[lines]
    assert (line["outcome"], line["cache"], line["attempts"], line["stream"]) == ("ok", "hit", 0, stream)
    assert "input_tokens" not in line
    grown = {k[0] for k, v in stage.gateway.samples().items() if v != before.get(k, 0)}
    assert not {name for name in grown if name.startswith(("gen_ai_", "claude_proxy_cost", "claude_proxy_upstream"))}
    hits = frozenset({("http_route", "/v1/messages"), ("result", "hit")})
    assert stage.gateway.samples()["claude_proxy_cache_requests_total", hits] >= 1


def test_another_client_never_gets_it(stage: Scene) -> None:
    assert ask(stage, "mine")[1] == 1
    assert ask(stage, "mine", client="bob")[1] == 1
    assert ask(stage, "mine", client="bob")[1] == 0


def test_a_client_goes_past_it_when_it_says_so(stage: Scene) -> None:
    assert ask(stage, "past")[1] == 1
    got, sent = ask(stage, "past", headers={"cache-control": "no-cache"})
    assert (got.headers["x-claude-proxy-cache"], sent) == ("bypass", 1)


def test_an_answer_that_failed_or_was_cut_is_not_kept(stage: Scene) -> None:
    def fails(connection: socket.socket, seen: Seen) -> None:
        error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
        claude.send_events(connection, [start(), BLOCK, delta("Hel"), error])
        connection.sendall(LAST_CHUNK)

    stage.plays(fails)
    try:
        assert ask(stage, "broken", stream=True)[1] == 1
        assert ask(stage, "broken", stream=True)[1] == 1
    finally:
        stage.plays(answers)


def test_generate_is_served_from_it_too(stage: Scene) -> None:
    before = len(stage.upstream.seen)
    with stage.gateway.client(headers={"x-api-key": KEYS["alice"]}) as client:
        two = [client.post("/generate", json={"prompt": "hello"}).json() for _ in range(2)]
    assert len(stage.upstream.seen) - before == 1
    assert [answer["content"] for answer in two] == [[{"type": "text", "text": "Hello"}]] * 2
    assert [(answer["cache"], answer["cost"]["usd"] > 0) for answer in two] == [("miss", True), ("hit", False)]
