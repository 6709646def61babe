"""One stack for all tests: simulator, gateway with the environment that compose gives it, Jaeger, Prometheus, and traffic."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from service.web.auth import hash_key
from tests.stack.servers import Jaeger, Prometheus
from tests.stack.traffic import Client
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator
from tests.support.stack_files import environment

KEY = "cpk-stack-test"
TOKEN = "stack-test-token"


@dataclass
class Stack:
    """The running servers; `sent` counts the requests of both rounds by their expected outcome.

    `at` is when Prometheus had seen them all: queries are run for that moment, however long the tests take.
    """

    gateway: Gateway
    jaeger: Jaeger
    prometheus: Prometheus
    folder: Path
    sent: Counter[str] = field(default_factory=Counter)
    at: float = 0.0

    def metrics(self, accept: str = "text/plain") -> httpx.Response:
        """`/metrics` as Prometheus asks for it."""
        return httpx.get(self.gateway.url + "/metrics", headers={"authorization": f"Bearer {TOKEN}", "accept": accept})


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack after two rounds of traffic that Prometheus has seen apart, so that every rate has something to show."""
    folder = {name: tmp_path_factory.mktemp(name) for name in ("jaeger", "prometheus", "ledger")}
    shipped = environment(
        "gateway",
        {
            "CLAUDE_PROXY_CLIENT_KEYS": f"tester:{hash_key(KEY)}",
            "CLAUDE_PROXY_METRICS_TOKEN": TOKEN,
            "COMPOSE_PROFILES": "simulator",
        },
    )
    with Jaeger().serve(folder["jaeger"]) as jaeger, Simulator("--fast", "--unlimited") as simulator:
        here = {
            "CLAUDE_PROXY_BIND": "",
            "CLAUDE_PROXY_ANTHROPIC_BASE_URL": "",
            "CLAUDE_PROXY_LEDGER": str(folder["ledger"]),
            "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "CLAUDE_PROXY_FIRST_BYTE_TIMEOUT": "0.5",
            "CLAUDE_PROXY_IDLE_TIMEOUT": "0.5",
        }
        own = {name: value for name, value in (shipped | here).items() if value}
        with Gateway(simulator.url, **own) as gateway:
            target = gateway.url.removeprefix("http://")
            with Prometheus(target, TOKEN).serve(folder["prometheus"]) as prometheus:
                made = Stack(gateway, jaeger, prometheus, folder["prometheus"])
                with Client(gateway.url, KEY) as client, client.open_stream():
                    for _ in range(2):
                        made.sent += client.round()
                        _wait_for_scrape(made)
                    yield made


def _wait_for_scrape(stack: Stack) -> None:
    def counted() -> bool:
        stack.at = time.time()
        seen = stack.prometheus.by("outcome", "sum by (outcome) (claude_proxy_requests_total)", stack.at)
        assert seen == dict(stack.sent)
        return True

    poll(counted, what=f"{dict(stack.sent)} in Prometheus", seconds=15)
