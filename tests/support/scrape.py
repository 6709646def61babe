"""`/metrics` as a scraper sees it: by worker, with exemplars, every scrape over a connection of its own."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from observability import catalog
from tests.support import claude
from tests.support.poll import poll
from tests.support.processes import Gateway, somebody_was_late
from tests.support.upstream import Upstream, json_answer

OPEN_METRICS = "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5"
REQUESTS = "claude_proxy_requests_total"

By = dict[str, float]
"""Figures by `worker` label."""


@dataclass
class Scrape:
    """One answer: sample name -> worker -> sum of its series, and which samples carry an exemplar."""

    text: str
    headers: dict[str, str]
    by_worker: dict[str, By] = field(default_factory=dict)
    exemplars: set[str] = field(default_factory=set)

    def of(self, name: str) -> By:
        """A sample's figures by worker."""
        return self.by_worker.get(name, {})

    @property
    def up(self) -> By:
        """`claude_proxy_worker_up` by worker."""
        return self.of(catalog.WORKER_UP.name)


def fetch(gateway: Gateway, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
    """One request over a connection of its own, so that it falls to any worker; the answer is read."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request(method, path, body, headers | {"connection": "close"})
        answer = connection.getresponse()
        answer.text = answer.read().decode()  # type: ignore[attr-defined]
        return answer
    finally:
        connection.close()


def scrape(gateway: Gateway, accept: str = "text/plain") -> Scrape:
    """By the strict parser when it is OpenMetrics."""
    answer = fetch(gateway, "GET", "/metrics", accept=accept)
    assert answer.status == 200
    found = Scrape(answer.text, {k.lower(): v for k, v in answer.getheaders()})  # type: ignore[attr-defined]
    open_metrics = found.headers["content-type"].startswith("application/openmetrics-text")
    for family in (parse_openmetrics if open_metrics else parse_classic)(found.text):
        for sample in family.samples:
            figures = found.by_worker.setdefault(sample.name, {})
            worker = sample.labels.get("worker", "")
            figures[worker] = figures.get(worker, 0.0) + sample.value
            if sample.exemplar is not None:
                found.exemplars.add(sample.name)
    return found


@contextmanager
def gateway_of(workers: int, upstream: Upstream | None = None, **environ: str) -> Iterator[Gateway]:
    """A gateway whose workers are all there, in front of `upstream` or of one that answers at once."""
    with (
        upstream or Upstream(json_answer(claude.MESSAGE)) as answering,
        Gateway(answering.url, CLAUDE_PROXY_WORKERS=str(workers), **environ) as gateway,
    ):
        all_up(gateway, workers)
        yield gateway


def whole(gateway: Gateway, accept: str = "text/plain") -> Scrape:
    """A scrape that no worker was too late for."""

    def punctual() -> Scrape | None:
        began = time.monotonic()
        found = scrape(gateway, accept)
        return None if somebody_was_late(found.text, time.monotonic() - began) else found

    return poll(punctual, what="everybody's metrics")


def all_up(gateway: Gateway, workers: int) -> Scrape:
    """Waits for exactly this many workers, in the lowest slots."""
    everybody = {str(slot): 1.0 for slot in range(workers)}
    return poll(lambda: found if (found := scrape(gateway)).up == everybody else None, what=f"{workers} workers up")


def ask(gateway: Gateway, count: int = 1) -> None:
    """So many good requests, each over a connection of its own."""
    body = json.dumps(claude.ASKED).encode()
    for _ in range(count):
        assert fetch(gateway, "POST", "/v1/messages", body, **{"content-type": "application/json"}).status == 200


class Load(threading.Thread):
    """Good requests without end, each over a connection of its own; counts those sent and those that failed."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(daemon=True)
        self.sent = self.failed = 0
        self._gateway, self._stop_now = gateway, threading.Event()

    def run(self) -> None:
        """Until it is left."""
        while not self._stop_now.is_set():
            self.sent += 1
            try:
                ask(self._gateway)
            except (OSError, http.client.HTTPException):
                self.failed += 1

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join(60)


class Watcher(threading.Thread):
    """Scrapes without end; remembers what came, how long each took, and what went wrong."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(daemon=True)
        self.seen: list[Scrape] = []
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self._gateway, self._stop_now = gateway, threading.Event()

    def run(self) -> None:
        """Until it is left."""
        while not self._stop_now.is_set():
            began = time.monotonic()
            try:
                self.seen.append(scrape(self._gateway))
            except Exception as error:  # noqa: BLE001 whatever it is, the test shows it
                self.failed.append(repr(error))
            self.seconds.append(time.monotonic() - began)

    def __enter__(self) -> Watcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join(60)

    def series(self, name: str, slot: str) -> list[float]:
        """A slot's figures of one sample in the order they were scraped; left out where there were none."""
        return [found.of(name)[slot] for found in self.seen if slot in found.of(name)]
