"""The process's metrics, made from the catalogue. Every label value is from a closed set; the rest becomes `other`."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TypeAlias

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

from observability import catalog
from observability.catalog import Metric, Type

Labels: TypeAlias = tuple[str, ...]
Exemplar: TypeAlias = dict[str, str] | None

_CLOSED: dict[str, Set[str]] = {
    catalog.PROVIDER: frozenset(catalog.PROVIDERS),
    catalog.OPERATION: frozenset(catalog.OPERATIONS),
    "outcome": frozenset(catalog.Outcome),
    "error_type": catalog.ERROR_TYPES,
    "status": frozenset(catalog.STATUSES),
    "reason": frozenset(catalog.ATTEMPT_REASONS) | catalog.ERROR_TYPES | catalog.DROP_REASONS,
    "limit": frozenset(catalog.LIMITS_429),
    "streaming": frozenset(("true", "false")),
    "signal": frozenset(catalog.SIGNALS),
}


class Metrics:
    """Counters, gauges and histograms in `registry`, addressed by their catalogue row.

    `routes` and `models` are the known values of those labels. Label values are given in the row's order; the empty
    string means "not known" and reads as an absent label in Prometheus.
    """

    def __init__(self, registry: CollectorRegistry, *, routes: Set[str], models: Set[str]) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter that nothing reads
        self.registry = registry
        closed = _CLOSED | {catalog.ROUTE: routes, catalog.MODEL: models}
        self._allowed = {m.name: tuple(closed.get(label) for label in m.labels) for m in catalog.METRICS}
        self._families: dict[str, Counter | Gauge | Histogram] = {m.name: _make(m, registry) for m in catalog.METRICS}
        self._children: dict[tuple[str, Labels], Counter | Gauge | Histogram] = {}

    def add(self, metric: Metric, labels: Labels = (), amount: float = 1, exemplar: Exemplar = None) -> None:
        """Add to a counter (an exemplar may go with it) or to a gauge (`amount` may be negative)."""
        child = self._child(metric, labels)
        if isinstance(child, Counter):
            child.inc(amount, exemplar)
        elif isinstance(child, Gauge):
            child.inc(amount)

    def set(self, metric: Metric, value: float, labels: Labels = ()) -> None:
        """Set a gauge."""
        child = self._child(metric, labels)
        assert isinstance(child, Gauge)
        child.set(value)

    def observe(self, metric: Metric, value: float, labels: Labels = (), exemplar: Exemplar = None) -> None:
        """Put one value into a histogram, in the row's unit."""
        child = self._child(metric, labels)
        assert isinstance(child, Histogram)
        child.observe(value, exemplar)

    def _child(self, metric: Metric, labels: Labels) -> Counter | Gauge | Histogram:
        folded = tuple(
            value if allowed is None or not value or value in allowed else _overflow(metric, index)
            for index, (value, allowed) in enumerate(zip(labels, self._allowed[metric.name], strict=True))
        )
        child = self._children.get((metric.name, folded))
        if child is None:
            family = self._families[metric.name]
            child = self._children[metric.name, folded] = family.labels(*folded) if folded else family
        return child


def _overflow(metric: Metric, index: int) -> str:
    return "_OTHER" if metric.labels[index] == "error_type" else catalog.OTHER


def _make(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match metric.type:
        case Type.COUNTER:
            return Counter(metric.name, metric.help, metric.labels, registry=registry)
        case Type.GAUGE:
            return Gauge(metric.name, metric.help, metric.labels, registry=registry)
        case Type.HISTOGRAM:
            return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)


def register_process(registry: CollectorRegistry) -> Mapping[str, Collector]:
    """Add this process's own families: CPU, memory, descriptors, garbage collection."""
    return {
        "process": prometheus_client.ProcessCollector(registry=registry),
        "gc": prometheus_client.GCCollector(registry=registry),
    }
