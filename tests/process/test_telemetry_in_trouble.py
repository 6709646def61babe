"""Telemetry that cannot get rid of what it has: no request notices, losses are counted, it recovers, it stops in time."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from observability.export import BATCH
from tests.support.claude import ASKED
from tests.support.otlp import OtlpSink
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator, held_port, port_of

SPANS = 3
"""Of each request of the mix: the server's, the call's, the attempt's."""
MIX: tuple[tuple[str, bool], ...] = (
    ("", False), ("", True), ("fault=overloaded", False), ("", False), ("fault=rate_limit_requests", False),
    ("fault=cut;after=2", True), ("", True), ("fault=error_after;after=2", True), ("", False), ("", False),
)  # fmt: skip
"""Scenario and stream of each request of a round."""
OUTCOMES = Counter(ok=6, upstream_overloaded=2, upstream_429=1, cut_off=1)
VERSION = {"anthropic-version": "2023-06-01"}
Record = Callable[[str, object], None]


class Backend:
    """A tracing backend on one port that can fall into trouble and come out of it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._stack = ExitStack()
        self._sinks: list[OtlpSink] = []
        self.up()

    @property
    def spans(self) -> int:
        """Spans taken so far, by all that stood on this port."""
        return sum(len(sink.spans) for sink in self._sinks)

    @property
    def last_taken(self) -> float:
        """When spans came last (Unix time)."""
        return self._sinks[-1].last_taken

    def up(self) -> None:
        """A new one takes the port."""
        self._sinks.append(self._stack.enter_context(OtlpSink(self._port)))

    def falls(self, trouble: str) -> None:
        """From now on it is in this trouble."""
        sink = self._sinks[-1]
        match trouble:
            case "gone":
                self._stack.close()
            case "hanging":
                sink.free.clear()
            case "garbage":
                sink.garbage = b"\x00\xff no HTTP \r\n\r\n" * 100
            case status:
                sink.status = int(status)

    def recovers(self) -> None:
        """It is well again, on the same port."""
        self._stack.close()
        self.up()

    def close(self) -> None:
        """Leave."""
        self._stack.close()


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator("--fast", "--unlimited") as made:
        yield made


@pytest.fixture
def backend() -> Iterator[Backend]:
    with held_port() as held:  # also while nobody listens there
        made = Backend(port_of(held))
        yield made
        made.close()


def rounds(gateway: Gateway, count: int) -> tuple[Counter[str], list[float]]:
    """Outcomes of `count` rounds of the mix as the log tells them, and seconds of each request as the client saw them."""
    before, seconds = gateway.settled(), []
    with gateway.client() as client:
        for _ in range(count):
            for scenario, stream in MIX:
                headers = VERSION | {"x-simulator-scenario": scenario}
                began = time.perf_counter()
                client.post("/v1/messages", json=ASKED | {"stream": stream}, headers=headers)
                seconds.append(time.perf_counter() - began)
    lines = gateway.wait_requests(before + count * len(MIX))[before:]
    return Counter(line["outcome"] for line in lines), seconds


def told(seconds: list[float]) -> str:
    """A distribution in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return (
        f"p50 {cuts[49] * 1e3:.1f}, p90 {cuts[89] * 1e3:.1f}, p99 {cuts[98] * 1e3:.1f}, max {max(seconds) * 1e3:.1f} ms"
    )


def lost(gateway: Gateway, reason: str = "", signal: str = "spans") -> float:
    """What the dropped counter says, for one reason or all."""
    return sum(
        value
        for (name, labels), value in gateway.samples().items()
        if name == "claude_proxy_telemetry_dropped_total"
        and ("signal", signal) in labels
        and (not reason or ("reason", reason) in labels)
    )


def succeeded(gateway: Gateway) -> float:
    """When spans last left the process; 0 for never."""
    return gateway.sample("claude_proxy_telemetry_last_success_timestamp_seconds", signal="spans")


def options(backend: Backend) -> dict[str, str]:
    """Exports at once, and gives up after some seconds: the test has not got ten."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": backend.url,
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "4",
        "CLAUDE_PROXY_TRACES_PER_SECOND": "10000",  # what the head does not take is no loss
    }


@pytest.mark.parametrize("trouble", ["gone", "hanging", "garbage", "400", "500", "503"])
def test_a_tracing_backend_in_trouble_changes_no_outcome_loses_only_what_is_counted_and_is_used_again_when_well(
    simulator: Simulator, backend: Backend, trouble: str, record_property: Record
) -> None:
    with Gateway(simulator.url, **options(backend)) as gateway:
        outcomes, well = rounds(gateway, 4)
        assert outcomes == Counter({name: 4 * n for name, n in OUTCOMES.items()})
        poll(lambda: backend.spans == 40 * SPANS, what="every span while all is well")
        # Taken is not yet answered: a backend that falls in between has the spans, and the gateway must call them lost.
        poll(lambda: succeeded(gateway) >= backend.last_taken, what="the last export to be answered")
        assert lost(gateway) == 0
        before = succeeded(gateway)
        assert abs(before - time.time()) < 30

        backend.falls(trouble)
        outcomes, ill = rounds(gateway, 4)
        assert outcomes == Counter({name: 4 * n for name, n in OUTCOMES.items()})
        poll(lambda: lost(gateway, "export_failed"), what="losses to be counted")
        assert succeeded(gateway) == before
        record_property("latency", f"{trouble}: well {told(well)}; in trouble {told(ill)}")

        workers = gateway.worker_pids()
        backend.recovers()
        outcomes, _ = rounds(gateway, 1)
        assert outcomes == OUTCOMES
        poll(lambda: backend.spans + lost(gateway) == 90 * SPANS, what="every span to be taken or counted")
        poll(lambda: succeeded(gateway) > before, what="the last success to move on")
        assert lost(gateway) == lost(gateway, "export_failed") <= 40 * SPANS
        assert backend.spans >= 50 * SPANS
        assert gateway.worker_pids() == workers
        assert gateway.stop() == 0


def test_a_backend_that_never_answers_costs_memory_only_to_the_bound_and_the_rest_is_counted_trace_by_trace(
    simulator: Simulator, backend: Backend, record_property: Record
) -> None:
    backend.falls("hanging")
    bound = 256
    hanging = options(backend) | {"OTEL_EXPORTER_OTLP_TIMEOUT": "10", "OTEL_BSP_MAX_QUEUE_SIZE": str(bound)}
    with Gateway(simulator.url, **hanging) as gateway:
        outcomes, seconds = rounds(gateway, 25)
        assert outcomes == Counter({name: 25 * n for name, n in OUTCOMES.items()})
        full = lost(gateway, "queue_full")
        waiting = 250 * SPANS - lost(gateway)
        assert 0 <= waiting <= bound + BATCH
        assert (full > 0, full % SPANS) == (True, 0)
        record_property("latency", f"hanging, queue full: {told(seconds)}")
        began = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - began < 20


def test_without_a_backend_configured_the_outcomes_are_the_same(simulator: Simulator, record_property: Record) -> None:
    with Gateway(simulator.url) as gateway:
        outcomes, seconds = rounds(gateway, 25)
        assert outcomes == Counter({name: 25 * n for name, n in OUTCOMES.items()})
        record_property("latency", f"no backend: {told(seconds)}")
        assert (lost(gateway), succeeded(gateway)) == (0, 0)
        assert gateway.stop() == 0


def test_a_number_that_cannot_be_exported_costs_no_span_and_no_words_in_the_log(
    simulator: Simulator, backend: Backend
) -> None:
    with Gateway(simulator.url, **options(backend) | {"OTEL_BSP_SCHEDULE_DELAY": "60000"}) as gateway:
        with gateway.client() as client:
            for tokens in (64, 10**30, 64):
                client.post("/v1/messages", json=ASKED | {"max_tokens": tokens}, headers=VERSION)
        gateway.wait_requests(3)
        assert gateway.stop() == 0
        assert [line for line in gateway.log() if line["level"] == "error"] == []
    assert backend.spans == 3 * SPANS


STDOUT = """
import fcntl, os, sys
from observability import logs
from service.cli import main
reading, writing = os.pipe()
os.write(writing, b"x" * fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096))
if sys.argv[1] == "nonblocking":
    os.set_blocking(writing, False)
os.dup2(writing, 1)
os.close(writing)
if sys.argv[1] == "broken":
    os.close(reading)
elif sys.argv[1] == "closed":
    os.close(1)
logs.LineWriter.__init__.__defaults__ = (20,)
logs.PATIENCE = 0.05
sys.exit(main(["serve", "--env-file", os.devnull]))
"""
"""The gateway with a stdout that nobody reads, and room for twenty lines."""


class Mute(Gateway):
    """A gateway whose stdout is in this trouble."""

    trouble = ""

    def arguments(self) -> list[str]:
        """What Python is to run."""
        return ["-c", STDOUT, self.trouble]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("stalled", "queue_full"), ("nonblocking", "queue_full"), ("broken", "write_failed"), ("closed", "")],
)
def test_a_stdout_that_takes_nothing_holds_up_no_request_and_no_stop_and_its_losses_are_counted(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, trouble: str, reason: str
) -> None:
    monkeypatch.setattr(Mute, "trouble", trouble)
    with Mute(simulator.url) as gateway, gateway.client() as client:
        for _ in range(100):
            assert client.post("/v1/messages", json=ASKED, headers=VERSION).status_code == 200
        assert gateway.sample("claude_proxy_requests_total", **_ok()) == 100
        if reason:
            poll(lambda: lost(gateway, reason, "logs") >= 50, what="lost lines to be counted")
            assert lost(gateway, "", "logs") == lost(gateway, reason, "logs")
        else:
            (worker,) = gateway.worker_pids()
            assert os.readlink(f"/proc/{worker}/fd/1") == os.devnull
        began = time.monotonic()
        assert gateway.stop(seconds=20) == 0
        assert time.monotonic() - began < 15


def _ok() -> dict[str, str]:
    who = {"gen_ai_provider_name": "anthropic", "gen_ai_request_model": ASKED["model"]}
    return {"http_route": "/v1/messages", "outcome": "ok", **who}
