"""A simulator served by a thread with a loop of its own, on a clock that never makes a test wait."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from service.simulator.app import create_app, serve
from service.simulator.config import Clock, Config

KEY = "sk-test"
HEADERS = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}


class JumpingClock:
    """Stands still until somebody sleeps, then jumps by as much."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Simulation:
    """A running simulator and a client for it."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.clock = clock
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        app = create_app(config, clock=clock)
        self._runner, port = asyncio.run_coroutine_threadsafe(serve(app, "127.0.0.1", 0), self._loop).result()
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, headers=HEADERS, timeout=30, verify=False)  # quicker to make
        self.stranger = httpx.Client(base_url=self.url, timeout=30, verify=False)  # sends no key of Claude's

    def close(self) -> None:
        self.client.close()
        self.stranger.close()
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, scenario: str = "", **fields: Any) -> httpx.Response:
        """Send a small message request."""
        headers = {"x-simulator-scenario": scenario} if scenario else {}
        return self.client.post("/v1/messages", json=body(**fields), headers=headers)

    def events(self, scenario: str = "", **fields: Any) -> list[dict[str, Any]]:
        """The data of all events of a streamed answer."""
        return parse_events(self.ask(scenario, stream=True, **fields).text)

    def connect(self, scenario: str, *, stream: bool = True) -> socket.socket:
        """A raw connection on which the request has been sent."""
        address = urlsplit(self.url)
        sock = socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=30)
        payload = msgspec.json.encode(body(stream=stream))
        lines = ["POST /v1/messages HTTP/1.1", "host: simulator", f"x-simulator-scenario: {scenario}"]
        lines += [f"{name}: {value}" for name, value in HEADERS.items()] + [f"content-length: {len(payload)}", "", ""]
        sock.sendall("\r\n".join(lines).encode() + payload)
        return sock

    def counts(self) -> dict[str, Any]:
        counts: dict[str, Any] = self.client.get("/_simulator/counts").json()
        return counts

    def last_call(self) -> dict[str, Any]:
        """The call that ended last; waits until none is in flight."""
        counts = until(lambda: counts if (counts := self.counts())["requests"]["in_flight"] == 0 else None)
        call: dict[str, Any] = counts["calls"][-1]
        return call


def body(**fields: Any) -> dict[str, Any]:
    """A small message request."""
    return {
        "model": "claude-sonnet-5-5",
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": "hello there"}],
        **fields,
    }


def parse_events(text: str) -> list[dict[str, Any]]:
    """The data of all server-sent events, whose names must be their types."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if lines:
            data = msgspec.json.decode(lines["data"])
            assert data["type"] == lines["event"]
            found.append(data)
    return found


def until(look: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `look` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
    return seen


@pytest.fixture
def start() -> Iterator[Callable[..., Simulation]]:
    """Starts simulators; each gets a jumping clock unless told otherwise."""
    running: list[Simulation] = []

    def begin(config: Config | None = None, clock: Clock | None = None) -> Simulation:
        running.append(Simulation(config or Config(), clock or JumpingClock()))
        return running[-1]

    yield begin
    for simulation in running:
        simulation.close()


@pytest.fixture
def sim(start: Callable[..., Simulation]) -> Simulation:
    """A simulator with the default settings."""
    return start()
