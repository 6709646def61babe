"""Stand-ins and what else follows a failed try: only models the client may ask, never an answer without its speaker's name."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import claude
from tests.support.asking import asked, client_keys, key_of
from tests.support.claude import MODEL, SSE_HEAD
from tests.support.poll import poll
from tests.support.scene import Got, Scene, scene
from tests.support.upstream import Seen, answer

STAND_IN = "claude-sonnet-5-5"
JSON = "content-type: application/json"


def overloaded(connection: socket.socket, seen: Seen) -> None:
    """Only the stand-in answers."""
    if json.loads(seen.body)["model"] == STAND_IN:
        connection.sendall(answer("200 OK", claude.MESSAGE, JSON))
    else:
        connection.sendall(answer("529 Overloaded", claude.error("overloaded_error"), JSON))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    file: Path = tmp_path_factory.mktemp("limits") / "limits.json"
    file.write_text(
        json.dumps(
            {"narrow": {"models": [MODEL]}, "wide": {"models": [MODEL, STAND_IN]}, "poor": {"budget_usd_per_day": 0}}
        )
    )
    with scene(
        overloaded,
        CLAUDE_PROXY_CLIENT_KEYS=client_keys("narrow", "wide", "poor"),
        CLAUDE_PROXY_CLIENT_LIMITS_FILE=str(file),
        CLAUDE_PROXY_FALLBACKS=f"{MODEL}={STAND_IN}",
        CLAUDE_PROXY_MAX_RETRIES="0",
        CLAUDE_PROXY_CACHE_TTL="60",
    ) as made:
        yield made


def ask(stage: Scene, client: str) -> Got:
    return stage.ask(stream=False, body=asked(), headers={"x-api-key": key_of(client)})


def test_a_model_that_the_client_may_not_ask_does_not_stand_in_for_it(stage: Scene) -> None:
    sent = len(stage.upstream.seen)
    assert ask(stage, "narrow").status == 529
    assert [json.loads(seen.body)["model"] for seen in stage.upstream.seen[sent:]] == [MODEL]


def test_an_answer_of_a_stand_in_is_not_given_again_as_if_the_model_wanted_had_spoken(stage: Scene) -> None:
    first, second = ask(stage, "wide"), ask(stage, "wide")
    for got in (first, second):
        assert (got.status, got.headers["x-claude-proxy-model"]) == (200, STAND_IN)
        assert got.headers["x-claude-proxy-cache"] == "miss"


def test_each_attempt_is_counted_for_the_model_that_was_asked(stage: Scene) -> None:
    before = attempts(stage)
    ask(stage, "wide")
    now = attempts(stage)
    assert {key: now[key] - before.get(key, 0) for key in now} == {(MODEL, "529"): 1, (STAND_IN, "200"): 1}


def attempts(stage: Scene) -> dict[tuple[str, str], float]:
    """Attempts so far, by model and status."""
    return {
        (dict(labels)["gen_ai_request_model"], dict(labels)["status"]): value
        for (name, labels), value in stage.gateway.samples().items()
        if name == "claude_proxy_upstream_attempts_total"
    }


@pytest.mark.parametrize(("client", "status"), [("narrow", 403), ("poor", 429)])
def test_a_message_batch_is_no_way_round_a_clients_models_or_budget(stage: Scene, client: str, status: int) -> None:
    sent = len(stage.upstream.seen)
    body = {"requests": [{"custom_id": "a", "params": asked(model=STAND_IN)}]}
    got = stage.ask(stream=False, target="/v1/messages/batches", body=body, headers={"x-api-key": key_of(client)})
    assert (got.status, len(stage.upstream.seen)) == (status, sent)
    stage.plays(lambda connection, seen: connection.sendall(answer("200 OK", b'{"data": []}', JSON)))
    with stage.gateway.client() as one:
        assert one.get("/v1/messages/batches", headers={"x-api-key": key_of(client)}).status_code == 200
    stage.plays(overloaded)


def test_generate_goes_past_the_cache_when_its_client_says_so(stage: Scene) -> None:
    body = {"prompt": "again", "model": STAND_IN}
    headers = {"x-api-key": key_of("wide")}
    sent = len(stage.upstream.seen)
    for wish in ({}, {"cache-control": "no-cache"}):
        assert stage.ask(stream=False, target="/generate", body=body, headers=headers | wish).status == 200
    assert len(stage.upstream.seen) == sent + 2


def test_a_client_that_leaves_before_the_first_event_has_the_provider_let_go_at_once(stage: Scene) -> None:
    stage.plays(lambda connection, seen: connection.sendall(SSE_HEAD))
    closed = stage.upstream.closed
    while closed.acquire(blocking=False):
        pass
    with stage.gateway.client() as client:
        host, port = str(client.base_url.host), client.base_url.port
    body = json.dumps(asked(stream=True)).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nhost: {host}:{port}\r\nx-api-key: {key_of('wide')}\r\ncontent-type: application/json\r\n"
    sent = len(stage.upstream.seen)
    with socket.create_connection((host, port or 80)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        poll(lambda: len(stage.upstream.seen) > sent, what="the request upstream")
    assert closed.acquire(timeout=30)


def test_a_second_try_has_only_what_is_left_of_the_clients_time() -> None:
    def slow(connection: socket.socket, seen: Seen) -> None:
        if len(made.upstream.seen) == 1:
            threading.Event().wait(3)
            connection.sendall(answer("529 Overloaded", claude.error("overloaded_error"), JSON, "retry-after-ms: 10"))

    with scene(slow, CLAUDE_PROXY_MAX_RETRIES="1") as made:
        got = made.ask(stream=False, body=asked(), headers={"x-stainless-timeout": "6"})
        assert (got.status, len(made.upstream.seen)) == (504, 2)
        (line,) = made.gateway.wait_requests(1)
        assert (line["outcome"], line["attempts"]) == ("upstream_timeout", 2)
        assert line["total_s"] < 8.5  # as long again from the second try on would be nine
