"""The load generator: a process of its own, so that it shares no interpreter with what it measures.

Reads one JSON command per line from stdin, runs it, writes one JSON line of figures. Times are in seconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import re
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import cast

from tests.bench import helper
from tests.bench.framing import Framer
from tests.bench.stats import percentile

STAMP = re.compile(rb"@(\d{18})")
PROMPT_BYTES = 600
_SDK_HEADERS = (
    "accept: application/json",
    "accept-encoding: gzip, deflate",
    "connection: keep-alive",
    "user-agent: Anthropic/Python 2.12.0",
    "x-stainless-lang: python",
    "x-stainless-package-version: 2.12.0",
    "x-stainless-os: Linux",
    "x-stainless-arch: x64",
    "x-stainless-runtime: CPython",
    "x-stainless-runtime-version: 3.11.7",
    "x-stainless-async: false",
    "x-stainless-retry-count: 0",
    "x-stainless-read-timeout: 600",
    "x-stainless-timeout: 600",
)


@dataclass(frozen=True, slots=True)
class Command:
    """What to do: `kind` is closed (each connection sends its next request when it has its answer) or streams.

    Closed ends after `seconds`, or after `count` requests if that is set. `mark` tells the upstream what to do; `sdk` sends
    the headers of an Anthropic SDK; streams begin `stagger` seconds apart.
    """

    kind: str
    port: int
    connections: int = 1
    seconds: float = 1.0
    count: int = 0
    path: str = "/v1/messages"
    mark: str = ""
    prompts: int = 0
    sdk: bool = False
    stagger: float = 0.001
    chunks: int = 0


@dataclass(slots=True)
class Closed:
    """Figures of a closed run; `bad` counts answers that were not 200 and connections that broke."""

    requests: int
    seconds: float
    p50: float
    p99: float
    bad: int


@dataclass(slots=True)
class Streams:
    """Figures of a run of streams; `complete` have had every chunk and their end. A delay is from upstream's write to us."""

    complete: int
    chunks_per_second: float
    duration_p50: float
    duration_p99: float
    delay_p50: float
    delay_p99: float
    first_byte_p50: float


def request_bytes(command: Command) -> bytes:
    """The request as it stands on the wire."""
    if command.path == "/healthz":
        return f"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1:{command.port}\r\n\r\n".encode()
    prompt = command.mark.ljust(PROMPT_BYTES, "x")
    body: dict[str, object]
    if command.path == "/batch_generate":
        body = {"prompts": [prompt] * command.prompts}
    elif command.path == "/generate":
        body = {"prompt": prompt}
    else:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "claude-opus-5-5", "max_tokens": 1024, "messages": messages, "stream": command.chunks > 0}
    payload = json.dumps(body).encode()
    headers = [
        f"POST {command.path} HTTP/1.1",
        f"host: 127.0.0.1:{command.port}",
        "content-type: application/json",
        "anthropic-version: 2023-06-01",
        "x-api-key: sk-ant-bench",
        f"content-length: {len(payload)}",
        *(_SDK_HEADERS if command.sdk else ()),
    ]
    return "\r\n".join(headers).encode() + b"\r\n\r\n" + payload


@dataclass(slots=True)
class ClosedRun:
    """What the connections of a closed run share."""

    request: bytes
    deadline: float
    left: int
    """Requests still to send; negative: no bound."""
    latencies: list[float] = field(default_factory=list)
    bad: int = 0

    def goes_on(self, now: float) -> bool:
        """Whether another request is to be sent."""
        if now >= self.deadline or self.left == 0:
            return False
        self.left -= 1
        return True


class ClosedConnection(asyncio.Protocol):
    """Sends its next request as soon as it has the answer."""

    def __init__(self, run: ClosedRun, done: Callable[[], None]) -> None:
        self._run, self._done = run, done
        self._framer = Framer()
        self._began = 0.0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next(time.perf_counter())

    def _next(self, now: float) -> None:
        self._waiting = self._run.goes_on(now)
        if self._waiting:
            self._began = time.perf_counter()
            self._transport.write(self._run.request)
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._framer.feed(data):
            now = time.perf_counter()
            self._run.latencies.append(now - self._began)
            self._run.bad += self._framer.status != b"200"
            self._next(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.bad += self._waiting
        self._done()


class StreamConnection(asyncio.Protocol):
    """Asks for one stream and notes when each chunk comes."""

    def __init__(self, request: bytes, done: Callable[[], None]) -> None:
        self._request, self._done = request, done
        self._framer = Framer()
        self._rest = b""
        self.delays: list[float] = []
        self.first = self.last = 0.0
        self._stopped = self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.began = time.monotonic()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        self.last = now_ns / 1e9
        self.first = self.first or self.last
        seen = self._rest + data
        end = seen.rfind(b"\n\n") + 2
        if end > 1:
            self.delays += [(now_ns - int(stamp)) / 1e9 for stamp in STAMP.findall(seen, 0, end)]
            self._rest = seen[end:]
        else:
            self._rest = seen
        self._stopped = self._stopped or b"message_stop" in seen
        if self._framer.feed(data):
            self.ended = self._stopped and self._framer.status == b"200"
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()


class AllDone:
    """Becomes set when as many connections as there are have ended."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.event = asyncio.Event()

    def one(self) -> None:
        """Another one has ended."""
        self._left -= 1
        if not self._left:
            self.event.set()


async def run_closed(command: Command) -> Closed:
    """Run until the deadline or the count."""
    loop, done = asyncio.get_running_loop(), AllDone(command.connections)
    began = time.perf_counter()
    run = ClosedRun(request_bytes(command), began + command.seconds, command.count or -1)
    for _ in range(command.connections):
        await loop.create_connection(lambda: ClosedConnection(run, done.one), "127.0.0.1", command.port)
    await asyncio.wait_for(done.event.wait(), command.seconds + 20)
    seconds, latencies = time.perf_counter() - began, run.latencies or [0.0]
    return Closed(len(run.latencies), seconds, percentile(latencies, 50), percentile(latencies, 99), run.bad)


async def run_streams(command: Command) -> Streams:
    """Open all streams, one every `stagger` seconds, and read them to their ends."""
    loop, done = asyncio.get_running_loop(), AllDone(command.connections)
    request = request_bytes(command)
    connections: list[StreamConnection] = []
    began = loop.time()
    for index in range(command.connections):
        await asyncio.sleep(began + index * command.stagger - loop.time())
        _, connection = await loop.create_connection(
            lambda: StreamConnection(request, done.one), "127.0.0.1", command.port
        )
        connections.append(connection)
    try:
        await asyncio.wait_for(done.event.wait(), command.seconds)
    except TimeoutError:
        print(f"streams did not end within {command.seconds:g} s", file=sys.stderr)
    complete = [c for c in connections if c.ended and len(c.delays) == command.chunks]
    if not complete:
        return Streams(0, *[0.0] * 6)
    delays = [delay for c in connections for delay in c.delays]
    durations = [c.last - c.began for c in complete]
    span = max(c.last for c in complete) - min(c.first for c in complete)
    return Streams(
        complete=len(complete),
        chunks_per_second=len(delays) / span,
        duration_p50=percentile(durations, 50),
        duration_p99=percentile(durations, 99),
        delay_p50=percentile(delays, 50),
        delay_p99=percentile(delays, 99),
        first_byte_p50=percentile([c.first - c.began for c in complete], 50),
    )


def main() -> None:
    """Serve commands until stdin ends."""
    helper.raise_descriptor_limit()
    gc.freeze()
    gc.disable()
    for line in sys.stdin:
        command = Command(**json.loads(line))
        running = run_streams(command) if command.kind == "streams" else run_closed(command)
        figures: Closed | Streams = asyncio.run(cast("Coroutine[None, None, Closed | Streams]", running))
        print(json.dumps(dataclasses.asdict(figures)), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
