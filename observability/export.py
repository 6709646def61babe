"""Spans on their way out: held until their request has ended, then queued whole or dropped whole, exported by a thread.

A trace is promised (`keep`) only when the queue has room for it, so an exemplar never leads to a trace that was lost to
a full queue. What is lost is counted, by reason.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from observability.spans import Local, Span

BATCH = 128
"""Spans per export: encoding them holds the interpreter for some ten milliseconds, no longer."""
_SPARE = 8
"""Room promised for spans of a kept trace that have not ended yet."""

Drop = Callable[[str, int], None]
Clean = Callable[[ReadableSpan], ReadableSpan]
"""Takes out of a span what must not leave; called by the exporting thread."""


class SpanQueue:
    """Where every span goes as it ends. Without an exporter decisions are the same and nothing leaves."""

    def __init__(
        self,
        exporter: SpanExporter | None,
        resource: Resource,
        *,
        bound: int,
        delay: float,
        on_success: Callable[[], None],
        on_drop: Drop,
        clean: Clean = lambda span: span,
    ) -> None:
        self._exporter, self._resource, self._clean = exporter, resource, clean
        self._bound, self._delay = bound, delay
        self._on_success, self._on_drop = on_success, on_drop
        self._queue: deque[Span] = deque()
        self._reserved = 0
        # Under a WSGI server requests run in threads; re-entrant, because garbage found inside may hold a span that ends.
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closing = False
        self._in_hand = 0
        self._thread: threading.Thread | None = None
        if exporter is not None:
            self._thread = threading.Thread(target=self._run, name="span-export", daemon=True)
            self._thread.start()

    def keep(self, span: trace.Span, *, upgrade: bool) -> bool:
        """Decide on the trace of `span`, once: True if it is sampled or upgraded and the queue has room for it."""
        if not isinstance(span, Span):
            return False
        local = span.local
        if local.kept or local.closed or not (upgrade or span.get_span_context().trace_flags.sampled):
            return local.kept
        local.decided = True
        local.kept = self._reserve(local, len(local.ended) + _SPARE)
        return local.kept

    def _reserve(self, local: Local, more: int) -> bool:
        with self._lock:
            room = len(self._queue) + self._reserved + more <= self._bound
            if room:
                local.reserved += more
                self._reserved += more
        return room

    def take(self, span: Span) -> None:
        """A span has ended: hold it; at the end of its request let all of them go."""
        local, context = span.local, span.get_span_context()
        if local.closed:
            self._take_late(span)
            return
        is_root = local.root == context.span_id
        # The last place is the root's: a kept trace is never without it.
        if local.kept and not is_root and len(local.ended) + 1 >= local.reserved and not self._reserve(local, _SPARE):
            self._on_drop("queue_full", 1)
            return
        local.ended.append(span)
        if not is_root:
            return
        if not local.decided:  # a root that no closing act spoke for
            self.keep(span, upgrade=False)
        local.closed = True
        ended, local.ended = local.ended, []  # else they and their spans would hold each other
        if local.reserved:
            with self._lock:
                self._reserved -= local.reserved
                if local.kept and self._exporter is not None:
                    self._queue.extend(ended)
            if len(self._queue) >= BATCH and not self._wake.is_set():
                self._wake.set()
        elif local.decided:
            self._on_drop("queue_full", len(ended))

    def _take_late(self, span: Span) -> None:
        """A span whose request has ended before it shares its fate, if there is room."""
        if not span.local.kept:
            return
        with self._lock:
            if len(self._queue) + self._reserved < self._bound:
                if self._exporter is not None:
                    self._queue.append(span)
                return
        self._on_drop("queue_full", 1)

    def shutdown(self, timeout: float = 30.0) -> None:
        """Export what waits, for at most `timeout` seconds; the rest is counted as lost."""
        self._closing = True
        self._wake.set()
        if self._thread is None:
            return
        self._thread.join(timeout)
        if self._thread.is_alive() and (lost := self._in_hand + len(self._queue)):
            self._on_drop("export_failed", lost)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wake the export; does not wait."""
        self._wake.set()
        return True

    def _run(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        while not self._closing:
            self._wake.wait(self._delay)
            self._wake.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                self._in_hand = len(batch)
                self._export(batch)
                self._in_hand = 0

    def _export(self, batch: list[Span]) -> None:
        assert self._exporter is not None
        try:
            result = self._exporter.export([self._clean(span.readable(self._resource)) for span in batch])
        except Exception:  # noqa: BLE001 counted; an exporter's bug must not stop the thread
            self._on_drop("encode_failed", len(batch))
            return
        if result is SpanExportResult.SUCCESS:
            self._on_success()
        else:
            self._on_drop("export_failed", len(batch))
