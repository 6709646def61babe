"""The closing act: one record in, and metrics, spans and the log line out, all from it. It never raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from opentelemetry.trace import Span

from observability import catalog
from observability.catalog import Attr, Fault, LogEvent, Outcome
from observability.metrics import Exemplar
from observability.start import Telemetry
from observability.tracing import Attributes
from service.account.books import Books
from service.record import Answered, Attempt, Certainty, Kind, Record, Usage

T = TypeVar("T")
Content = Callable[[], Attributes]

_LEVEL = {Fault.NOBODY: "info", Fault.CLIENT: "info", Fault.PROVIDER: "warning", Fault.US: "error"}


class Closing:
    """Writes what is said of requests and calls that have ended."""

    def __init__(self, telemetry: Telemetry, books: Books) -> None:
        self.books = books
        self._metrics = telemetry.metrics
        self._tracing = telemetry.tracing
        self._log = telemetry.log

    def began(self, route: str) -> None:
        """A request has begun."""
        self._metrics.add(catalog.IN_FLIGHT, (route,), 1)

    def safely(self, act: Callable[[], T]) -> T | None:
        """What `act` returns. Nothing here raises into a request: an error is logged, and the answer is None."""
        try:
            return act()
        except Exception as error:  # noqa: BLE001 the failure itself is logged
            self._log.error(LogEvent.LOG, message="closing failed", exc_info=error)
            return None

    def close(
        self, record: Record, server: Span | None, inference: Span | None, content: Content | None = None
    ) -> None:
        """A request or call has ended: `server` is the request's span, `inference` that of its provider call, and
        `content` tells what was said in it, if that is to be told."""
        # First, and by itself: whatever else goes wrong, the call is in the ledger.
        self.safely(lambda: self.books.ended(record))
        if server is not None:
            self._metrics.add(catalog.IN_FLIGHT, (record.route,), -1)
        said = self.safely(content) if content is not None and inference is not None and record.trace.kept else None
        self.safely(lambda: self._end_spans(record, server, inference, said or {}))
        self.safely(lambda: self._count(record, server))
        self.safely(lambda: self._write_line(record))

    def _end_spans(self, record: Record, server: Span | None, inference: Span | None, said: Attributes) -> None:
        if inference is not None:
            # What the client takes to read an answer that is in is not the call's time.
            told = {**_inference_attributes(record), **said}
            self._tracing.end(inference, told, record.error_type, record.timings.call)
        if server is None:
            return
        fault = catalog.OUTCOMES[record.outcome][0]
        failed = record.error_type or record.outcome.value if fault in (Fault.US, Fault.PROVIDER) else None
        self._tracing.annotate(
            server,
            {Attr.OUTCOME: record.outcome.value, Attr.REQUEST_ID: record.request_id, Attr.CLIENT: record.client},
            failed,
        )

    def _count(self, record: Record, server: Span | None) -> None:
        if server is not None:
            self._count_request(record)
        self._count_call(record)
        self._count_cost(record)

    def _count_request(self, record: Record) -> None:
        metrics, exemplar = self._metrics, _exemplar(record)
        outcome, streaming = record.outcome.value, _flag(record.streaming)
        labels = (record.route, record.provider or "", record.model or "", outcome)
        metrics.add(catalog.REQUESTS, labels, 1, exemplar)
        metrics.observe(catalog.REQUEST_DURATION, record.timings.total, (record.route, streaming, outcome), exemplar)
        metrics.observe(catalog.OVERHEAD, record.timings.overhead, (record.route, streaming), exemplar)
        if record.rejected is not None:
            metrics.add(catalog.REJECTED, (record.route, record.rejected))
        if record.client is not None:
            metrics.add(catalog.CLIENT_REQUESTS, (record.client,))

    def _count_call(self, record: Record) -> None:
        metrics, exemplar = self._metrics, _exemplar(record)
        who = (record.provider or "", record.model or "")
        wanted = record.wanted_model or record.model or ""
        for attempt in record.attempts:
            asked = (record.provider or "", attempt.model or wanted)
            metrics.add(catalog.UPSTREAM_ATTEMPTS, (*asked, str(attempt.status or ""), attempt.reason))
            if attempt.limit is not None:
                metrics.add(catalog.UPSTREAM_429, (*asked, attempt.limit), 1, exemplar)
        for quota in record.quotas:
            labels = (*who, quota.dimension)
            until = max(quota.reset, quota.seen + catalog.QUOTA_SECONDS)
            metrics.see(catalog.QUOTA_LIMIT, quota.limit, labels, until, quota.seen)
            metrics.see(catalog.QUOTA_REMAINING, quota.remaining, labels, until, quota.seen)
            metrics.see(catalog.QUOTA_RESET, quota.reset, labels, until, quota.seen)
        if record.operation is None or record.timings.call is None:
            return
        call = (record.operation, *who)
        metrics.observe(catalog.INFERENCE_DURATION, record.timings.call, (*call, record.error_type or ""), exemplar)
        self._count_stream(record, call)
        usage = record.answered.usage
        if usage is not None:
            for row, tokens in (
                (catalog.INPUT_TOKENS, usage.input_tokens),
                (catalog.OUTPUT_TOKENS, usage.output_tokens),
                (catalog.CACHE_READ_TOKENS, usage.cache_read_tokens),
                (catalog.CACHE_WRITE_TOKENS, usage.cache_write_tokens),
                (catalog.REASONING_TOKENS, usage.reasoning_tokens),
            ):
                if tokens is not None:
                    metrics.add(row, call, tokens)

    def _count_cost(self, record: Record) -> None:
        cost, metrics = record.cost, self._metrics
        if cost is None:
            return
        if cost.certainty is Certainty.UNPRICED:
            metrics.add(catalog.UNPRICED, (record.provider or "",))
            return
        who, exemplar = (record.provider or "", record.model or ""), _exemplar(record)
        for token_type in catalog.TOKEN_TYPES:
            if nanos := getattr(cost, token_type):
                metrics.add(catalog.COST, (*who, token_type, cost.certainty.value), nanos / 1e9, exemplar)
        if record.client is not None and cost.total:
            metrics.add(catalog.CLIENT_COST, (record.client,), cost.total / 1e9)
        if forgone := self.books.batch_saving(record):
            metrics.add(catalog.BATCH_FORGONE, who, forgone / 1e9)

    def _count_stream(self, record: Record, call: tuple[str, str, str]) -> None:
        answered, who = record.answered, call[1:]
        if not answered.streamed:
            return
        end = catalog.STREAM_ENDS.get(record.outcome, Outcome.UPSTREAM_ERROR.value)
        self._metrics.add(catalog.STREAM_OUTCOMES, (*who, end))
        if answered.first_chunk is not None:
            self._metrics.observe(catalog.FIRST_CHUNK, answered.first_chunk, call, _exemplar(record))
        if answered.pace is not None:
            self._metrics.merge(catalog.CHUNK_TIME, answered.pace.counts, answered.pace.total, call)
            self._metrics.observe(catalog.STREAM_LONGEST_GAP, answered.pace.longest, who)

    def _write_line(self, record: Record) -> None:
        event = LogEvent.CALL if record.kind is Kind.CALL else LogEvent.REQUEST
        level = _LEVEL[catalog.OUTCOMES[record.outcome][0]]
        getattr(self._log, level)(event.value, **_fields(record))


def _fields(record: Record) -> dict[str, Any]:
    """The log line's fields; None is left out, because unknown is absent."""
    answered, timings = record.answered, record.timings
    usage = answered.usage
    fields: dict[str, Any] = {
        "trace_id": record.trace.trace_id,
        "span_id": record.trace.span_id,
        "request_id": record.request_id,
        "upstream_request_id": answered.upstream_request_id,
        "route": record.route,
        "provider": record.provider,
        "model": record.model,
        "wanted_model": record.wanted_model,
        "stream": record.streaming,
        "status": record.status,
        "outcome": record.outcome.value,
        "error_type": record.error_type,
        "attempts": len(record.attempts),
        "limit": _limit(record.attempts),
        "retry_after_s": _last(record.attempts),
        "total_s": _round(timings.total),
        "call_s": _round(timings.call),
        "ttft_s": _round(answered.first_chunk),
        "chunks": _chunks(answered) if answered.streamed else None,
        "longest_gap_s": _round(answered.pace.longest) if answered.pace is not None else None,
        "upstream_s": _round(timings.upstream),
        "client_wait_s": _round(timings.client_wait),
        "queue_s": _round(timings.queue or None),
        "backoff_s": _round(timings.backoff or None),
        "overhead_s": _round(timings.overhead) if record.kind is not Kind.CALL else None,
        "stop_reason": answered.finish_reason,
        "client": record.client,
        "cache": record.cache,
        "refused_by": record.refused_by,
    }
    if record.cost is not None:
        fields["cost_certainty"] = record.cost.certainty.value
        if record.cost.certainty is not Certainty.UNPRICED:
            fields["cost_usd"] = record.cost.total / 1e9
    if usage is not None:
        fields |= {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        }
    return {key: value for key, value in fields.items() if value is not None}


def _chunks(answered: Answered) -> int:
    """Content chunks of a stream: one more than the gaps between them."""
    return 0 if answered.first_chunk is None else 1 + (sum(answered.pace.counts) if answered.pace is not None else 0)


def _limit(attempts: tuple[Attempt, ...]) -> str | None:
    """The limit that said 429 last."""
    return next((attempt.limit for attempt in reversed(attempts) if attempt.limit), None)


def _last(attempts: tuple[Attempt, ...]) -> float | None:
    return attempts[-1].retry_after if attempts else None


_REQUEST_ID = {"anthropic": Attr.ANTHROPIC_REQUEST_ID}
"""Under which name a provider's own traces have its request id; where nobody has said, under ours."""


def _inference_attributes(record: Record) -> Attributes:
    answered = record.answered
    usage = answered.usage or Usage()
    reason = answered.finish_reason or (None if record.outcome is Outcome.OK else "error")
    cost = record.cost
    return {
        Attr.REQUEST_MODEL: record.model if record.wanted_model else None,
        Attr.FALLBACK_FROM: record.wanted_model,
        Attr.CACHE: record.cache,
        Attr.CERTAINTY: cost.certainty.value if cost is not None else None,
        Attr.COST: cost.total / 1e9 if cost is not None and cost.certainty is not Certainty.UNPRICED else None,
        Attr.OUTCOME: record.outcome.value,
        Attr.RESPONSE_ID: answered.response_id,
        Attr.RESPONSE_MODEL: answered.model,
        Attr.FINISH_REASONS: [reason] if reason else None,
        Attr.TIME_TO_FIRST_CHUNK: answered.first_chunk,
        _REQUEST_ID.get(record.provider or "", Attr.UPSTREAM_REQUEST_ID): answered.upstream_request_id,
        Attr.LIMIT: _limit(record.attempts),
        Attr.INPUT_TOKENS: usage.input_tokens,
        Attr.OUTPUT_TOKENS: usage.output_tokens,
        Attr.CACHE_READ_TOKENS: usage.cache_read_tokens,
        Attr.CACHE_WRITE_TOKENS: usage.cache_write_tokens,
        Attr.REASONING_TOKENS: usage.reasoning_tokens,
    }


def _exemplar(record: Record) -> Exemplar:
    """The ids that lead from a sample to its trace: only for a trace that is kept."""
    return {"trace_id": record.trace.trace_id, "span_id": record.trace.span_id} if record.trace.kept else None


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
