"""The closing act: given one record, exactly these samples, these log fields and these span attributes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from opentelemetry.trace import SpanKind, StatusCode

from observability import catalog
from observability.catalog import Attr, Fault, Outcome
from service.account.books import Books
from service.account.closing import Closing
from service.account.prices import Prices
from service.record import Answered, Attempt, Kind, Record, Timings, Trace, Usage
from tests.support.inside import Told, telemetry

MODEL = "claude-opus-5-5"
IDS = Trace("0" * 31 + "1", "0" * 15 + "2", kept=True)
RECORD = Record(
    kind=Kind.REQUEST,
    request_id="cp_1",
    route="/v1/messages",
    outcome=Outcome.OK,
    timings=Timings(total=2.0, call=1.5, upstream=1.25, client_wait=0.5, waited=1.75),
    trace=IDS,
    provider="anthropic",
    operation="chat",
    model=MODEL,
    streaming=True,
    status=200,
    attempts=(Attempt("ok", 200),),
    answered=Answered(
        streamed=True,
        response_id="msg_1",
        model=MODEL,
        finish_reason="end_turn",
        usage=Usage(40, 7, 5, 10, 3),
        upstream_request_id="req_1",
        first_chunk=0.75,
    ),
    client="alice",
)


def _close(told: Told, record: Record) -> None:
    closing, tracing = Closing(told.telemetry, Books(Prices())), told.telemetry.tracing
    if record.kind is not Kind.CALL:
        closing.began(record.route)
    server = tracing.provider.get_tracer("test").start_span("server", kind=SpanKind.SERVER)
    chat = tracing.start_inference("chat", record.model or "", {}) if record.operation else None
    closing.close(record, None if record.kind is Kind.CALL else server, chat)
    server.end()


WHO = f'gen_ai_provider_name="anthropic",gen_ai_request_model="{MODEL}"'
CALL = f'gen_ai_operation_name="chat",{WHO}'


def test_a_good_stream_is_exactly_these_samples() -> None:
    with telemetry() as told:
        _close(told, RECORD)
        assert told.samples() == sorted(
            [
                f'claude_proxy_requests_total{{{WHO},http_route="/v1/messages",outcome="ok"}} 1.0',
                'claude_proxy_request_duration_seconds_count{http_route="/v1/messages",outcome="ok",streaming="true"} 1.0',
                'claude_proxy_request_duration_seconds_sum{http_route="/v1/messages",outcome="ok",streaming="true"} 2.0',
                'claude_proxy_client_requests_total{client="alice"} 1.0',
                'claude_proxy_in_flight_requests{http_route="/v1/messages"} 0.0',
                'claude_proxy_overhead_seconds_count{http_route="/v1/messages",streaming="true"} 1.0',
                'claude_proxy_overhead_seconds_sum{http_route="/v1/messages",streaming="true"} 0.25',
                f'claude_proxy_upstream_attempts_total{{{WHO},reason="ok",status="200"}} 1.0',
                f'claude_proxy_stream_outcomes_total{{{WHO},outcome="completed"}} 1.0',
                f'gen_ai_client_inference_duration_seconds_count{{error_type="",{CALL}}} 1.0',
                f'gen_ai_client_inference_duration_seconds_sum{{error_type="",{CALL}}} 1.5',
                f"gen_ai_client_inference_time_to_first_chunk_seconds_count{{{CALL}}} 1.0",
                f"gen_ai_client_inference_time_to_first_chunk_seconds_sum{{{CALL}}} 0.75",
                f"gen_ai_client_inference_usage_input_tokens_total{{{CALL}}} 40.0",
                f"gen_ai_client_inference_usage_output_tokens_total{{{CALL}}} 7.0",
                f"gen_ai_client_inference_usage_cache_read_input_tokens_total{{{CALL}}} 5.0",
                f"gen_ai_client_inference_usage_cache_write_input_tokens_total{{{CALL}}} 10.0",
                f"gen_ai_client_inference_usage_reasoning_output_tokens_total{{{CALL}}} 3.0",
            ]
        )


def test_a_good_stream_is_exactly_this_log_line() -> None:
    with telemetry() as told:
        _close(told, RECORD)
        assert told.lines() == [
            {
                "event": "request",
                "level": "info",
                "trace_id": IDS.trace_id,
                "span_id": IDS.span_id,
                "request_id": "cp_1",
                "upstream_request_id": "req_1",
                "route": "/v1/messages",
                "provider": "anthropic",
                "model": MODEL,
                "stream": True,
                "status": 200,
                "outcome": "ok",
                "attempts": 1,
                "total_s": 2.0,
                "call_s": 1.5,
                "ttft_s": 0.75,
                "chunks": 1,
                "upstream_s": 1.25,
                "client_wait_s": 0.5,
                "overhead_s": 0.25,
                "stop_reason": "end_turn",
                "client": "alice",
                "input_tokens": 40,
                "output_tokens": 7,
                "cache_read_tokens": 5,
                "cache_write_tokens": 10,
                "reasoning_tokens": 3,
            }
        ]


def test_a_good_stream_is_exactly_these_span_attributes() -> None:
    with telemetry() as told:
        _close(told, RECORD)
        chat, server = told.spans[f"chat {MODEL}"], told.spans["server"]
    assert dict(chat.attributes or {}) == {
        Attr.OUTCOME: "ok",
        Attr.RESPONSE_ID: "msg_1",
        Attr.RESPONSE_MODEL: MODEL,
        Attr.FINISH_REASONS: ("end_turn",),
        Attr.TIME_TO_FIRST_CHUNK: 0.75,
        Attr.ANTHROPIC_REQUEST_ID: "req_1",
        Attr.INPUT_TOKENS: 40,
        Attr.OUTPUT_TOKENS: 7,
        Attr.CACHE_READ_TOKENS: 5,
        Attr.CACHE_WRITE_TOKENS: 10,
        Attr.REASONING_TOKENS: 3,
    }
    assert dict(server.attributes or {}) == {Attr.OUTCOME: "ok", Attr.REQUEST_ID: "cp_1", Attr.CLIENT: "alice"}
    assert (chat.status.status_code, server.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)


REFUSED = Record(
    kind=Kind.REQUEST,
    request_id="cp_2",
    route="/v1/messages",
    outcome=Outcome.CLIENT_AUTH,
    timings=Timings(total=0.25),
    trace=replace(IDS, kept=False),
    status=401,
    error_type="client_auth",
    rejected="authentication_error",
)


def test_what_is_not_known_is_absent_and_not_zero() -> None:
    with telemetry() as told:
        _close(told, REFUSED)
        assert told.samples() == sorted(
            [
                'claude_proxy_in_flight_requests{http_route="/v1/messages"} 0.0',
                'claude_proxy_overhead_seconds_count{http_route="/v1/messages",streaming="false"} 1.0',
                'claude_proxy_overhead_seconds_sum{http_route="/v1/messages",streaming="false"} 0.25',
                'claude_proxy_rejected_total{http_route="/v1/messages",reason="authentication_error"} 1.0',
                'claude_proxy_request_duration_seconds_count{http_route="/v1/messages",outcome="client_auth",streaming="false"} 1.0',
                'claude_proxy_request_duration_seconds_sum{http_route="/v1/messages",outcome="client_auth",streaming="false"} 0.25',
                'claude_proxy_requests_total{gen_ai_provider_name="",gen_ai_request_model="",http_route="/v1/messages",outcome="client_auth"} 1.0',
            ]
        )
        assert told.lines() == [
            {
                "event": "request",
                "level": "info",
                "trace_id": IDS.trace_id,
                "span_id": IDS.span_id,
                "request_id": "cp_2",
                "route": "/v1/messages",
                "stream": False,
                "status": 401,
                "outcome": "client_auth",
                "error_type": "client_auth",
                "attempts": 0,
                "total_s": 0.25,
                "upstream_s": 0.0,
                "client_wait_s": 0.0,
                "overhead_s": 0.25,
            }
        ]


def test_a_429_names_its_limit_and_how_long_to_wait() -> None:
    limited = replace(
        RECORD,
        outcome=Outcome.UPSTREAM_429,
        error_type="rate_limit_error",
        streaming=False,
        status=429,
        attempts=(Attempt("http_error", 429, "input_tokens", 12.5),),
        answered=Answered(),
    )
    with telemetry() as told:
        _close(told, limited)
        assert told.sample("claude_proxy_upstream_429_total")[0].startswith(
            f'claude_proxy_upstream_429_total{{{WHO},limit="input_tokens"}} 1.0'
        )
        server, chat = told.spans["server"], told.spans[f"chat {MODEL}"]
        (line,) = told.lines()
    assert (line["limit"], line["retry_after_s"], line["level"]) == ("input_tokens", 12.5, "warning")
    assert (server.status.status_code, chat.status.status_code) == (StatusCode.ERROR, StatusCode.ERROR)
    assert (server.attributes or {})[Attr.ERROR_TYPE] == (chat.attributes or {})[Attr.ERROR_TYPE] == "rate_limit_error"


def test_every_attempt_counts_with_its_status_and_reason() -> None:
    tries = (Attempt("not_sent"), Attempt("http_error", 529), Attempt("http_error", 418), Attempt("ok", 200))
    with telemetry() as told:
        _close(told, replace(RECORD, attempts=tries))
        assert [line for line in told.samples() if line.startswith("claude_proxy_upstream_attempts")] == sorted(
            f'claude_proxy_upstream_attempts_total{{{WHO},reason="{reason}",status="{status}"}} 1.0'
            for reason, status in (("not_sent", ""), ("http_error", "529"), ("http_error", "other"), ("ok", "200"))
        )


@pytest.mark.parametrize("outcome", Outcome)
def test_the_level_and_the_server_spans_status_follow_whose_fault_it_is(outcome: Outcome) -> None:
    fault = catalog.OUTCOMES[outcome][0]
    with telemetry() as told:
        _close(told, replace(RECORD, outcome=outcome))
        failed = told.spans["server"].status.status_code is StatusCode.ERROR
        (line,) = told.lines()
    level = {Fault.NOBODY: "info", Fault.CLIENT: "info", Fault.PROVIDER: "warning", Fault.US: "error"}[fault]
    assert (line["level"], line["outcome"], failed) == (level, outcome.value, fault in (Fault.US, Fault.PROVIDER))


def test_a_call_of_a_fan_out_counts_tokens_but_no_request() -> None:
    call = replace(RECORD, kind=Kind.CALL, status=None, timings=Timings(total=1.5, call=1.5))
    with telemetry() as told:
        _close(told, call)
        names = {line.partition("{")[0] for line in told.samples()}
        (line,) = told.lines()
    assert "claude_proxy_requests_total" not in names
    assert "claude_proxy_in_flight_requests" not in names
    assert {"gen_ai_client_inference_duration_seconds_count", "claude_proxy_upstream_attempts_total"} <= names
    assert (line["event"], line["request_id"]) == ("call", "cp_1")
    assert not {"overhead_s", "status"} & line.keys()


@pytest.mark.parametrize("kept", [True, False])
def test_an_exemplar_is_written_only_when_its_trace_is_kept(kept: bool) -> None:
    with telemetry() as told:
        _close(told, replace(RECORD, trace=replace(IDS, kept=kept)))
        for name in ("claude_proxy_requests_total", "claude_proxy_request_duration_seconds_bucket"):
            marked = [line for line in told.sample(name) if " # {" in line]
            assert len(marked) == int(kept), name
            if kept:
                assert f'trace_id="{IDS.trace_id}"' in marked[0]
                assert f'span_id="{IDS.span_id}"' in marked[0]


def test_an_unknown_route_and_model_are_other_in_metrics_and_as_they_are_in_the_log() -> None:
    with telemetry() as told:
        _close(told, replace(RECORD, route="/nowhere", model="gpt-99", error_type="brand_new"))
        (request,) = [x for x in told.samples() if x.startswith("claude_proxy_requests_total")]
        (duration,) = told.sample("gen_ai_client_inference_duration_seconds_count")
        (line,) = told.lines()
    assert 'gen_ai_request_model="other"' in request
    assert 'http_route="other"' in request
    assert 'error_type="_OTHER"' in duration
    assert (line["model"], line["error_type"]) == ("gpt-99", "brand_new")


def test_closing_never_raises_and_says_what_went_wrong() -> None:
    with telemetry() as told:
        broken = replace(RECORD, outcome="no outcome")
        Closing(told.telemetry, Books(Prices())).close(broken, None, None)
        (line,) = told.lines()
    assert (line["event"], line["level"], line["message"]) == ("log", "error", "closing failed")
    assert "Traceback" in line["exception"]
