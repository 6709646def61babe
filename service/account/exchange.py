"""One request while it runs: opens and begins its provider calls, and closes its record exactly once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from functools import partial

from opentelemetry import trace
from opentelemetry.trace import Span

from observability import catalog
from observability.catalog import Attr, Fault, Outcome
from observability.tracing import Attributes, Tracing
from service.account.call import Call
from service.account.closing import Closing
from service.account.rows import Started, new_call_id
from service.lifetime import Lifetime
from service.record import Answered, Cost, Kind, Record, Timings, Trace


class Exchange:
    """One HTTP request from first byte in to last byte out. Make it where the SERVER span is current."""

    def __init__(self, closing: Closing, tracing: Tracing, lifetime: Lifetime, route: str) -> None:
        self._closing, self._tracing = closing, tracing
        self.lifetime = lifetime
        self.route = route
        self.request_id = f"cp_{random.getrandbits(96):024x}"
        self.kind = Kind.REQUEST
        self.provider: str | None = None
        self.model: str | None = None
        self.streaming = False
        self.client: str | None = None
        self.status: int | None = None
        self.rejected: str | None = None
        self.call: Call | None = None
        self.ended = False
        self.outcomes: Counter[Outcome] = Counter()
        """Of a fan-out's calls."""
        self.error_type: str | None = None
        """Of the record, once that is closed."""
        self.left: Mapping[str, tuple[float, float, float]] = {}
        """What is left of the client's own limits: limit, remaining, seconds until it is all there again."""
        self.server = trace.get_current_span()
        self.trace_id = trace.format_trace_id(self.server.get_span_context().trace_id)
        """32 hex digits."""
        closing.began(route)

    def open_call(
        self,
        provider: str,
        operation: str | None,
        model: str | None,
        *,
        streaming: bool,
        attributes: Attributes | None = None,
    ) -> Call:
        """Say what is wanted of a provider. `begin_call` follows when it may be sent."""
        call = Call(self.lifetime.clock, provider, operation, model, streaming, attributes or {})
        self.provider = provider
        if self.kind is Kind.REQUEST:
            self.call, self.model, self.streaming = call, model, streaming
        return call

    def begin_call(self, call: Call) -> None:
        """The call is about to be sent: its clock starts, and an inference gets its span, a child of the request's."""
        if call.began is not None:
            return
        call.began, call.client_before = self.lifetime.clock(), self.lifetime.client.seconds
        self._closing.books.began(self._started(call))
        if call.operation is not None:
            call.span = self._tracing.start_inference(
                call.operation,
                call.model or "",
                {
                    Attr.OPERATION: call.operation,
                    Attr.PROVIDER: call.provider,
                    Attr.REQUEST_MODEL: call.model,
                    Attr.REQUEST_STREAM: call.streaming or None,
                    **call.attributes,
                },
                # By the request's clock, as its end is told: a machine may stop us between two readings.
                self.lifetime.started_ns + round((call.began - self.lifetime.started) * 1e9),
            )

    def upgrade(self) -> None:
        """The trace is worth keeping whatever the head decided: the attempts that follow carry the flag."""
        self._tracing.keep(self.server, upgrade=True)

    def end_call(self, call: Call, outcome: Outcome, error_type: str | None) -> None:
        """A call has ended: a fan-out's is closed here, a single one together with its request."""
        if call.ended:
            return
        call.ended, call.outcome = True, outcome
        call.stop_clock()
        safely = self._closing.safely
        safely(call.stop_listening)
        call.cost = safely(lambda: self._cost(call, outcome))
        for settle in call.on_end:
            safely(partial(settle, call))
        if self.kind is not Kind.FAN_OUT:
            self.end(outcome, error_type)
            return
        self.outcomes[outcome] += 1
        total = self.lifetime.clock() - call.opened
        timings = Timings(total=total, call=call.lasted, queue=call.queued, backoff=call.paused)
        span = call.span or self.server
        record = safely(lambda: self._record(Kind.CALL, call, outcome, error_type, timings, span))
        if record is not None:
            self._closing.close(record, None, call.span, call.content)

    def end(self, outcome: Outcome, error_type: str | None = None) -> None:
        """The request has ended; only the first call counts."""
        if self.ended:
            return
        life, call = self.lifetime, self.call
        if call is not None and not call.ended:
            self.end_call(call, outcome, error_type)  # settles what was taken for it, and comes back here
            return
        self.ended = True
        timings = Timings(
            total=life.clock() - life.started,
            call=None if call is None else call.lasted,
            upstream=life.upstream.seconds,
            client_wait=life.client.seconds,
            waited=life.waited.seconds,
            queue=life.queue.seconds,
            backoff=life.backoff.seconds,
        )
        record = self._closing.safely(lambda: self._record(self.kind, call, outcome, error_type, timings, self.server))
        if record is not None:
            self._closing.close(record, self.server, call.span if call else None, call.content if call else None)
        self.error_type = error_type

    def _record(
        self, kind: Kind, call: Call | None, outcome: Outcome, error_type: str | None, timings: Timings, span: Span
    ) -> Record:
        return Record(
            kind=kind,
            request_id=self.request_id,
            route=self.route,
            outcome=outcome,
            timings=timings,
            trace=self._trace(span, outcome, call, timings),
            provider=call.provider if call is not None else self.provider,
            operation=None if call is None else call.operation,
            model=call.model if call is not None else self.model,
            streaming=call.streaming if call is not None else self.streaming,
            status=self.status if kind is not Kind.CALL else None,
            error_type=error_type,
            rejected=self.rejected,
            attempts=tuple(call.attempts) if call is not None else (),
            answered=call.says() if call is not None else Answered(),
            quotas=call.quotas if call is not None else (),
            client=self.client,
            call_id=call.id if call is not None else new_call_id(),
            started=self._at(call.opened)
            if kind is Kind.CALL and call is not None
            else self._at(self.lifetime.started),
            cost=None if call is None else call.cost,
            wanted_model=call.wanted if call is not None and call.stand_in else None,
            cache=call.cache if call is not None else None,
            refused_by=call.refused_by if call is not None else None,
        )

    def _at(self, moment: float) -> float:
        """Unix time of a moment by the request's clock."""
        return self.lifetime.started_ns / 1e9 + moment - self.lifetime.started

    def _started(self, call: Call) -> Started:
        return Started(
            call.id,
            self.request_id,
            self.trace_id,
            self._at(call.opened),
            Kind.CALL.value if self.kind is Kind.FAN_OUT else self.kind.value,
            self.route,
            call.provider,
            call.model,
            call.operation,
            self.client,
            call.streaming,
        )

    def _cost(self, call: Call, outcome: Outcome) -> Cost | None:
        return self._closing.books.cost(
            provider=call.provider,
            model=call.model,
            wanted=call.wanted,
            answered=call.answered(),
            outcome=outcome,
            inference=call.operation is not None,
            attempts=call.attempts,
            cached=call.cache == "hit",
            input_estimate=call.input_estimate,
            at=self._at(call.opened),
        )

    def _trace(self, span: Span, outcome: Outcome, call: Call | None, timings: Timings) -> Trace:
        """The ids, and whether the trace is kept: its end may upgrade what the head decided."""
        attempts = call.attempts if call is not None else []
        upgrade = (
            catalog.OUTCOMES[outcome][0] in (Fault.US, Fault.PROVIDER)
            or len(attempts) > 1
            or any(attempt.limit for attempt in attempts)
            or timings.total > self._tracing.slow
        )
        kept = self._tracing.keep(span, upgrade=upgrade)
        return Trace(self.trace_id, trace.format_span_id(span.get_span_context().span_id), kept)
