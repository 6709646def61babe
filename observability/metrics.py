"""The process's metrics, made from the catalogue. Every label value is from a closed set; the rest becomes `other`.

The instruments are our own, because what they must do no library does: exemplars, whole buckets merged at once, and text
that can be rendered in slices, so that a scrape never holds the event loop. `collect` shows the same to
prometheus_client's registry and encoders.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import TypeAlias

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as LibraryExemplar
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from observability import catalog
from observability.catalog import Metric, Type

Labels: TypeAlias = tuple[str, ...]
Exemplar: TypeAlias = Mapping[str, str] | None

_CLOSED: dict[str, Set[str]] = {
    catalog.PROVIDER: frozenset(catalog.PROVIDERS),
    catalog.OPERATION: frozenset(catalog.OPERATIONS),
    "outcome": frozenset(catalog.Outcome) | frozenset(catalog.STREAM_ENDS.values()),
    "error_type": catalog.ERROR_TYPES,
    "status": frozenset(catalog.STATUSES),
    "reason": frozenset(
        (*catalog.ATTEMPT_REASONS, *catalog.RETRY_REASONS, *catalog.ERROR_TYPES, *catalog.DROP_REASONS)
    ),
    "limit": frozenset(catalog.LIMITS_429),
    "dimension": frozenset(catalog.QUOTA_DIMENSIONS),
    "streaming": frozenset(("true", "false")),
    "signal": frozenset(catalog.SIGNALS),
    "token_type": frozenset(catalog.TOKEN_TYPES),
    "certainty": frozenset(catalog.CERTAINTIES),
    "result": frozenset(catalog.CACHE_RESULTS),
    "label": frozenset(label for metric in catalog.METRICS for label in metric.labels),
}


_Marked: TypeAlias = tuple[Mapping[str, str], float, float]
"""An exemplar as it is kept: its ids, its value, and when (Unix time). The library's own is made when somebody looks."""


def _for_library(exemplar: _Marked | None) -> LibraryExemplar | None:
    return None if exemplar is None else LibraryExemplar(dict(exemplar[0]), exemplar[1], exemplar[2])


class _Value:
    """One counter or gauge series."""

    __slots__ = ("exemplar", "seen", "suffix", "until", "value")

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.value = self.seen = self.until = 0.0
        self.exemplar: _Marked | None = None

    def samples(self) -> Iterator[tuple[str, str | None, float, LibraryExemplar | None]]:
        """(name suffix, `le`, value, exemplar) of each sample."""
        yield self.suffix, None, self.value, _for_library(self.exemplar)


class _Buckets:
    """One histogram series. `counts` are not cumulative; the last is that of `+Inf`."""

    __slots__ = ("counts", "edges", "exemplars", "texts", "total")

    def __init__(self, edges: Sequence[float], texts: Sequence[str]) -> None:
        self.edges, self.texts = edges, texts
        self.counts = [0] * (len(edges) + 1)
        self.exemplars: list[_Marked | None] = [None] * (len(edges) + 1)
        self.total = 0.0

    def samples(self) -> Iterator[tuple[str, str | None, float, LibraryExemplar | None]]:
        """(name suffix, `le`, value, exemplar) of each sample."""
        running = 0
        for text, count, exemplar in zip(self.texts, self.counts, self.exemplars, strict=True):
            running += count
            yield "_bucket", text, running, _for_library(exemplar)
        yield "_count", None, running, None
        yield "_sum", None, self.total, None


class _Samples:
    """A family's samples, made one series at a time as they are asked for: so many at once would hold the loop."""

    def __init__(self, metric: Metric, known: Mapping[Labels, _Value | _Buckets]) -> None:
        self._metric, self._known = metric, known

    def __iter__(self) -> Iterator[Sample]:
        name = self._metric.name
        for labels, series in list(self._known.items()):
            pairs = dict(zip(self._metric.labels, labels, strict=True))
            for suffix, le, value, exemplar in list(series.samples()):
                yield Sample(name + suffix, pairs if le is None else pairs | {"le": le}, value, None, exemplar)


class Metrics(Collector):
    """Counters, gauges and histograms, addressed by their catalogue row; registers itself in `registry`.

    `routes` and `models` are the known values of those labels. Label values are given in the row's order; the empty
    string means "not known" and reads as an absent label in Prometheus. Safe to call from any thread.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        routes: Set[str],
        models: Set[str],
        clients: Set[str] = frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = registry
        self._clock = clock
        closed = _CLOSED | {catalog.ROUTE: routes, "client": clients}
        closed |= dict.fromkeys((catalog.MODEL, "from", "to"), models)
        self._allowed = {m.name: tuple(closed.get(label) for label in m.labels) for m in catalog.METRICS}
        self._texts = {m.name: (*map(floatToGoString, m.buckets), "+Inf") for m in catalog.METRICS}
        self._values: dict[str, dict[Labels, _Value]] = {}
        self._buckets: dict[str, dict[Labels, _Buckets]] = {}
        for metric in catalog.METRICS:
            if metric.type is Type.HISTOGRAM:
                self._buckets[metric.name] = {}
            else:
                self._values[metric.name] = {}
        # Re-entrant: garbage found while it is held may log, and a log line that is lost is counted here.
        self._lock = threading.RLock()
        registry.register(self)

    def add(self, metric: Metric, labels: Labels = (), amount: float = 1, exemplar: Exemplar = None) -> None:
        """Add to a counter (an exemplar may go with it) or to a gauge (`amount` may be negative)."""
        with self._lock:
            series = self._values[metric.name].get(labels) or self._new_value(metric, labels)
            series.value += amount
            if exemplar is not None:
                series.exemplar = exemplar, amount, self._clock()

    def set(self, metric: Metric, value: float, labels: Labels = ()) -> None:
        """Set a gauge."""
        with self._lock:
            series = self._values[metric.name].get(labels) or self._new_value(metric, labels)
            series.value = value

    def see(self, metric: Metric, value: float, labels: Labels, until: float, seen: float) -> None:
        """Set a per-host gauge to what was seen at the Unix time `seen`, shown until `until`; an older sighting than the
        one it has changes nothing, here and between workers."""
        with self._lock:
            series = self._values[metric.name].get(labels) or self._new_value(metric, labels)
            if seen >= series.seen:
                series.value, series.seen, series.until = value, seen, until

    def newest(self) -> Iterator[tuple[Metric, Labels, float, float]]:
        """(row, labels, value, when it was seen) of every per-host gauge that has not expired."""
        now = self._clock()
        for metric in catalog.METRICS:
            if metric.per_host:
                for labels, series in list(self._values[metric.name].items()):
                    if series.until > now:
                        yield metric, labels, series.value, series.seen

    def observe(self, metric: Metric, value: float, labels: Labels = (), exemplar: Exemplar = None) -> None:
        """Put one value into a histogram, in the row's unit."""
        with self._lock:
            series = self._buckets[metric.name].get(labels) or self._new_buckets(metric, labels)
            index = bisect_left(series.edges, value)
            series.counts[index] += 1
            series.total += value
            if exemplar is not None:
                series.exemplars[index] = exemplar, value, self._clock()

    def merge(self, metric: Metric, counts: Iterable[int], total: float, labels: Labels = ()) -> None:
        """Put many values into a histogram at once: `counts` per bucket (not cumulative, `+Inf` last) and their sum."""
        with self._lock:
            series = self._buckets[metric.name].get(labels) or self._new_buckets(metric, labels)
            series.counts = [have + more for have, more in zip(series.counts, counts, strict=True)]
            series.total += total

    def _new_value(self, metric: Metric, labels: Labels) -> _Value:
        known, folded = self._values[metric.name], self._folded(metric, labels)
        return known.setdefault(folded, _Value("_total" if metric.type is Type.COUNTER else ""))

    def _new_buckets(self, metric: Metric, labels: Labels) -> _Buckets:
        known, folded = self._buckets[metric.name], self._folded(metric, labels)
        return known.setdefault(folded, _Buckets(metric.buckets, self._texts[metric.name]))

    def _folded(self, metric: Metric, labels: Labels) -> Labels:
        return tuple(
            value if allowed is None or not value or value in allowed else self._fold(metric.labels[index], value)
            for index, (value, allowed) in enumerate(zip(labels, self._allowed[metric.name], strict=True))
        )

    def _fold(self, label: str, value: str) -> str:
        """What a value outside its set becomes; counted, unless it is the catalogue's own word for such values."""
        folded = "_OTHER" if label == "error_type" else catalog.OTHER
        if value != folded:
            self.add(catalog.LABEL_OVERFLOW, (label,))
        return folded

    def collect(self) -> Iterator[Family]:
        """For prometheus_client: every family that has a series, but for the per-host ones."""
        for metric in catalog.METRICS:
            if metric.per_host:
                continue
            if known := self._buckets.get(metric.name) or self._values.get(metric.name):
                family = Family(metric.name, metric.help, metric.type.value)
                family.samples = _Samples(metric, known)  # type: ignore[assignment]  # only ever iterated
                yield family


def register_process(registry: CollectorRegistry) -> None:
    """Add this process's own families: CPU, memory, descriptors, garbage collection."""
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nothing reads
    prometheus_client.ProcessCollector(registry=registry)
    prometheus_client.GCCollector(registry=registry)
