"""The application under a WSGI server: routes, errors in the provider's shape, the short way in, operators' pages."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder

from service.web.auth import hash_key
from tests.support import claude
from tests.support.upstream import Seen, answer, json_answer
from tests.web.conftest import Open, Stage


def _error(response: Any, source: str = "claude-proxy") -> dict[str, Any]:
    """The error of a response, after its shape has been checked."""
    body = response.get_json()
    assert body.keys() == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["error"].keys() == {"type", "message", "details"}
    details = body["error"]["details"]
    assert details.pop("source") == source
    assert details.pop("trace_id") == response.headers["x-trace-id"]
    assert response.content_type == "application/json"
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "field"),
    [
        ("GET", "/nowhere", 404, "not_found_error", "path"),
        ("POST", "/v1/unknown", 404, "not_found_error", "path"),
        ("GET", "/v1/messages", 405, "invalid_request_error", "method"),
        ("DELETE", "/generate", 405, "invalid_request_error", "method"),
        ("POST", "/v1/messages", 400, "invalid_request_error", "body"),
        ("POST", "/generate", 415, "invalid_request_error", "Content-Type"),
        ("POST", "/batch_generate", 415, "invalid_request_error", "Content-Type"),
    ],
)
def test_our_own_errors_have_the_providers_shape_and_name_the_field(
    stage: Stage, method: str, path: str, status: int, kind: str, field: str
) -> None:
    response = stage.client.open(path, method=method)
    error = _error(response)
    assert (response.status_code, error["type"], error["details"]) == (status, kind, {"field": field})
    assert response.headers["x-should-retry"] == "false"
    assert stage.upstream.seen == []


def test_a_405_says_what_is_allowed(stage: Stage) -> None:
    assert "POST" in stage.client.get("/v1/messages").headers["allow"]


def test_a_body_over_the_routes_limit_is_refused_by_its_length_alone(stage: Stage) -> None:
    length = str(32 * 1024 * 1024 + 1)  # and not a byte of it comes
    response = stage.client.post("/v1/messages", environ_overrides={"CONTENT_LENGTH": length})
    assert (response.status_code, _error(response)["type"]) == (413, "request_too_large")


def test_without_a_client_key_nothing_but_the_probes_answers(open_stage: Open) -> None:
    stage = open_stage(CLAUDE_PROXY_CLIENT_KEYS=f"alice:{hash_key('cpk-alice')}")
    for response in (stage.client.get("/v1/models"), stage.post("/generate", {"prompt": "x"}), stage.client.get("/x")):
        assert (response.status_code, _error(response)["type"]) == (401, "authentication_error")
    assert stage.client.get("/healthz").status_code == stage.client.get("/readyz").status_code == 200
    assert stage.post("/generate", {"prompt": "x"}, x_api_key="cpk-alice").status_code == 200
    assert [seen.header("x-api-key") for seen in stage.upstream.seen] == ["sk-ant-provider"]


def test_a_message_passes_through_untouched_both_ways(stage: Stage) -> None:
    body = b'{"model":"claude-opus-5-5",  "max_tokens":1, "new":[1.50]}'
    response = stage.client.post("/anthropic/v1/messages?beta=true", data=body, headers={"anthropic-beta": "a,b"})
    assert (response.status_code, response.data) == (200, claude.MESSAGE)
    (seen,) = stage.upstream.seen
    assert (seen.line, seen.body) == ("POST /v1/messages?beta=true HTTP/1.1", body)
    assert seen.header("anthropic-beta") == "a,b"
    (line,) = stage.told.lines()
    assert (line["route"], line["outcome"], line["input_tokens"]) == ("/anthropic/v1/messages", "ok", 40)


def test_a_stream_comes_through_whole_and_is_told_as_one(stage: Stage) -> None:
    def script(connection: socket.socket, seen: Seen) -> None:
        claude.send_events(connection, [claude.STREAM[i : i + 50] for i in range(0, len(claude.STREAM), 50)])
        connection.sendall(claude.LAST_CHUNK)

    stage.upstream.script = script
    response = stage.post("/v1/messages", claude.ASKED | {"stream": True})
    assert response.data == claude.STREAM
    (line,) = stage.told.lines()
    assert (line["outcome"], line["stream"], line["output_tokens"], line["chunks"]) == ("ok", True, 7, 2)


def test_a_client_that_leaves_early_leaves_no_connection_open(stage: Stage) -> None:
    stage.upstream.script = lambda connection, seen: claude.send_events(connection, [claude.start()])
    response = stage.client.post("/v1/messages", json=claude.ASKED | {"stream": True}, buffered=False)
    response.close()
    assert stage.upstream.closed.acquire(timeout=30)
    (line,) = stage.told.lines()
    assert (line["outcome"], line["attempts"]) == ("client_abort", 1)


def test_an_answer_that_nobody_begins_to_read_ends_its_call_and_closes_its_connection(stage: Stage) -> None:
    stage.upstream.script = lambda connection, seen: claude.send_events(connection, [claude.start()])
    environ = EnvironBuilder(path="/v1/messages", method="POST", json=claude.ASKED | {"stream": True}).get_environ()
    body: Any = stage.client.application.wsgi_app(environ, lambda *_: lambda _data: None)
    body.close()
    assert stage.upstream.closed.acquire(timeout=30)
    assert [(line["outcome"], line["attempts"]) for line in stage.told.lines()] == [("client_abort", 1)]


def test_generate_answers_with_the_text_the_usage_and_the_trace(stage: Stage) -> None:
    response = stage.post("/generate", {"prompt": "Hello", "system": "Be brief", "max_tokens": 9})
    assert response.get_json() == {
        "id": "msg_scripted",
        "provider": "anthropic",
        "model": "claude-opus-5-5",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 40, "output_tokens": 7, "cache_read_tokens": 5, "cache_write_tokens": 10},
        "cost": {"usd": 0.000291, "certainty": "exact"},
        "trace_id": response.headers["x-trace-id"],
    }
    (seen,) = stage.upstream.seen
    assert json.loads(seen.body) == {
        "model": "claude-opus-5-5",
        "max_tokens": 9,
        "system": "Be brief",
        "messages": [{"role": "user", "content": "Hello"}],
    }
    assert (seen.header("anthropic-version"), seen.header("x-api-key")) == ("2023-06-01", "sk-ant-provider")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/generate", {}, "prompt"),
        ("/generate", {"prompt": ""}, "prompt"),
        ("/generate", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("/generate", {"prompt": "x", "model": "two words"}, "model"),
        ("/generate", {"prompt": "x", "temperature": 1}, "temperature"),
        ("/generate", {"prompt": "x", "provider": "other"}, "provider"),
        ("/batch_generate", {"prompts": []}, "prompts"),
        ("/batch_generate", {"prompts": ["x"] * 4}, "prompts"),
        ("/batch_generate", {"prompt": "x"}, "prompt"),
    ],
)
def test_a_wrong_request_names_its_field_and_calls_nobody(
    open_stage: Open, path: str, body: dict[str, Any], field: str
) -> None:
    stage = open_stage(CLAUDE_PROXY_BATCH_MAX_PROMPTS="3")
    response = stage.post(path, body)
    error = _error(response)
    assert (response.status_code, error["details"], error["message"].split(":")[0]) == (400, {"field": field}, field)
    assert stage.upstream.seen == []


def test_the_providers_error_is_shown_with_its_status_type_and_advice(stage: Stage) -> None:
    body = claude.error("rate_limit_error", "slow down")
    stage.upstream.script = lambda c, s: c.sendall(
        answer("429 Too Many Requests", body, "content-type: application/json", "retry-after: 7")
    )
    response = stage.post("/generate", {"prompt": "x"})
    error = _error(response, source="provider")
    assert (response.status_code, error["type"], error["message"]) == (429, "rate_limit_error", "slow down")
    assert response.headers["retry-after"] == "7"


def _echo(connection: socket.socket, seen: Seen) -> None:
    prompt = json.loads(seen.body)["messages"][0]["content"]
    if prompt == "fail":
        json_answer(claude.error("overloaded_error", "busy"), "529 Overloaded")(connection, seen)
        return
    message = json.loads(claude.MESSAGE) | {"content": [{"type": "text", "text": prompt}]}
    json_answer(json.dumps(message).encode())(connection, seen)


def test_a_batch_is_answered_in_order_with_an_error_in_the_place_of_what_failed(stage: Stage) -> None:
    stage.upstream.script = _echo
    response = stage.post("/batch_generate", {"prompts": ["one", "fail", "three"]})
    body = response.get_json()
    one, failed, three = body["results"]
    assert [r["content"][0]["text"] for r in (one, three)] == ["one", "three"]
    assert (failed.keys(), failed["error"]["type"], failed["error"]["message"]) == (
        {"error"},
        "overloaded_error",
        "busy",
    )
    assert (response.status_code, body["trace_id"]) == (200, response.headers["x-trace-id"])
    *calls, whole = stage.told.lines()
    assert sorted(line["outcome"] for line in calls) == ["ok", "ok", "upstream_overloaded"]
    assert (whole["event"], whole["route"]) == ("request", "/batch_generate")


def test_a_batch_has_no_more_calls_under_way_than_allowed(open_stage: Open) -> None:
    stage = open_stage(CLAUDE_PROXY_BATCH_CONCURRENCY="3")
    arrivals, go_on, fourth_came = threading.Semaphore(0), threading.Event(), []
    numbers = itertools.count(1)

    def script(connection: socket.socket, seen: Seen) -> None:
        number = next(numbers)
        if number == 3:
            fourth_came.append(arrivals.acquire(timeout=0.2))
            go_on.set()
        elif number > 3:
            arrivals.release()
        go_on.wait(30)
        _echo(connection, seen)

    stage.upstream.script = script
    prompts = [str(number) for number in range(9)]
    results = stage.post("/batch_generate", {"prompts": prompts}).get_json()["results"]
    assert [result["content"][0]["text"] for result in results] == prompts
    assert fourth_came == [False]


def test_the_probes_and_the_metrics_answer_and_are_no_requests(stage: Stage) -> None:
    assert stage.client.get("/healthz").get_json() == {"status": "ok"}
    assert stage.client.get("/readyz").get_json() == {"status": "ready"}
    stage.client.application.draining = True  # type: ignore[attr-defined]
    draining = stage.client.get("/readyz")
    assert (draining.status_code, draining.get_json()) == (503, {"status": "draining"})
    metrics = stage.client.get("/metrics?name=x")
    assert metrics.status_code == 200
    assert "# TYPE claude_proxy_build_info gauge" in metrics.text
    assert "claude_proxy_requests_total{" not in metrics.text
    assert stage.told.spans == {}
    assert stage.told.lines() == []


def test_the_metrics_token_opens_the_metrics(open_stage: Open) -> None:
    stage = open_stage(CLAUDE_PROXY_METRICS_TOKEN="t0ken")
    assert stage.client.get("/metrics").status_code == 403
    assert stage.client.get("/metrics", headers={"authorization": "Bearer t0ken"}).status_code == 200


def test_a_bug_of_ours_is_a_500_that_says_nothing_of_its_cause(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.web import ask

    def broken(*_: object) -> None:
        raise RuntimeError("s3cret")

    monkeypatch.setattr(ask, "decode", broken)
    response = stage.post("/generate", {"prompt": "x"})
    assert (response.status_code, _error(response)["type"]) == (500, "api_error")
    assert "s3cret" not in response.text
    told = {line["event"]: line for line in stage.told.lines()}
    assert "s3cret" in told["log"]["exception"]
    assert (told["request"]["outcome"], told["request"]["status"]) == ("internal_error", 500)


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "evil.example:8000"}, {"Origin": "http://evil.example"}, {"Origin": "null"}],
)
def test_without_client_keys_a_web_page_may_not_use_this_machines_gateway(
    stage: Stage, headers: dict[str, str]
) -> None:
    response = stage.client.post("/v1/messages", json=claude.ASKED, headers=headers)
    assert (response.status_code, _error(response)["type"]) == (403, "permission_error")
    assert stage.upstream.seen == []


def test_without_client_keys_this_machine_comes_in_by_any_of_its_names(stage: Stage) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert stage.client.post("/v1/messages", json=claude.ASKED, headers=headers).status_code == 200


def test_a_fan_out_whose_calls_all_failed_is_no_success(stage: Stage) -> None:
    stage.upstream.script = lambda c, s: c.sendall(answer("529 Overloaded", claude.error("overloaded_error")))
    assert stage.post("/batch_generate", {"prompts": ["a", "b"]}).status_code == 200
    outcomes = [line["outcome"] for line in stage.told.lines() if line["event"] == "request"]
    assert outcomes == ["upstream_overloaded"]


def test_a_bug_inside_a_call_is_ours_and_not_the_clients(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.upstream.transport.ssl.create_default_context", _bug)
    assert stage.post("/v1/messages", claude.ASKED).status_code == 500
    lines = [line for line in stage.told.lines() if line["event"] == "request"]
    assert [(line["outcome"], line["status"]) for line in lines] == [("internal_error", 500)]


def _bug(**_options: Any) -> None:
    raise RuntimeError("a bug")


def test_a_streams_record_is_closed_with_its_last_word_however_long_the_provider_holds_on(stage: Stage) -> None:
    stage.upstream.script = lambda connection, seen: claude.send_events(connection, [claude.STREAM])  # and no end
    response = stage.client.post("/v1/messages", json=claude.ASKED | {"stream": True}, buffered=False)
    assert b"".join(itertools.islice(response.iter_encoded(), 1)) == claude.STREAM
    ended = stage.told.sample("claude_proxy_requests_total")
    assert len(ended) == 1
    assert 'outcome="ok"' in ended[0]
    response.close()


def test_the_providers_own_server_timing_stands_beside_ours(stage: Stage) -> None:
    theirs = "server-timing: theirs;dur=1"
    stage.upstream.script = lambda c, s: c.sendall(
        answer("200 OK", claude.MESSAGE, "content-type: application/json", theirs)
    )
    first, ours = stage.post("/v1/messages", claude.ASKED).headers.getlist("server-timing")
    assert first == "theirs;dur=1"
    assert ours.startswith("upstream;dur=")
