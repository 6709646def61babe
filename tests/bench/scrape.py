"""What one scrape costs: workers with many series each, one of them asked for all. Also the worker process itself (`-m`)."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Histogram

from observability import catalog
from observability.exposition import OPEN_METRICS, Exposition, Place
from observability.metrics import Metrics, register_process
from service.app import ROUTES
from service.upstream.anthropic import MODELS
from tests.bench.machine import Cores
from tests.bench.processes import Child

WORKERS, SERIES, ROUNDS = 4, 2000, 20
STOCK = 16
"""Routes in prometheus-flask-exporter's histogram: made by the library in one piece."""


@dataclass(frozen=True, slots=True)
class Scraped:
    """One scrape: CPU of all workers together, until the answer is there, the longest turn on any loop, its size."""

    cpu_ms: float
    wall_ms: float
    longest_ms: float
    kilobytes: float
    lines: int


def measure(cores: Cores, rounds: int = ROUNDS) -> list[Scraped]:
    """Scrapes one after the other, the workers asked in turn."""
    token = secrets.token_hex(8)
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(cores, slot, token)) for slot in range(WORKERS)]
        for worker in workers:
            worker.ask("ready")
        for worker in workers:  # the first of each pays for what is made once
            worker.ask("scrape")
        return [_one(workers, workers[number % WORKERS]) for number in range(rounds)]


def _one(workers: list[_Worker], asked: _Worker) -> Scraped:
    before = [worker.ask("spent") for worker in workers]
    answer = asked.ask("scrape")
    after = [worker.ask("spent") for worker in workers]
    cpu = sum(late["cpu"] - early["cpu"] for early, late in zip(before, after, strict=True))
    longest = max(late["longest"] for late in after)
    return Scraped(cpu * 1e3, answer["seconds"] * 1e3, longest * 1e3, answer["bytes"] / 1024, answer["lines"])


class _Worker(Child):
    """One worker process; answers a line with a line."""

    def __init__(self, cores: Cores, slot: int, token: str) -> None:
        super().__init__(["-m", "tests.bench.scrape", str(slot), token], cores, errors=None)

    def __enter__(self) -> _Worker:
        return self

    def ask(self, command: str) -> dict[str, Any]:
        """Its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def filled() -> Metrics:
    """Metrics with `SERIES` series as a busy gateway has them, exemplars included."""
    metrics = Metrics(CollectorRegistry(), routes=ROUTES, models=MODELS)
    register_process(metrics.registry)
    labels, rules = ("method", "url_rule", "status"), sorted(ROUTES)[:STOCK]
    stock = Histogram(
        "flask_http_request_duration_seconds", "As the stock exporter's.", labels, registry=metrics.registry
    )
    for rule in rules:
        stock.labels("POST", rule, "200").observe(0.1)
    ids = {"trace_id": secrets.token_hex(16), "span_id": secrets.token_hex(8)}
    models, routes, outcomes = sorted(MODELS), sorted(ROUTES), [outcome.value for outcome in catalog.Outcome]
    for model, (route, outcome) in zip(models * 40, product(routes, outcomes), strict=False):
        call = ("chat", "anthropic", model)
        metrics.add(catalog.REQUESTS, (route, "anthropic", model, outcome), 1, ids)
        metrics.add(catalog.OUTPUT_TOKENS, call, 321)
        for number in range(12):
            seconds = 0.01 * 2.3**number
            metrics.observe(catalog.REQUEST_DURATION, seconds, (route, "true", outcome), ids)
            metrics.observe(catalog.INFERENCE_DURATION, seconds, (*call, ""), ids)
            metrics.observe(catalog.CHUNK_TIME, seconds, call)
        if sum(1 for family in metrics.registry.collect() for _ in family.samples) >= SERIES:
            break
    return metrics


class _Turns:
    """The longest turn, in CPU time, that anything had on the loop since it was last asked."""

    def __init__(self) -> None:
        self.longest = 0.0
        original = asyncio.Handle._run

        def run(handle: asyncio.Handle) -> None:
            began = time.thread_time()  # not the clock's: the workers of this measure share one core
            original(handle)
            self.longest = max(self.longest, time.thread_time() - began)

        asyncio.Handle._run = run  # type: ignore[method-assign, assignment]

    def take(self) -> float:
        """Seconds."""
        longest, self.longest = self.longest, 0.0
        return longest


async def _serve(slot: int, token: str) -> None:
    turns, loop = _Turns(), asyncio.get_running_loop()
    exposition = Exposition(filled())
    await exposition.start(Place(slot, token, lambda: range(WORKERS)))
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while command := (await commands.readline()).decode().strip():
        answer: dict[str, Any] = {}
        if command == "scrape":
            began = time.perf_counter()
            text, _ = await exposition.text(OPEN_METRICS)
            answer = {"seconds": time.perf_counter() - began, "bytes": len(text), "lines": text.count(b"\n")}
        elif command == "spent":
            answer = {"cpu": time.process_time(), "longest": turns.take()}
        print(json.dumps(answer), flush=True)
    await exposition.stop()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2]))
