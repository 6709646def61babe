"""An exchange and its calls: closed exactly once, whatever happens, with the time where it belongs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from observability.catalog import Outcome
from service.account.books import Books
from service.account.call import Call
from service.account.closing import Closing
from service.account.exchange import Exchange
from service.account.prices import Prices
from service.lifetime import Lifetime
from service.record import Answered, Attempt, Kind, Usage
from tests.support.inside import Told, telemetry


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def _exchange(told: Told) -> Iterator[tuple[Exchange, Clock]]:
    clock = Clock()
    tracer = told.telemetry.tracing.provider.get_tracer("test")
    with tracer.start_as_current_span("POST /v1/messages", kind=trace.SpanKind.SERVER):
        yield (
            Exchange(Closing(told.telemetry, Books(Prices())), told.telemetry.tracing, Lifetime(clock), "/v1/messages"),
            clock,
        )


def _in_flight(told: Told) -> str:
    return next(x for x in told.samples() if x.startswith("claude_proxy_in_flight_requests")).rpartition(" ")[2]


def test_an_exchange_ends_once_and_later_endings_change_nothing() -> None:
    with telemetry() as told:
        with _exchange(told) as (exchange, _):
            assert _in_flight(told) == "1.0"
            call = exchange.open_call("anthropic", "chat", "claude-opus-5-5", streaming=False)
            exchange.begin_call(call)
            exchange.end_call(call, Outcome.CUT_OFF, "cut_off")
            exchange.end_call(call, Outcome.OK, None)
            exchange.end(Outcome.INTERNAL_ERROR, "internal_error")
        assert _in_flight(told) == "0.0"
        (line,) = told.lines()
    assert (line["outcome"], line["error_type"]) == ("cut_off", "cut_off")


def test_overhead_is_what_neither_the_provider_nor_the_client_took() -> None:
    with telemetry() as told:
        with _exchange(told) as (exchange, clock):
            clock.now += 0.125
            call = exchange.open_call("anthropic", "chat", "claude-opus-5-5", streaming=True)
            exchange.begin_call(call)
            with exchange.lifetime.upstream.waiting():
                clock.now += 2.0
            with exchange.lifetime.client.waiting():
                clock.now += 1.0
            call.stop_clock()
            clock.now += 0.25
            exchange.end_call(call, Outcome.OK, None)
        (line,) = told.lines()
    figures = ("total_s", "call_s", "upstream_s", "client_wait_s", "overhead_s")
    assert [line[name] for name in figures] == [3.375, 3.0, 2.0, 1.0, 0.375]


def test_a_fan_out_is_one_record_of_its_own_and_one_per_call() -> None:
    with telemetry() as told:
        with _exchange(told) as (exchange, clock):
            exchange.kind, exchange.model = Kind.FAN_OUT, "claude-opus-5-5"
            calls = [exchange.open_call("anthropic", "chat", "claude-opus-5-5", streaming=False) for _ in range(3)]
            for call in calls:
                exchange.begin_call(call)
            for number, call in enumerate(calls):
                clock.now += 1.0
                call.attempts.append(Attempt("ok", 200))
                call.answered = lambda number=number: Answered(usage=Usage(output_tokens=number))  # type: ignore[misc]
                exchange.end_call(call, Outcome.OK, None)
            assert not exchange.ended
            exchange.end(Outcome.OK)
        spans = [s for s in told.spans.values() if s.name.startswith("chat")]
        assert spans
        *of_calls, whole = told.lines()
    assert [(line["event"], line["call_s"], line["output_tokens"]) for line in of_calls] == [
        ("call", 1.0, 0),
        ("call", 2.0, 1),
        ("call", 3.0, 2),
    ]
    assert (whole["event"], whole["attempts"], whole["total_s"]) == ("request", 0, 3.0)
    assert "output_tokens" not in whole
    assert {line["request_id"] for line in of_calls} == {whole["request_id"]}
    assert len({line["span_id"] for line in (*of_calls, whole)}) == 4
    assert len({line["trace_id"] for line in (*of_calls, whole)}) == 1


def test_an_answer_that_cannot_be_told_leaves_the_rest_of_the_record() -> None:
    def broken() -> Answered:
        raise ZeroDivisionError

    with telemetry() as told:
        with _exchange(told) as (exchange, _):
            call = exchange.open_call("anthropic", "chat", "claude-opus-5-5", streaming=False)
            exchange.begin_call(call)
            call.attempts.append(Attempt("ok", 200))
            call.answered = broken
            exchange.end_call(call, Outcome.OK, None)
        assert _in_flight(told) == "0.0"
        assert len(told.spans) == 2
        failed, line = told.lines()
    assert failed["message"] == "closing failed"
    assert (line["outcome"], line["cost_certainty"]) == ("ok", "unpriced")


def test_what_is_no_inference_has_no_span_and_no_tokens() -> None:
    with telemetry() as told:
        with _exchange(told) as (exchange, _):
            call = exchange.open_call("anthropic", None, None, streaming=False)
            exchange.begin_call(call)
            assert call.span is None
            exchange.end_call(call, Outcome.OK, None)
        assert list(told.spans) == ["POST /v1/messages"]
        assert not [line for line in told.samples() if line.startswith("gen_ai_")]


def test_the_calls_span_is_a_child_of_the_requests_with_the_request_in_its_attributes() -> None:
    with telemetry() as told:
        with _exchange(told) as (exchange, _):
            call = exchange.open_call(
                "anthropic", "chat", "claude-opus-5-5", streaming=True, attributes={"gen_ai.request.max_tokens": None}
            )
            exchange.begin_call(call)
            call.first_chunk_event()
            exchange.end_call(call, Outcome.OK, None)
            assert exchange.trace_id == trace.format_trace_id(exchange.server.get_span_context().trace_id)
        chat, server = told.spans["chat claude-opus-5-5"], told.spans["POST /v1/messages"]
    assert chat.parent is not None
    assert server.context is not None
    assert chat.parent.span_id == server.context.span_id
    assert dict(chat.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-opus-5-5",
        "gen_ai.request.stream": True,
        "claude_proxy.outcome": "ok",
        "claude_proxy.cost_certainty": "exact",
        "claude_proxy.cost_usd": 0.0,
    }
    assert [event.name for event in chat.events] == ["first_chunk"]


def test_request_ids_are_ours_and_never_the_same() -> None:
    with telemetry() as told, _exchange(told) as (one, _), _exchange(told) as (two, _):
        assert one.request_id.startswith("cp_")
        assert len(one.request_id) == len("cp_") + 24
        assert one.request_id != two.request_id
        one.end(Outcome.OK)
        two.end(Outcome.OK)


def test_a_failure_in_settling_or_pricing_raises_into_no_request_and_the_record_is_closed_all_the_same() -> None:
    def breaks(_call: Call) -> None:
        raise RuntimeError("a bug of ours")

    with telemetry() as told:
        with _exchange(told) as (exchange, _):
            call = exchange.open_call("anthropic", "chat", "claude-opus-5-5", streaming=False)
            exchange.begin_call(call)
            settled: list[Call] = []
            call.on_end += [breaks, settled.append]
            exchange.end_call(call, Outcome.OK, None)
        events = [line["event"] for line in told.lines()]
    assert (settled, events) == ([call], ["log", "request"])


def test_a_request_that_ends_without_its_call_settles_what_was_taken_for_it() -> None:
    with telemetry() as told, _exchange(told) as (exchange, _):
        call = exchange.open_call("anthropic", "chat", "claude-opus-5-5", streaming=False)
        settled: list[Call] = []
        call.on_end.append(settled.append)
        exchange.end(Outcome.INTERNAL_ERROR, "internal_error")
        assert (settled, exchange.ended, call.ended) == ([call], True, True)
