"""One stack for all tests: gateways with the environment that compose gives them, simulators, Jaeger, Prometheus, traffic."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from service.settings import simulated
from service.web.auth import hash_key
from tests.stack.servers import Jaeger, Prometheus
from tests.stack.traffic import LIMITS, Client, policy_round
from tests.support.mix import CLIENT_KEYS, POLICY
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator
from tests.support.stack_files import environment

KEY = "cpk-stack-test"
TOKEN = "stack-test-token"


@dataclass
class Stack:
    """The running servers; `sent` counts the requests of both rounds to `gateway` by their expected outcome.

    `strict` is a gateway with every policy switched on and a provider with small limits; what it was sent is its own.
    `at` is when Prometheus had seen them all: queries are run for that moment, however long the tests take.
    """

    gateway: Gateway
    strict: Gateway
    jaeger: Jaeger
    prometheus: Prometheus
    folder: Path
    sent: Counter[str] = field(default_factory=Counter)
    by_policy: int = 0
    at: float = 0.0

    def at_gateway(self, expr: str) -> str:
        """`expr` of the plain gateway alone: its series are those with `{}`."""
        return expr.replace("{}", f'{{instance="127.0.0.1:{self.gateway.port}"}}')

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
    with (
        Jaeger().serve(folder["jaeger"]) as jaeger,
        Simulator("--fast", "--unlimited") as simulator,
        Simulator("--fast", "--rpm", "120", "--batch-seconds", "0.1") as limited,
    ):
        here = {
            "CLAUDE_PROXY_BIND": "",
            "CLAUDE_PROXY_ANTHROPIC_BASE_URL": "",
            "CLAUDE_PROXY_LEDGER": str(folder["ledger"] / "plain"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "CLAUDE_PROXY_FIRST_BYTE_TIMEOUT": "2",
            "CLAUDE_PROXY_IDLE_TIMEOUT": "2",
        }
        own = {name: value for name, value in (shipped | here).items() if value}
        strict_own = own | simulated(limited.url) | POLICY | _strict(folder["ledger"])
        with Gateway(simulator.url, **own) as gateway, Gateway(limited.url, **strict_own) as strict:
            targets = [f"127.0.0.1:{each.port}" for each in (gateway, strict)]
            with Prometheus(targets, TOKEN).serve(folder["prometheus"]) as prometheus:
                made = Stack(gateway, strict, jaeger, prometheus, folder["prometheus"])
                with Client(gateway.url, KEY) as client, client.open_stream():
                    for _ in range(2):
                        made.sent += client.round()
                        made.by_policy += policy_round(strict)
                        _wait_for_scrape(made)
                    _wait_for_rules(made)
                    yield made


def _strict(folder: Path) -> dict[str, str]:
    limits = folder / "limits.json"
    limits.write_text(json.dumps(LIMITS))
    return {
        "CLAUDE_PROXY_CLIENT_KEYS": CLIENT_KEYS,
        "CLAUDE_PROXY_CLIENT_LIMITS_FILE": str(limits),
        "CLAUDE_PROXY_LEDGER": str(folder / "strict"),
        "CLAUDE_PROXY_QUEUE_TIMEOUT": "2",
        "CLAUDE_PROXY_CACHE_TTL": "1",  # forgotten by the next round
        "CLAUDE_PROXY_FIRST_BYTE_TIMEOUT": "5",
    }


def _wait_for_scrape(stack: Stack) -> None:
    def counted() -> bool:
        stack.at = time.time()
        seen = stack.prometheus.by(
            "outcome", stack.at_gateway("sum by (outcome) (claude_proxy_requests_total{})"), stack.at
        )
        assert seen == dict(stack.sent)
        everything = stack.prometheus.values("sum(claude_proxy_requests_total)", stack.at)
        assert everything == [stack.sent.total() + stack.by_policy]
        # Each was scraped, and in time.
        assert stack.prometheus.values('up{job="claude-proxy"}', stack.at) == [1, 1]
        # Of batches the ledger tells, a moment later.
        assert stack.prometheus.values("count(claude_proxy_batch_saved_usd_total)", stack.at) == [1]
        return True

    poll(counted, what=f"{dict(stack.sent)} in Prometheus", seconds=60)


def _wait_for_rules(stack: Stack) -> None:
    def told() -> bool:
        stack.at = time.time()
        for expr in (
            "sum(rate(claude_proxy_batch_saved_usd_total[1m])) > 0",
            "client:claude_proxy_client_cost_usd:today > 0",
            'ALERTS{alertname="UnpricedModels", alertstate="firing"}',
            'ALERTS{alertname="QueueRefusing", alertstate="pending"}',
        ):
            assert stack.prometheus.values(expr, stack.at), expr
        return True

    poll(told, what="batches, spending and an alert in Prometheus", seconds=60)
