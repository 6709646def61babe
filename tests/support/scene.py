"""A gateway between a scripted upstream and an OTLP sink: what most process tests stand on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.claude import ASKED, parse_events
from tests.support.otlp import OtlpSink
from tests.support.processes import Gateway
from tests.support.told import Watch
from tests.support.upstream import Script, Upstream


@dataclass(frozen=True)
class Got:
    """What a client got; `cut` says that the connection ended before the answer was complete."""

    status: int
    headers: httpx.Headers
    body: bytes
    cut: bool = False

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """The body's events."""
        return parse_events(self.body)


@dataclass(frozen=True)
class Scene:
    """The three processes of a test; `upstream.script` may be exchanged between requests."""

    gateway: Gateway
    upstream: Upstream
    sink: OtlpSink

    def watch(self) -> Watch:
        """To be made before a request."""
        return Watch(self.gateway, self.sink)

    def plays(self, script: Script) -> None:
        """What the upstream does from now on."""
        self.upstream.script = script

    def ask(
        self, *, stream: bool, target: str = "/v1/messages", body: Any = None, headers: dict[str, str] | None = None
    ) -> Got:
        """One request over a connection of its own, read to its end or until it is cut."""
        asked = (ASKED | {"stream": stream}) if body is None else body
        with self.gateway.client() as client, client.stream("POST", target, json=asked, headers=headers) as answer:
            parts: list[bytes] = []
            try:
                parts.extend(answer.iter_raw())
            except httpx.TransportError:
                return Got(answer.status_code, answer.headers, b"".join(parts), cut=True)
        return Got(answer.status_code, answer.headers, b"".join(parts))


@contextmanager
def scene(script: Script | Upstream, **environ: str) -> Iterator[Scene]:
    """A scene whose gateway has these settings."""
    with (
        OtlpSink() as sink,
        script if isinstance(script, Upstream) else Upstream(script) as upstream,
        Gateway(upstream.url, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, OTEL_BSP_SCHEDULE_DELAY="50", **environ) as gateway,
    ):
        yield Scene(gateway, upstream, sink)
