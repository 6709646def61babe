"""Which traces are kept: the head decides and its flag goes upstream, the end may only upgrade."""

from __future__ import annotations

import time

import httpx

from tests.support.otlp import OtlpSink
from tests.support.processes import Gateway, pair

MESSAGE = {"model": "claude-opus-5-5", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
VERSION = {"anthropic-version": "2023-06-01"}
NOTHING_AT_THE_HEAD = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}


def _ask(gateway: Gateway, **headers: str) -> httpx.Response:
    return httpx.post(gateway.url + "/v1/messages", json=MESSAGE, headers=VERSION | headers, timeout=20)


def _exemplars(gateway: Gateway) -> str:
    text = gateway.metrics("application/openmetrics-text")
    return "\n".join(line for line in text.splitlines() if " # {" in line)


def test_an_unsampled_trace_that_ends_well_leaves_no_span_and_no_exemplar_and_tells_the_provider_so() -> None:
    with (
        OtlpSink() as sink,
        pair("--record-headers", OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, **NOTHING_AT_THE_HEAD) as (
            gateway,
            simulator,
        ),
    ):
        assert _ask(gateway).status_code == 200
        gateway.wait_requests(1)
        sent = {name.lower(): value for name, value in simulator.get("/_simulator/requests")[-1]["headers"]}
        assert int(sent["traceparent"][-2:], 16) & 1 == 0
        assert _exemplars(gateway) == ""
        assert gateway.stop() == 0
    assert sink.spans == []


def test_an_unsampled_trace_that_ends_in_an_error_is_kept_whole_with_its_exemplars() -> None:
    with OtlpSink() as sink, pair(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, **NOTHING_AT_THE_HEAD) as (gateway, _):
        answer = _ask(gateway, **{"x-simulator-scenario": "fault=overloaded"})
        assert answer.status_code == 529
        trace_id = answer.headers["x-trace-id"]
        assert {span.name for span in sink.trace(trace_id, 3)} == {"POST /v1/messages", "chat claude-opus-5-5", "POST"}
        assert trace_id in _exemplars(gateway)


def test_the_callers_flag_wins_over_the_ratio_in_both_directions() -> None:
    with OtlpSink() as sink, pair(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, **NOTHING_AT_THE_HEAD) as (gateway, _):
        taken, left = "1" * 32, "2" * 32
        assert _ask(gateway, traceparent=f"00-{left}-{'a' * 16}-00").status_code == 200
        assert _ask(gateway, traceparent=f"00-{taken}-{'a' * 16}-01").status_code == 200
        assert len(sink.trace(taken, 3)) == 3
        assert not [span for span in sink.spans if span.trace_id == left]


def test_above_the_rate_cap_only_as_many_traces_are_taken_as_it_allows() -> None:
    with (
        OtlpSink() as sink,
        pair(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, CLAUDE_PROXY_TRACES_PER_SECOND="1") as (
            gateway,
            _,
        ),
    ):
        began = time.monotonic()
        with gateway.client() as client:
            for _i in range(20):
                assert client.post("/v1/messages", json=MESSAGE, headers=VERSION).status_code == 200
        seconds = time.monotonic() - began
        lines = gateway.wait_requests(20)
        assert gateway.stop() == 0
        traces = {span.trace_id for span in sink.spans}
        assert 1 <= len(traces) <= 2 + seconds
        assert traces < {line["trace_id"] for line in lines}


def test_a_full_span_queue_drops_whole_traces_counts_them_and_writes_no_exemplar_for_them() -> None:
    with OtlpSink() as sink:
        sink.status = 503
        options = {"OTEL_BSP_MAX_QUEUE_SIZE": "128", "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        with pair(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, **options) as (gateway, _):
            with gateway.client() as client:
                for _i in range(80):
                    assert client.post("/v1/messages", json=MESSAGE, headers=VERSION).status_code == 200
            gateway.wait_requests(80)
            lost = gateway.sample("claude_proxy_telemetry_dropped_total", signal="spans", reason="queue_full")
            assert lost > 0
            assert lost % 3 == 0
            last = gateway.requests()[-1]["trace_id"]
            assert last not in _exemplars(gateway)


def test_switched_off_there_are_no_spans_but_metrics_and_lines_as_ever() -> None:
    with (
        OtlpSink() as sink,
        pair(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, OTEL_TRACES_SAMPLER="always_off") as (
            gateway,
            _,
        ),
    ):
        assert _ask(gateway, **{"x-simulator-scenario": "fault=overloaded"}).status_code == 529
        (line,) = gateway.wait_requests(1)
        assert line["outcome"] == "upstream_overloaded"
        assert gateway.stop() == 0
    assert sink.spans == []
