"""The gateway's own telemetry inside the test's process: what it said, exactly."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from observability.start import Telemetry, start
from observability.tracing import Options
from service.app import ROUTES
from service.upstream.providers import PROVIDERS, models_of

AT_START = ("claude_proxy_build_info", "claude_proxy_telemetry_", "claude_proxy_limiter_")
"""Families that stand there before anything has happened."""


@dataclass(frozen=True)
class Told:
    """Everything that has been said: call `lines` last, it ends the log."""

    telemetry: Telemetry
    _exporter: InMemorySpanExporter
    _log: int

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """Ended spans by name."""
        return {span.name: span for span in self._exporter.get_finished_spans()}

    def samples(self) -> list[str]:
        """The sample lines of what happened, sorted; buckets left out."""
        return sorted(line for line in self._text() if not line.startswith("#") and "_bucket{" not in line)

    def sample(self, start: str) -> list[str]:
        """Sample lines that start so, sorted; exemplars included."""
        text: str = generate_openmetrics(self.telemetry.metrics.registry).decode()  # type: ignore[no-untyped-call]
        return sorted(line for line in text.splitlines() if line.startswith(start))

    def _text(self) -> list[str]:
        text = generate_latest(self.telemetry.metrics.registry).decode()
        ours = ("claude_proxy_", "gen_ai_")
        return [line for line in text.splitlines() if line.startswith(ours) and not line.startswith(AT_START)]

    def lines(self) -> list[dict[str, Any]]:
        """The log's lines, parsed, without their timestamps."""
        self.telemetry.stop(2)
        os.set_blocking(self._log, False)
        try:
            data = os.read(self._log, 1 << 20)
        except BlockingIOError:
            data = b""
        parsed = [json.loads(line) for line in data.splitlines()]
        return [{k: v for k, v in line.items() if k != "timestamp"} for line in parsed]


@contextmanager
def telemetry(log_level: str = "info") -> Iterator[Told]:
    """Telemetry whose log goes into a pipe and whose spans go into memory."""
    reading, writing = os.pipe()
    made = start(
        service_name="claude-proxy",
        version="1.2.3",
        traces=Options(),
        log_level=log_level,
        routes=ROUTES,
        models=models_of(PROVIDERS),
        clients=frozenset({"alice"}),
        stdout=writing,
    )
    exporter = InMemorySpanExporter()
    made.tracing.provider.add_span_processor(SimpleSpanProcessor(exporter))
    try:
        yield Told(made, exporter, reading)
    finally:
        made.stop(2)
        os.close(reading)
        os.close(writing)
