"""The same application without the bridge: Flask's test client, and gunicorn's gthread worker."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from observability.start import Telemetry
from service.app import create_gateway, start_telemetry
from service.settings import load
from service.web.flask_loop import LoopFlask, background
from tests.support import claude
from tests.support.otlp import OtlpSink
from tests.support.processes import WsgiGateway
from tests.support.scene import Scene
from tests.support.upstream import Seen, Upstream, answer
from tests.support.wire import Wire

STREAMED = claude.ASKED | {"stream": True}


def plays(connection: socket.socket, seen: Seen) -> None:
    """A stream or a message, as asked."""
    if json.loads(seen.body).get("stream"):
        claude.send_events(connection, [claude.STREAM])
        connection.sendall(claude.LAST_CHUNK)
    else:
        connection.sendall(answer("200 OK", claude.MESSAGE, "content-type: application/json"))


class InProcess:
    """The application in this process, and what its metrics say."""

    def __init__(self, upstream: Upstream) -> None:
        environ = {"CLAUDE_PROXY_ANTHROPIC_BASE_URL": upstream.url, "ANTHROPIC_API_KEY": "sk-ant-provider-key"}
        settings = load(environ)
        self.upstream = upstream
        self.telemetry: Telemetry = start_telemetry(settings)
        self.gateway = create_gateway(settings, self.telemetry)
        self.app: LoopFlask = self.gateway.app

    def ended(self) -> dict[str, int]:
        """Outcome -> requests."""
        samples = [s for f in self.telemetry.metrics.registry.collect() for s in f.samples]
        found: Counter[str] = Counter()
        for sample in samples:
            if sample.name == "claude_proxy_requests_total":
                found[sample.labels["outcome"]] += int(sample.value)
        return dict(found)

    def in_flight(self) -> float:
        """Requests begun and not ended."""
        samples = [s for f in self.telemetry.metrics.registry.collect() for s in f.samples]
        return sum(s.value for s in samples if s.name == "claude_proxy_in_flight_requests")


@pytest.fixture
def house() -> Iterator[InProcess]:
    with Upstream(plays) as upstream:
        made = InProcess(upstream)
        yield made
        background().run(made.gateway.client.aclose())
        made.telemetry.stop(1)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_flasks_test_client_gets_the_same_bytes_and_the_record_is_closed_once(house: InProcess, stream: bool) -> None:
    answered = house.app.test_client().post("/v1/messages", json=claude.ASKED | {"stream": stream}, buffered=True)
    assert (answered.status_code, answered.data) == (200, claude.STREAM if stream else claude.MESSAGE)
    assert house.ended() == {"ok": 1}
    assert house.in_flight() == 0


def test_generate_and_errors_work_under_flasks_test_client(house: InProcess) -> None:
    client = house.app.test_client()
    answered = client.post("/generate", json={"prompt": "Hi"}, buffered=True)
    assert answered.get_json()["content"] == [{"type": "text", "text": "Hello"}]
    several = client.post("/batch_generate", json={"prompts": ["a", "b", "c"]}, buffered=True).get_json()["results"]
    assert [result["content"][0]["text"] for result in several] == ["Hello"] * 3
    assert client.post("/v1/messages", data=b"{", buffered=True).status_code == 400
    assert client.get("/healthz", buffered=True).get_json() == {"status": "ok"}
    assert house.ended() == {"ok": 2, "client_invalid": 1}


def test_a_response_closed_before_its_end_is_an_abort(house: InProcess) -> None:
    def begins(connection: socket.socket, _seen: Seen) -> None:
        claude.send_events(connection, [claude.start()])
        connection.recv(1)

    house.upstream.script = begins
    answered = house.app.test_client().post("/v1/messages", json=STREAMED, buffered=False)
    answered.close()
    assert house.ended() == {"client_abort": 1}
    assert house.in_flight() == 0


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with (
        OtlpSink() as sink,
        Upstream(plays) as upstream,
        WsgiGateway(upstream.url, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, OTEL_BSP_SCHEDULE_DELAY="50") as gateway,
    ):
        yield Scene(gateway, upstream, sink)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_under_gthread_the_bytes_and_the_telemetry_are_the_same(stage: Scene, stream: bool) -> None:
    stage.plays(plays)
    watch = stage.watch()
    got = stage.ask(stream=stream)
    assert (got.status, got.body) == (200, claude.STREAM if stream else claude.MESSAGE)
    told = watch.told("ok")
    assert told.line["input_tokens"] == 40


def test_under_gthread_pieces_of_a_stream_are_handed_on_when_they_come(stage: Scene) -> None:
    handed = threading.Semaphore(0)
    pieces = [claude.start(), claude.BLOCK, claude.delta("a"), claude.last()]

    def step_by_step(connection: socket.socket, _seen: Seen) -> None:
        connection.sendall(claude.SSE_HEAD)
        for piece in pieces:
            connection.sendall(claude.chunk(piece))
            assert handed.acquire(timeout=30)
        connection.sendall(claude.LAST_CHUNK)

    stage.plays(step_by_step)
    with Wire(stage.gateway.port) as wire:
        wire.ask(STREAMED)
        assert wire.head().status == 200
        for piece in pieces:
            assert wire.piece() == piece
            handed.release()
        assert wire.piece() == b""


def test_under_gthread_a_client_that_left_is_noticed_at_the_next_pieces(stage: Scene) -> None:
    ended = threading.Event()

    def pings(connection: socket.socket, _seen: Seen) -> None:
        claude.send_events(connection, [claude.start()])
        try:
            while True:
                connection.sendall(claude.chunk(claude.event("ping")))
                connection.settimeout(0.02)
                try:
                    if connection.recv(1) == b"":
                        break
                except TimeoutError:
                    continue
        except OSError:
            pass
        ended.set()

    stage.plays(pings)
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.ask(STREAMED)
        wire.head()
        wire.piece()
        wire.reset()
    assert ended.wait(30)
    watch.told("client_abort", error_type="client_abort", attempt=("200", "aborted"))


def test_under_gthread_a_stream_that_dies_ends_with_an_error_event(stage: Scene) -> None:
    def dies(connection: socket.socket, _seen: Seen) -> None:
        claude.send_events(connection, [claude.start()])
        connection.shutdown(socket.SHUT_RDWR)

    stage.plays(dies)
    watch = stage.watch()
    assert [name for name, _ in stage.ask(stream=True).events()] == ["message_start", "error"]
    watch.told("cut_off", error_type="cut_off", attempt=("200", "died_mid_body"))


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_under_gthread_bodies_come_in_whole_in_either_framing(stage: Scene, framing: str) -> None:
    stage.plays(plays)
    stage.upstream.seen.clear()
    body = json.dumps(claude.ASKED | {"system": "x" * 200_000}).encode()
    with Wire(stage.gateway.port) as wire:
        if framing == "length":
            wire.request("POST", "/v1/messages", body, "Content-Type: application/json")
        else:
            wire.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            for index in range(0, len(body), 9_999):
                wire.send(claude.chunk(body[index : index + 9_999]))
            wire.send(claude.LAST_CHUNK)
        assert wire.answer()[1] == claude.MESSAGE
    assert stage.upstream.seen[0].body == body
