"""What a WSGI server would leave open: strangers, bodies that stall, the last spans."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from flask.testing import FlaskClient

from service import wsgi
from service.account.ledger import Ledger, day_at
from service.web.auth import hash_key
from tests.support import claude
from tests.support.otlp import OtlpSink
from tests.support.poll import poll
from tests.support.processes import WsgiGateway, clean_environ
from tests.support.scene import Scene
from tests.support.upstream import Upstream, json_answer
from tests.support.wire import Wire

IDLE = 1.5
KEY = "cpk-team-a-secret"
Open = Callable[..., FlaskClient]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """The application as a WSGI server makes it, with these settings; what it leaves for the exit is done at the end."""
    leave: list[tuple[Callable[[float], None], float]] = []
    monkeypatch.setattr(wsgi, "atexit", SimpleNamespace(register=lambda *what: leave.append(what)))
    with Upstream(json_answer(claude.MESSAGE)) as upstream:

        def made(**settings: str) -> FlaskClient:
            needed = {"ANTHROPIC_API_KEY": "sk-ant-key", "CLAUDE_PROXY_ANTHROPIC_BASE_URL": upstream.url}
            for name in os.environ.keys() - clean_environ({}).keys():
                monkeypatch.delenv(name)
            for name, value in (needed | settings).items():
                monkeypatch.setenv(name, value)
            return wsgi.application().test_client()

        yield made
        for stop, seconds in leave:
            stop(seconds)


def status(client: FlaskClient, path: str, address: str, key: str = "") -> int:
    """Of one request from that address."""
    method = "POST" if path == "/v1/messages" else "GET"
    answered = client.open(
        path,
        method=method,
        json=claude.ASKED if method == "POST" else None,
        headers={"x-api-key": key} if key else {},
        environ_overrides={"REMOTE_ADDR": address},
        buffered=True,
    )
    return answered.status_code


@pytest.mark.parametrize("address", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", ""])
def test_without_client_keys_only_this_machine_is_served(door: Open, address: str) -> None:
    client = door()
    assert [status(client, path, address) for path in ("/v1/messages", "/metrics", "/healthz")] == [403] * 3
    refused = client.post("/v1/messages", json=claude.ASKED, environ_overrides={"REMOTE_ADDR": address}, buffered=True)
    error = refused.get_json()["error"]
    assert error["type"] == "permission_error"
    assert "CLAUDE_PROXY_CLIENT_KEYS" in error["message"]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_served_without_client_keys(door: Open, address: str) -> None:
    client = door()
    assert [status(client, path, address) for path in ("/v1/messages", "/metrics", "/healthz")] == [200] * 3


def test_with_client_keys_other_machines_are_served_but_the_metrics_need_their_token(door: Open) -> None:
    client = door(CLAUDE_PROXY_CLIENT_KEYS=f"team-a:{hash_key(KEY)}")
    paths = ("/v1/messages", "/metrics", "/healthz")
    assert [status(client, path, "192.0.2.7", KEY) for path in paths] == [200, 403, 200]
    client = door(CLAUDE_PROXY_CLIENT_KEYS=f"team-a:{hash_key(KEY)}", CLAUDE_PROXY_METRICS_TOKEN="metrics-token-1")
    assert status(client, "/metrics", "192.0.2.7", "metrics-token-1") == 200


def settings(sink: OtlpSink, delay: str) -> dict[str, str]:
    """With these, spans go to `sink` that many milliseconds later."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_BSP_SCHEDULE_DELAY": delay}


def test_spans_that_wait_are_flushed_when_the_worker_ends() -> None:
    with OtlpSink() as sink, Upstream(json_answer(claude.MESSAGE)) as upstream:
        with WsgiGateway(upstream.url, **settings(sink, "60000")) as gateway:
            with gateway.client() as client:
                trace_id = client.post("/v1/messages", json=claude.ASKED).headers["x-trace-id"]
            assert sink.spans == []
            gateway.stop(signal.SIGTERM)
        sink.trace(trace_id, 3)


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_body_that_stops_coming_is_a_408_and_the_wait_is_the_clients(framing: str) -> None:
    piece = b'{"model": ' if framing.startswith("Content") else claude.chunk(b'{"model": ')
    with OtlpSink() as sink, Upstream(json_answer(claude.MESSAGE)) as upstream:
        idle = {"CLAUDE_PROXY_IDLE_TIMEOUT": str(IDLE)}
        with WsgiGateway(upstream.url, **settings(sink, "50"), **idle) as gateway:
            watch, began = Scene(gateway, upstream, sink).watch(), time.perf_counter()
            with Wire(gateway.port) as wire:
                wire.send(f"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode() + piece)
                head, body = wire.answer()
            assert IDLE <= time.perf_counter() - began < IDLE + 5
            assert (head.status, json.loads(body)["error"]["type"]) == (408, "invalid_request_error")
            told = watch.told(
                "client_invalid",
                error_type="client_invalid",
                status=408,
                attempt=None,
                rejected="invalid_request_error",
                chat=False,
            )
            assert told.line["client_wait_s"] >= IDLE * 0.9
            assert told.line["overhead_s"] < IDLE * 0.5


def test_a_budget_outlives_the_process(door: Open, tmp_path: Path) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text('{"team-a": {"budget_usd_per_day": 0.0001}}')
    given = {
        "CLAUDE_PROXY_LEDGER": str(tmp_path / "ledger"),
        "CLAUDE_PROXY_CLIENT_KEYS": f"team-a:{hash_key(KEY)}",
        "CLAUDE_PROXY_CLIENT_LIMITS_FILE": str(limits),
    }
    assert status(door(**given), "/v1/messages", "127.0.0.1", KEY) == 200
    ledger = Ledger(tmp_path / "ledger")
    poll(lambda: ledger.spends(day_at(time.time())).get("team-a"), what="the call in the ledger")
    ledger.close()
    assert status(door(**given), "/v1/messages", "127.0.0.1", KEY) == 429
