"""Real processes for tests: the gateway under its own gunicorn, and the simulator. Loopback only, stopped by process id."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from observability import catalog
from observability.exposition import PATIENCE
from tests.support.poll import poll

_DOWN = re.compile(rf'^{catalog.WORKER_UP.name}{{worker="\d+"}} 0$', re.MULTILINE)


def clean_environ(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without anything that the gateway would read, plus `extra`."""
    read = (
        "CLAUDE_",
        "ANTHROPIC_",
        "OTEL_",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    )
    return {k: v for k, v in os.environ.items() if not k.startswith(read)} | dict(extra)


def somebody_was_late(metrics: str, seconds: float) -> bool:
    """Whether `/metrics`, which took so long, was waiting for a worker in vain. One that is down at once is no matter of time."""
    return seconds >= PATIENCE and _DOWN.search(metrics) is not None


def held_port() -> socket.socket:
    """A loopback port on which nobody listens: while this socket is open the system gives it to nobody else, and who names
    it (and sets SO_REUSEADDR, as servers do) may listen there."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def port_of(held: socket.socket) -> int:
    """Its number."""
    return int(held.getsockname()[1])


@contextmanager
def nobody() -> Iterator[str]:
    """The URL of a provider that refuses connections."""
    with held_port() as held:
        yield f"http://127.0.0.1:{port_of(held)}"


def free_port() -> int:
    """A loopback port that nobody listens on now; somebody may, before you do."""
    with held_port() as held:
        return port_of(held)


class Process:
    """A child process whose output lines are collected."""

    def __init__(self, arguments: list[str], environ: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=clean_environ(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait(self, seconds: float = 30.0) -> int:
        """Its exit status; fails when it has not ended by then."""
        status = self.process.wait(seconds)
        self._reader.join(30)
        return status

    def stop(self, signal_number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Signal it, wait, return its exit status. What does not stop is killed with all its children."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.wait()
            raise

    @contextmanager
    def _ended_if_it_fails(self) -> Iterator[None]:
        """For `__enter__`, whose error nobody else cleans up after."""
        try:
            yield
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self._reader.join(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Simulator(Process):
    """`python -m service.simulator` on a free port."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(["-m", "service.simulator", "--port", "0", *arguments], {})

    def __enter__(self) -> Simulator:
        with self._ended_if_it_fails():
            line = poll(
                lambda: next((x for x in self.lines if "listening on" in x), None), what="its address", seconds=60
            )
        self.url = line.rpartition(" ")[2]
        return self

    def get(self, path: str) -> Any:
        """JSON of one of its `/_simulator/…` pages."""
        return httpx.get(self.url + path, timeout=30).raise_for_status().json()


class Gateway(Process):
    """`claude-proxy serve` on a free port, in front of `upstream`."""

    def __init__(self, upstream: str, **environ: str) -> None:
        self._held = held_port()
        self.port = port_of(self._held)
        self.url = f"http://127.0.0.1:{self.port}"
        defaults = {
            "CLAUDE_PROXY_BIND": f"127.0.0.1:{self.port}",
            "CLAUDE_PROXY_ANTHROPIC_BASE_URL": upstream,
            "ANTHROPIC_API_KEY": "sk-ant-provider-key",
            # Most tests speak of one attempt; those about retries say so.
            "CLAUDE_PROXY_MAX_RETRIES": "0",
            "CLAUDE_PROXY_LEDGER": "off",
            "CLAUDE_PROXY_PACING": "off",
            "PYTHONUNBUFFERED": "1",
        }
        merged = {key: value for key, value in (defaults | environ).items() if value != ""}
        super().__init__(self.arguments(), merged)

    def arguments(self) -> list[str]:
        """What Python is to run."""
        return ["-m", "service.cli", "serve", "--env-file", os.devnull]

    def __enter__(self) -> Gateway:
        with self._ended_if_it_fails():
            poll(self._ready, what="the gateway to be ready", seconds=60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._held.close()

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError("the gateway ended at start:\n" + "\n".join(self.lines))
        return httpx.get(self.url + "/readyz", timeout=10).status_code == 200

    def client(self, **options: Any) -> httpx.Client:
        """An httpx client for it."""
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def log(self) -> list[dict[str, Any]]:
        """Every JSON line so far."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def requests(self) -> list[dict[str, Any]]:
        """The `request` lines so far."""
        return [line for line in self.log() if line["event"] == "request"]

    def settled(self) -> int:
        """Request lines so far, once every request that the metrics count as ended has its line."""

        def lines() -> int | None:
            ended = sum(v for (name, _), v in self.samples().items() if name == "claude_proxy_requests_total")
            return len(self.requests()) if len(self.requests()) == ended else None

        return poll(lambda: (count,) if (count := lines()) is not None else None, what="a line of each request")[0]

    def wait_requests(self, count: int) -> list[dict[str, Any]]:
        """The first `count` request lines."""
        return poll(lambda: lines if len(lines := self.requests()) >= count else None, what=f"{count} request lines")

    def wait_log(self, match: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The first line that matches."""
        return poll(lambda: next((line for line in self.log() if match(line)), None), what=what)

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """`/metrics` as {(sample name, labels): value}, summed over workers; empty labels are left out."""
        found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(self.metrics()):
            for sample in family.samples:
                key = sample.name, frozenset((k, v) for k, v in sample.labels.items() if v and k != "worker")
                found[key] = found.get(key, 0.0) + sample.value
        return found

    def metrics(self, accept: str = "text/plain") -> str:
        """`/metrics`. One that a worker was too late for, as it may be on a busy machine, is not all of it: asked for again."""

        def punctual() -> str | None:
            began = time.monotonic()
            text = httpx.get(self.url + "/metrics", headers={"accept": accept}, timeout=30).raise_for_status().text
            return None if somebody_was_late(text, time.monotonic() - began) else text

        return poll(punctual, what="everybody's metrics")

    def sample(self, name: str, **labels: str) -> float:
        """One sample's value; 0.0 when the series does not exist."""
        return self.samples().get((name, frozenset(labels.items())), 0.0)

    def worker_pids(self) -> list[int]:
        """Process ids of the workers alive now."""
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        with open(path) as children:
            return [int(pid) for pid in children.read().split()]


class WsgiGateway(Gateway):
    """The same under gunicorn's threaded WSGI worker."""

    def arguments(self) -> list[str]:
        """As its documentation says."""
        bind = f"127.0.0.1:{self.port}"
        options = ["-k", "gthread", "--threads", "8", "--no-control-socket", "-b", bind]
        return ["-m", "gunicorn", *options, "service.wsgi:application()"]


@contextmanager
def pair(*simulator_arguments: str, **environ: str) -> Iterator[tuple[Gateway, Simulator]]:
    """A fast simulator with a gateway in front of it."""
    with Simulator("--fast", *simulator_arguments) as simulator, Gateway(simulator.url, **environ) as gateway:
        yield gateway, simulator
