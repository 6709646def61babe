"""The life of workers: stopping, reloading and dying, with requests under way."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.support import claude
from tests.support.poll import poll
from tests.support.scene import Scene, scene
from tests.support.upstream import Seen, answer
from tests.support.wire import Wire

FIRST = claude.start() + claude.BLOCK + claude.delta("a")
REST = claude.last()
STREAMED = claude.ASKED | {"stream": True}


class Held:
    """Plain requests are answered at once; streams get `FIRST`, and `REST` once `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def __call__(self, connection: socket.socket, seen: Seen) -> None:
        if not json.loads(seen.body).get("stream"):
            connection.sendall(answer("200 OK", claude.MESSAGE, "content-type: application/json"))
            return
        claude.send_events(connection, [FIRST])
        self.release.wait(30)
        connection.sendall(claude.chunk(REST) + claude.LAST_CHUNK)


@contextmanager
def open_streams(stage: Scene, count: int) -> Iterator[list[Wire]]:
    """Streams of which the client has `FIRST`."""
    wires = [Wire(stage.gateway.port, timeout=20) for _ in range(count)]
    try:
        for wire in wires:
            wire.ask(STREAMED)
            assert wire.head().status == 200
            assert wire.piece() == FIRST
        yield wires
    finally:
        for wire in wires:
            wire.close()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def refuses(port: int) -> bool:
    """Whether nobody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def signalled(stage: Scene, number: int) -> float:
    """Signal the master; returns when that was."""
    stage.gateway.process.send_signal(number)
    return time.monotonic()


def assert_ended_in_band(stage: Scene, wire: Wire) -> tuple[dict[str, Any], float]:
    """The stream ends with an error event that says why, and log line and spans were flushed; the line, and when all was over."""
    events = claude.parse_events(FIRST + wire.body())
    name, error = events[-1]
    assert (name, error["error"]["type"]) == ("error", "overloaded_error")
    assert "shutting down" in error["error"]["message"]
    trace_id = error["error"]["details"]["trace_id"]
    assert stage.gateway.wait() == 0
    over = time.monotonic()
    (line,) = [line for line in stage.gateway.requests() if line["trace_id"] == trace_id]
    assert (line["outcome"], line["error_type"], line["status"]) == ("draining", "draining", 200)
    assert {s.name for s in stage.sink.trace(trace_id, 3)} == {"POST /v1/messages", "chat claude-opus-5-5", "POST"}
    assert not [line for line in stage.gateway.lines if "SIGKILL" in line or "Traceback" in line]
    return line, over


def test_sigterm_takes_no_new_connections_lets_streams_finish_and_exits_0() -> None:
    script = Held()
    with scene(script) as stage, open_streams(stage, 3) as wires, Wire(stage.gateway.port) as kept:
        kept.request("GET", "/readyz")
        assert kept.answer()[0].status == 200
        signalled(stage, signal.SIGTERM)
        poll(lambda: refuses(stage.gateway.port), what="new connections to be refused")
        kept.request("GET", "/readyz")
        head, body = kept.answer()
        assert (head.status, body) == (503, b'{"status":"draining"}')
        assert head.get("connection") == "close"
        script.release.set()
        for wire in wires:
            assert wire.body() == REST
        ended = time.monotonic()
        assert stage.gateway.wait() == 0
        assert time.monotonic() - ended < 10, "it does not wait for the end of its grace, which is 30 s"
        lines = [line["outcome"] for line in stage.gateway.requests()]
        assert lines == ["ok"] * 3
        stage.sink.wait(lambda span: span.kind == "SERVER", 3)


def test_a_stream_longer_than_the_grace_is_ended_in_band_before_the_master_would_kill() -> None:
    with scene(Held(), CLAUDE_PROXY_GRACEFUL_TIMEOUT="5") as stage, open_streams(stage, 1) as (wire,):
        began = signalled(stage, signal.SIGTERM)
        line, over = assert_ended_in_band(stage, wire)
        assert 1.5 < over - began < 5
        assert line["input_tokens"] == 40


def test_a_plain_request_longer_than_the_grace_gets_a_503_that_may_be_retried() -> None:
    waiting = threading.Event()

    def never(connection: socket.socket, _seen: Seen) -> None:
        waiting.set()
        connection.recv(1)

    with scene(never, CLAUDE_PROXY_GRACEFUL_TIMEOUT="4") as stage, Wire(stage.gateway.port) as wire:
        wire.ask(claude.ASKED)
        assert waiting.wait(30)
        signalled(stage, signal.SIGTERM)
        head, body = wire.answer()
        assert (head.status, head.get("retry-after"), head.get("x-should-retry")) == (503, "1", None)
        assert b"shutting down" in body
        assert stage.gateway.wait() == 0
        (line,) = stage.gateway.requests()
        assert (line["outcome"], line["status"]) == ("draining", 503)


def test_an_upload_longer_than_the_grace_gets_a_503_and_all_requests_end_in_time() -> None:
    with scene(Held(), CLAUDE_PROXY_GRACEFUL_TIMEOUT="4") as stage, Wire(stage.gateway.port) as wire:
        wire.send(b'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"model')
        poll(lambda: stage.gateway.sample("claude_proxy_in_flight_requests", http_route="/v1/messages"), what="begun")
        signalled(stage, signal.SIGTERM)
        assert wire.answer()[0].status == 503
        assert stage.gateway.wait() == 0
    assert [line["outcome"] for line in stage.gateway.requests()] == ["draining"]
    assert not [line for line in stage.gateway.lines if "did not end in time" in line]


def test_sigint_ends_streams_in_band_now_and_flushes() -> None:
    with scene(Held()) as stage, open_streams(stage, 1) as (wire,):
        began = signalled(stage, signal.SIGINT)
        _, over = assert_ended_in_band(stage, wire)
        assert over - began < 10, "now is not at the end of the grace, which is 30 s"


class Load(threading.Thread):
    """Short requests one after the other, over kept connections, until `stop`; counts what went wrong."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.done, self.wrong, self.stop = url, 0, [], threading.Event()

    wrong: list[str]

    def run(self) -> None:
        """One client with its own pool."""
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stop.is_set():
                try:
                    answered = client.post("/v1/messages", json=claude.ASKED)
                    if answered.content != claude.MESSAGE:
                        self.wrong.append(f"{answered.status_code} {answered.text[:200]}")
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                self.done += 1


def reload_under(stage: Scene, loads: list[Load]) -> None:
    """SIGHUP, and wait until a new worker is there and every load has gone on for a while."""
    known = set(stage.gateway.worker_pids())
    signalled(stage, signal.SIGHUP)
    poll(lambda: set(stage.gateway.worker_pids()) - known, what="a new worker")
    seen = [load.done for load in loads]
    poll(lambda: all(load.done > n + 50 for load, n in zip(loads, seen, strict=True)), what="more load")


def test_a_reload_under_load_cuts_nobody_and_brings_new_workers() -> None:
    script = Held()
    with scene(script, CLAUDE_PROXY_KEEPALIVE="2") as stage, open_streams(stage, 1) as (wire,):
        (old,) = stage.gateway.worker_pids()
        loads = [Load(stage.gateway.url) for _ in range(3)]
        for load in loads:
            load.start()
        poll(lambda: all(load.done > 10 for load in loads), what="load")
        reload_under(stage, loads)
        assert not gone(old)
        script.release.set()
        assert wire.body() == REST
        poll(lambda: gone(old), what="the old worker to end")
        for _ in range(5):  # one reload may be lucky
            reload_under(stage, loads)
            poll(lambda: len(stage.gateway.worker_pids()) == 1, what="one worker")
        for load in loads:
            load.stop.set()
            load.join(40)
            assert load.wrong == []


def test_sigterm_while_a_reloaded_worker_still_finishes_stops_within_one_grace() -> None:
    with scene(Held(), CLAUDE_PROXY_GRACEFUL_TIMEOUT="5") as stage, open_streams(stage, 1) as (wire,):
        (old,) = stage.gateway.worker_pids()
        signalled(stage, signal.SIGHUP)
        poll(lambda: set(stage.gateway.worker_pids()) - {old}, what="a new worker")
        began = signalled(stage, signal.SIGTERM)
        _, over = assert_ended_in_band(stage, wire)
        assert over - began < 5


def test_a_reload_reads_secrets_anew_and_with_bad_ones_keeps_the_old(tmp_path: Any) -> None:
    secret = tmp_path / "key"
    secret.write_text("sk-ant-first\n")
    with scene(Held(), ANTHROPIC_API_KEY="", ANTHROPIC_API_KEY_FILE=str(secret), CLAUDE_PROXY_KEEPALIVE="1") as stage:

        def key_used() -> str | None:
            stage.upstream.seen.clear()
            assert stage.ask(stream=False).status == 200
            return stage.upstream.seen[0].header("x-api-key")

        (old,) = stage.gateway.worker_pids()
        assert key_used() == "sk-ant-first"
        secret.write_text("two words")
        signalled(stage, signal.SIGHUP)
        refusal = stage.gateway.wait_log(lambda line: "reload refused" in line.get("message", ""), "the refusal")
        assert refusal["level"] == "error"
        assert "ANTHROPIC_API_KEY_FILE" in refusal["message"]
        assert "two words" not in refusal["message"]
        assert stage.gateway.worker_pids() == [old]
        assert key_used() == "sk-ant-first"
        secret.write_text("sk-ant-second\n")
        signalled(stage, signal.SIGHUP)
        poll(lambda: old not in stage.gateway.worker_pids() and stage.gateway.worker_pids(), what="another worker")
        assert key_used() == "sk-ant-second"


def test_a_killed_worker_is_replaced_and_the_next_request_works() -> None:
    with scene(Held()) as stage:
        (old,) = stage.gateway.worker_pids()
        os.kill(old, signal.SIGKILL)
        poll(lambda: [pid for pid in stage.gateway.worker_pids() if pid != old], what="another worker")
        assert stage.ask(stream=False).body == claude.MESSAGE
        assert stage.gateway.stop() == 0


def test_workers_whose_master_was_killed_stop_by_themselves() -> None:
    with scene(Held()) as stage:
        (worker,) = stage.gateway.worker_pids()
        signalled(stage, signal.SIGKILL)
        try:
            poll(lambda: gone(worker), what="the orphan to stop")
        finally:
            if not gone(worker):
                os.kill(worker, signal.SIGKILL)
