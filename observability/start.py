"""Brings a process's telemetry up (after the fork) and down again, within a bound."""

from __future__ import annotations

import platform
import time
from collections.abc import Set
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from structlog.typing import FilteringBoundLogger

from observability import catalog, logs, metrics, tracing


@dataclass(frozen=True, slots=True)
class Telemetry:
    """One process's three signals."""

    metrics: metrics.Metrics
    tracing: tracing.Tracing
    log: FilteringBoundLogger
    _writer: logs.LineWriter | None

    def stop(self, timeout: float) -> None:
        """Flush spans and log lines; blocks at most `timeout` seconds in all."""
        deadline = time.monotonic() + timeout
        self.tracing.stop(timeout * 0.75)
        if self._writer is not None:
            self._writer.close(max(0.05, deadline - time.monotonic()))


def start(
    *,
    service_name: str,
    version: str,
    traces: tracing.Options,
    log_level: str,
    routes: Set[str],
    models: Set[str],
    clients: Set[str] = frozenset(),
    stdout: int | None = 1,
) -> Telemetry:
    """Start all signals. `routes`, `models` and `clients` close those labels; `stdout` is the log's descriptor (None: no log)."""
    registry = CollectorRegistry()
    metrics.register_process(registry)
    made = metrics.Metrics(registry, routes=routes, models=models, clients=clients)
    made.set(catalog.BUILD_INFO, 1, (version, platform.python_version()))
    for loss in catalog.LOSSES:
        made.add(catalog.TELEMETRY_DROPPED, loss, 0)
    made.add(catalog.LIMITER_FAIL_OPEN, (), 0)

    def dropped(signal: str, reason: str, count: int) -> None:
        made.add(catalog.TELEMETRY_DROPPED, (signal, reason), count)

    def succeeded(signal: str) -> None:
        made.set(catalog.TELEMETRY_LAST_SUCCESS, time.time(), (signal,))

    writer = None
    if stdout is not None:
        writer = logs.LineWriter(stdout, lambda reason, n: dropped("logs", reason, n), lambda: succeeded("logs"))
    traced = tracing.Tracing(
        service_name, version, traces, lambda: succeeded("spans"), lambda reason, n: dropped("spans", reason, n), routes
    )
    log = logs.install(writer.write if writer is not None else _nowhere, log_level, quoting=False)
    return Telemetry(made, traced, log, writer)


def _nowhere(_line: bytes) -> None:
    """For tests and tools that want no log."""
