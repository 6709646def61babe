"""What named clients may do: told before the provider hears of it, exact over all workers, and changed by a reload."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service import settings
from service.errors import SettingsError
from tests.support import claude
from tests.support.asking import ask, asked, client_keys, headroom, key_of, line_of, says, wires_to_both
from tests.support.claude import MODEL
from tests.support.poll import poll
from tests.support.scene import Got, Scene, scene
from tests.support.scrape import all_up
from tests.support.upstream import Script, Seen, Upstream, answer
from tests.support.wire import Wire

PROVIDERS_OWN = headroom(requests=(1000, 990), tokens=(9000, 8000), input_tokens=(5000, 4000))
ANSWERS = says(*PROVIDERS_OWN)
ANSWERS_AT_ONCE = says(
    "x-ratelimit-limit-requests: 1000",
    "x-ratelimit-remaining-requests: 990",
    "x-ratelimit-reset-requests: 1s",
    body=b'{"id":"chatcmpl-1","object":"chat.completion","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}',
)
GIVEN: dict[str, dict[str, Any]] = {
    "requests": {"requests_per_minute": 2},
    "slow": {"requests_per_minute": 0.5},
    "fan": {"requests_per_minute": 2},
    "tokens": {"tokens_per_minute": 94},
    "one": {"concurrency": 1},
    "poor": {"budget_usd_per_day": 0.0001},
    "narrow": {"models": ["claude-haiku-*", "claude-sonnet-5"]},
    "openai": {"requests_per_minute": 10, "tokens_per_minute": 6000},
}


@contextmanager
def limited(tmp_path: Path, given: dict[str, Any], script: Script | Upstream, **environ: str) -> Iterator[Scene]:
    """A scene with these clients, one that has no limits, and the file of the limits."""
    file = tmp_path / "limits.json"
    file.write_text(json.dumps(given))
    keys = client_keys(*given, "free")
    with scene(script, CLAUDE_PROXY_CLIENT_KEYS=keys, CLAUDE_PROXY_CLIENT_LIMITS_FILE=str(file), **environ) as made:
        yield made


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    upstream = Upstream(ANSWERS)
    openai = {"OPENAI_API_KEY": "sk-openai", "CLAUDE_PROXY_OPENAI_BASE_URL": upstream.url}
    with limited(tmp_path_factory.mktemp("limits"), GIVEN, upstream, **openai) as made:
        yield made


def refused(stage: Scene, client: str, limit: str) -> Got:
    """The client is told that this limit is reached, and everything says so; nothing goes to the provider."""
    sent, watch = len(stage.upstream.seen), stage.watch()
    got = ask(stage, asked(), client)
    error = got.json()["error"]
    assert (got.status, error["type"], error["details"]["limit"]) == (429, "rate_limit_error", limit)
    assert repr(client) in error["message"]
    told = watch.told(
        "client_limited",
        error_type="client_limited",
        status=429,
        attempt=None,
        rejected="rate_limit_error",
        chat=False,
    )
    assert (told.line["client"], told.line["refused_by"]) == (client, limit)
    assert len(stage.upstream.seen) == sent
    return got


def reset_of(got: Got, name: str, since: datetime) -> float:
    """Seconds from a moment until a limit is all there again, by the answer's header."""
    reset = datetime.fromisoformat(got.headers[f"anthropic-ratelimit-{name}-reset"])
    return (reset - since).total_seconds()


def test_requests_per_minute_are_counted_and_the_headers_are_the_clients_own(stage: Scene) -> None:
    watch, since = stage.watch(), datetime.now(UTC)
    first = ask(stage, asked(), "requests")
    watch.told("ok")
    assert first.headers.get_list("anthropic-ratelimit-requests-limit") == ["2"]
    assert first.headers.get_list("anthropic-ratelimit-requests-remaining") == ["1"]
    assert 29 <= reset_of(first, "requests", since) <= 36
    assert first.headers["anthropic-ratelimit-tokens-limit"] == "9000"
    assert first.headers["anthropic-ratelimit-input-tokens-remaining"] == "4000"
    second = ask(stage, asked(stream=True), "requests")
    assert (second.status, second.body) == (200, claude.STREAM)
    assert second.headers.get_list("anthropic-ratelimit-requests-remaining") == ["0"]
    third = refused(stage, "requests", "requests")
    assert 10 <= int(third.headers["retry-after"]) <= 30
    assert third.headers["anthropic-ratelimit-requests-limit"] == "2"
    assert third.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert 59 <= reset_of(third, "requests", since) <= 66
    assert "requests per minute" in third.json()["error"]["message"]


def test_a_wait_of_more_than_a_minute_is_not_for_the_client_to_make_by_itself(stage: Scene) -> None:
    assert ask(stage, asked(), "slow").status == 200
    got = refused(stage, "slow", "requests")
    assert got.headers["x-should-retry"] == "false"
    assert "retry-after" not in got.headers


def test_tokens_per_minute_are_what_was_really_used(stage: Scene) -> None:
    first = ask(stage, asked(), "tokens")  # 40 + 7
    assert first.headers["anthropic-ratelimit-tokens-limit"] == "94"
    assert first.headers["anthropic-ratelimit-tokens-remaining"] == "94"
    second = ask(stage, asked(stream=True), "tokens")
    assert 47 <= int(second.headers["anthropic-ratelimit-tokens-remaining"]) < 80
    assert ask(stage, asked(), "tokens").status == 200
    got = refused(stage, "tokens", "tokens")
    assert got.headers["anthropic-ratelimit-tokens-remaining"] == "0"
    assert "tokens per minute" in got.json()["error"]["message"]


class Held:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def __call__(self, connection: socket.socket, seen: Seen) -> None:
        self.free.wait(30)
        connection.sendall(answer("200 OK", claude.MESSAGE, "content-type: application/json"))


@contextmanager
def holding(stage: Scene) -> Iterator[Held]:
    """The provider does not answer in here."""
    held = Held()
    stage.plays(held)
    try:
        yield held
    finally:
        held.free.set()
        stage.plays(ANSWERS)


def test_requests_at_a_time_and_a_client_that_leaves_gives_its_place_back(stage: Scene) -> None:
    with holding(stage) as held, Wire(stage.gateway.port) as wire:
        sent = len(stage.upstream.seen)
        wire.ask(asked(), f"x-api-key: {key_of('one')}")
        poll(lambda: len(stage.upstream.seen) > sent, what="the first to be under way")
        got = ask(stage, asked(), "one")
        error = got.json()["error"]
        assert (got.status, error["details"]["limit"], got.headers["retry-after"]) == (429, "concurrency", "1")
        assert "requests at a time" in error["message"]
        lines = stage.gateway.settled()
        wire.close()
        assert stage.gateway.wait_requests(lines + 1)[lines]["outcome"] == "client_abort"
        held.free.set()
        assert ask(stage, asked(), "one").status == 200
        assert ask(stage, asked(stream=True), "one").status == 200


def test_a_days_budget_is_spent_by_what_calls_cost(stage: Scene) -> None:
    watch = stage.watch()
    first = ask(stage, asked(), "poor")
    line = watch.told("ok").line
    assert (first.status, line["client"]) == (200, "poor")
    assert line["cost_usd"] > 0.0001
    assert stage.gateway.sample("claude_proxy_client_cost_usd_total", client="poor") == pytest.approx(line["cost_usd"])
    assert stage.gateway.sample("claude_proxy_client_budget_usd", client="poor") == 0.0001
    assert first.headers["anthropic-ratelimit-requests-limit"] == "1000"  # money is no rate: no header of ours
    got = refused(stage, "poor", "budget")
    error = got.json()["error"]
    assert "spending per day" in error["message"]
    if error["details"]["retry_after_seconds"] > 60:  # else it is nearly midnight (UTC)
        assert got.headers["x-should-retry"] == "false"
        assert "retry-after" not in got.headers
    assert not [name for name in got.headers if "ratelimit" in name]


def test_a_model_that_the_client_may_not_use_is_named_as_the_field(stage: Scene) -> None:
    sent, watch = len(stage.upstream.seen), stage.watch()
    got = ask(stage, asked(), "narrow")
    error = got.json()["error"]
    assert (got.status, error["type"], error["details"]["field"]) == (403, "permission_error", "model")
    assert MODEL in error["message"]
    assert (got.headers["x-should-retry"], len(stage.upstream.seen)) == ("false", sent)
    told = watch.told(
        "client_limited",
        error_type="client_limited",
        status=403,
        attempt=None,
        rejected="permission_error",
        chat=False,
    )
    assert told.line["client"] == "narrow"


@pytest.mark.parametrize("model", ["claude-haiku-4-5", "claude-haiku-5-5", "claude-sonnet-5"])
def test_a_model_that_it_may_use_goes_through(stage: Scene, model: str) -> None:
    assert ask(stage, asked(model=model), "narrow").status == 200


def test_a_model_whose_name_only_begins_like_one_does_not(stage: Scene) -> None:
    assert ask(stage, asked(model="claude-sonnet-5-5"), "narrow").status == 403


def test_each_prompt_of_a_fan_out_counts(stage: Scene) -> None:
    got = ask(stage, {"prompts": ["a", "b", "c"]}, "fan", target="/batch_generate")
    results = got.json()["results"]
    errors = [result["error"] for result in results if "error" in result]
    assert [error["details"]["limit"] for error in errors] == ["requests"]
    assert got.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert line_of(stage, got)["outcome"] == "ok"


def test_another_providers_clients_are_told_in_its_own_headers(stage: Scene) -> None:
    stage.plays(ANSWERS_AT_ONCE)
    try:
        got = ask(stage, asked(model="gpt-6-sol"), "openai", target="/openai/v1/chat/completions")
    finally:
        stage.plays(ANSWERS)
    assert got.status == 200, got.body
    told = {name: got.headers.get_list(f"x-ratelimit-{name}") for name in ("limit-requests", "remaining-requests")}
    assert told == {"limit-requests": ["10"], "remaining-requests": ["9"]}
    assert got.headers["x-ratelimit-reset-requests"].endswith("s")
    assert got.headers["x-ratelimit-limit-tokens"] == "6000"
    assert not [name for name in got.headers if name.startswith("anthropic-")]


def test_who_has_no_limits_has_the_providers_headers(stage: Scene) -> None:
    assert [ask(stage, asked(), "free").status for _ in range(5)] == [200] * 5
    got = ask(stage, asked(), "free")
    assert [f"{name}: {value}" for name, value in got.headers.items() if "ratelimit" in name] == PROVIDERS_OWN


def test_what_is_no_inference_counts_for_nothing(stage: Scene) -> None:
    for _ in range(3):
        assert ask(stage, asked(), "slow", target="/v1/messages/count_tokens").status == 200


def test_an_answer_out_of_the_cache_is_a_request_that_uses_nothing_and_gives_its_place_back(tmp_path: Path) -> None:
    given = {"alice": {"requests_per_minute": 3, "tokens_per_minute": 60, "concurrency": 1}}
    with limited(tmp_path, given, ANSWERS, CLAUDE_PROXY_CACHE_TTL="60") as made:
        answers = [ask(made, asked(), "alice") for _ in range(3)]
        assert [got.headers.get("x-claude-proxy-cache") for got in answers] == ["miss", "hit", "hit"]
        tokens = [int(got.headers["anthropic-ratelimit-tokens-remaining"]) for got in answers]
        assert tokens[0] == 60
        assert 13 <= tokens[1] <= tokens[2] < 60
        got = ask(made, asked(), "alice")
        assert (got.status, got.json()["error"]["details"]["limit"]) == (429, "requests")
        assert len(made.upstream.seen) == 1


def test_a_fan_out_keeps_within_what_its_client_may_have_at_a_time(stage: Scene) -> None:
    task = {"provider": "anthropic", "prompt": "Say something"}
    for target, body in (
        ("/batch_generate", {"prompts": ["a", "b", "c", "d"]}),
        ("/aggregate", {"tasks": {"a": task, "b": task, "c": task}}),
    ):
        got = ask(stage, body, "one", target=target).json()
        assert "error" not in json.dumps(got), got


def test_over_two_workers_exactly_as_many_come_in_as_may(tmp_path: Path) -> None:
    given = {"twenty": {"requests_per_minute": 20}, "three": {"concurrency": 3}}
    with limited(tmp_path, given, ANSWERS, CLAUDE_PROXY_WORKERS="2") as made:
        all_up(made.gateway, 2)
        wires = wires_to_both(made.gateway, 25)
        began = time.monotonic()
        statuses = ask_at_once(wires, "twenty")
        come_back = (time.monotonic() - began) / 3
        opened = made.gateway.sample(
            "claude_proxy_limiter_fail_open_total"
        )  # the lock's holder was not let run for long
        assert 20 <= statuses.count(200) <= 20 + come_back + opened
        assert statuses.count(200) + statuses.count(429) == 50
        assert len(made.upstream.seen) == statuses.count(200)
        assert len(workers_that_served(made, "twenty")) == 2
        made.upstream.seen.clear()
        with holding(made) as held:
            for wire in wires[15:35]:
                wire.ask(asked(), f"x-api-key: {key_of('three')}")
            poll(lambda: rejections(made, "three") + len(made.upstream.seen) == 20, what="all to be judged")
            held.free.set()
            statuses = [wire.answer()[0].status for wire in wires[15:35]]
        opened = made.gateway.sample("claude_proxy_limiter_fail_open_total") - opened
        assert 3 <= statuses.count(200) <= 3 + opened
        assert len(made.upstream.seen) == statuses.count(200) == 20 - statuses.count(429)
        for wire in wires:
            wire.close()


def ask_at_once(wires: list[Wire], client: str) -> list[int]:
    """The statuses of a request on each."""
    for wire in wires:
        wire.ask(asked(), f"x-api-key: {key_of(client)}")
    return [wire.answer()[0].status for wire in wires]


def workers_that_served(stage: Scene, client: str) -> set[str]:
    """Labels of the workers that had requests of a client."""
    text = stage.gateway.metrics()
    mine = [x for x in text.splitlines() if x.startswith("claude_proxy_client_requests_total") and f'"{client}"' in x]
    return {line.partition('worker="')[2].partition('"')[0] for line in mine}


def rejections(stage: Scene, client: str) -> int:
    """Requests of a client that were refused so far."""
    return sum(line["outcome"] == "client_limited" and line["client"] == client for line in stage.gateway.requests())


def test_what_a_killed_worker_had_under_way_is_free_again(tmp_path: Path) -> None:
    with limited(tmp_path, {"two": {"concurrency": 2}}, ANSWERS, CLAUDE_PROXY_WORKERS="2") as made, holding(made):
        wires = [Wire(made.gateway.port) for _ in range(2)]
        for wire in wires:
            wire.ask(asked(), f"x-api-key: {key_of('two')}")
        poll(lambda: len(made.upstream.seen) == 2, what="both under way")
        assert ask(made, asked(), "two").status == 429
        killed = made.gateway.worker_pids()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        poll(lambda: len(set(made.gateway.worker_pids()) - set(killed)) == 2, what="new workers")
        made.plays(ANSWERS)

        def served() -> bool:
            return ask(made, asked(), "two").status == 200

        poll(served, what="a place")
        for wire in wires:
            wire.close()


def test_a_reload_brings_new_limits_and_keeps_what_was_counted(tmp_path: Path) -> None:
    given = {"alice": {"requests_per_minute": 3}}
    with limited(tmp_path, given, ANSWERS, CLAUDE_PROXY_KEEPALIVE="1") as made:
        file = tmp_path / "limits.json"
        assert [ask(made, asked(), "alice").status for _ in range(4)] == [200, 200, 200, 429]
        (old,) = made.gateway.worker_pids()
        file.write_text('{"alice": {"requests_per_minute": 3000, "request": 1}}')
        made.gateway.process.send_signal(signal.SIGHUP)
        refusal = made.gateway.wait_log(lambda line: "reload refused" in line.get("message", ""), "the refusal")
        assert refusal["level"] == "error"
        assert "CLAUDE_PROXY_CLIENT_LIMITS_FILE" in refusal["message"]
        assert "`request`" in refusal["message"]
        assert made.gateway.worker_pids() == [old]
        assert ask(made, asked(), "alice").status == 429
        file.write_text('{"alice": {"requests_per_minute": 4, "models": ["claude-opus-5-5"]}}')
        made.gateway.process.send_signal(signal.SIGHUP)
        poll(lambda: old not in made.gateway.worker_pids() and made.gateway.worker_pids(), what="another worker")
        assert ask(made, asked(model="claude-opus-5"), "alice").status == 403
        got = ask(made, asked(), "alice")
        assert (got.status, got.headers["anthropic-ratelimit-requests-limit"]) == (200, "4")
        assert got.headers["anthropic-ratelimit-requests-remaining"] in ("0", "1")  # 3 of 4 were used before
        assert 429 in [ask(made, asked(), "alice").status for _ in range(2)]


BAD = {
    "unknown client": ('{"mallory": {"concurrency": 1}}', ["'mallory'", "CLAUDE_PROXY_CLIENT_KEYS"]),
    "unknown field": ('{"alice": {"rpm": 1}}', ["'alice'", "`rpm`"]),
    "wrong kind": ('{"alice": {"requests_per_minute": "ten"}}', ["'alice'", "requests_per_minute"]),
    "none at all": ('{"alice": {"concurrency": 0}}', ["'alice'", "concurrency"]),
    "not JSON": ("alice: 10", ["as JSON"]),
    "no object": ("[]", ["as JSON"]),
    "not there": (None, ["a file that exists"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_meant_stops_the_start_and_is_named(case: str, tmp_path: Path) -> None:
    text, parts = BAD[case]
    file = tmp_path / "limits.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError) as refusal:
        settings.load(
            {
                "ANTHROPIC_API_KEY": "k",
                "CLAUDE_PROXY_CLIENT_KEYS": client_keys("alice"),
                "CLAUDE_PROXY_CLIENT_LIMITS_FILE": str(file),
            }
        )
    for part in ("CLAUDE_PROXY_CLIENT_LIMITS_FILE", *parts):
        assert part in str(refusal.value)
