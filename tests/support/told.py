"""What telemetry tells of one request, and whether its three signals tell the same.

A `Watch` is made before a request to an otherwise idle gateway; `told` waits for its log line and spans, works out from
the line what every counter must have become, and compares: metrics exactly, spans attribute by attribute.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from observability.catalog import OUTCOMES, STREAM_ENDS, Fault, Outcome
from service.upstream.anthropic import MODELS
from tests.support.otlp import OtlpSink, SpanSeen
from tests.support.poll import poll
from tests.support.processes import Gateway

Series = tuple[str, frozenset[tuple[str, str]]]
SLACK = 0.25
"""Seconds by which two views of one duration may differ: a busy machine may stop us between two readings of the clock."""

_TOKENS = {
    "input_tokens": ("gen_ai_client_inference_usage_input_tokens_total", "gen_ai.usage.input_tokens"),
    "output_tokens": ("gen_ai_client_inference_usage_output_tokens_total", "gen_ai.usage.output_tokens"),
    "cache_read_tokens": (
        "gen_ai_client_inference_usage_cache_read_input_tokens_total",
        "gen_ai.usage.cache_read.input_tokens",
    ),
    "cache_write_tokens": (
        "gen_ai_client_inference_usage_cache_write_input_tokens_total",
        "gen_ai.usage.cache_write.input_tokens",
    ),
    "reasoning_tokens": (
        "gen_ai_client_inference_usage_reasoning_output_tokens_total",
        "gen_ai.usage.reasoning.output_tokens",
    ),
}

_OF_THE_PROCESS = ("telemetry", "event_loop_lag", "_series", "label_overflow", "worker_up")
"""Families that count something else than requests."""


@dataclass(frozen=True)
class Told:
    """The log line and the spans of one request."""

    line: dict[str, Any]
    server: SpanSeen
    chat: SpanSeen | None
    attempts: list[SpanSeen]


class Watch:
    """Remembers a gateway's figures before one request."""

    def __init__(self, gateway: Gateway, sink: OtlpSink) -> None:
        self._gateway, self._sink = gateway, sink
        self._lines = gateway.settled()
        self._before = gateway.samples()

    def told(
        self,
        outcome: str,
        *,
        error_type: str | None = None,
        status: int | None = 200,
        attempt: tuple[str, str] | None = ("200", "ok"),
        rejected: str | None = None,
        chat: bool = True,
    ) -> Told:
        """The one request since then ended like this, and log line, metrics and spans say so.

        `attempt`: status and reason of the one try upstream, None when there was none; `rejected`: the wire type of an
        answer of our own; `chat`: it was an inference that got as far as a provider call.
        """
        (line,) = poll(lambda: self._gateway.requests()[self._lines :], what="the request's log line")
        got = (line["outcome"], line.get("error_type"), line.get("status"), line["attempts"])
        assert got == (outcome, error_type, status, 1 if attempt else 0), line
        fault = OUTCOMES[Outcome(outcome)][0]
        assert line["level"] == {Fault.US: "error", Fault.PROVIDER: "warning"}.get(fault, "info")
        self._metrics_agree(line, attempt, rejected, chat)
        told = self._spans(line, attempt, chat)
        _spans_agree(told, failed=fault in (Fault.US, Fault.PROVIDER))
        return told

    def _metrics_agree(
        self, line: dict[str, Any], attempt: tuple[str, str] | None, rejected: str | None, chat: bool
    ) -> None:
        expected, sums = _expected(line, attempt, rejected, chat)
        after = self._gateway.samples()
        changes = {series: value - self._before.get(series, 0.0) for series, value in after.items()}
        ours = {s: v for s, v in changes.items() if v and s[0].startswith(("claude_proxy_", "gen_ai_"))}
        counts = {
            (name, labels): value
            for (name, labels), value in ours.items()
            if name.endswith(("_total", "_count", "_in_flight_requests"))
            and not any(n in name for n in _OF_THE_PROCESS)
        }
        paid = sum(counts.pop(series) for series in list(counts) if series[0] == "claude_proxy_cost_usd_total")
        assert paid == pytest.approx(line.get("cost_usd", 0.0), abs=1e-12)
        counts = {series: n for series, n in counts.items() if series[0] != "claude_proxy_batch_forgone_usd_total"}
        wrong = {s: (counts.get(s), expected.get(s)) for s in counts | expected if counts.get(s) != expected.get(s)}
        assert not wrong, f"series: (is, should be) {wrong}"
        for series, value in sums.items():
            assert changes[series] == pytest.approx(value, abs=2e-6), series

    def _spans(self, line: dict[str, Any], attempt: tuple[str, str] | None, chat: bool) -> Told:
        count = 1 + bool(attempt) + chat
        spans = self._sink.trace(line["trace_id"], count)
        assert len(spans) == count, [s.name for s in spans]
        (server,) = [s for s in spans if s.kind == "SERVER"]
        chats = [s for s in spans if s.kind == "CLIENT" and s.name.startswith("chat")]
        rest = [s for s in spans if s is not server and s not in chats]
        return Told(line, server, chats[0] if chats else None, rest)


def _expected(
    line: dict[str, Any], attempt: tuple[str, str] | None, rejected: str | None, chat: bool
) -> tuple[dict[Series, float], dict[Series, float]]:
    """What the counters, and the sums of seconds, must have grown by."""
    model = line.get("model", "")
    model = model if not model or model in MODELS else "other"
    route, outcome, streaming = line["route"], line["outcome"], "true" if line["stream"] else "false"
    who = {"gen_ai_provider_name": line.get("provider", ""), "gen_ai_request_model": model}
    call = who | {"gen_ai_operation_name": "chat"}
    counts: Counter[Series] = Counter()
    sums: dict[Series, float] = {}

    def count(name: str, amount: float, **labels: str) -> None:
        counts[name, _labels(labels)] += amount  # type: ignore[assignment]

    def observe(name: str, seconds: float, **labels: str) -> None:
        count(f"{name}_count", 1, **labels)
        sums[f"{name}_sum", _labels(labels)] = seconds

    count("claude_proxy_requests_total", 1, http_route=route, outcome=outcome, **who)
    waited, own = "claude_proxy_request_duration_seconds", "claude_proxy_overhead_seconds"
    observe(waited, line["total_s"], http_route=route, streaming=streaming, outcome=outcome)
    observe(own, line["overhead_s"], http_route=route, streaming=streaming)
    if attempt is not None:
        count("claude_proxy_upstream_attempts_total", 1, status=attempt[0], reason=attempt[1], **who)
    if "limit" in line:
        count("claude_proxy_upstream_429_total", 1, limit=line["limit"], **who)
    if rejected is not None:
        count("claude_proxy_rejected_total", 1, http_route=route, reason=rejected)
    if line.get("client"):
        count("claude_proxy_client_requests_total", 1, client=line["client"])
        if line.get("cost_usd"):
            count("claude_proxy_client_cost_usd_total", line["cost_usd"], client=line["client"])
    if line.get("cost_certainty") == "unpriced":
        count("claude_proxy_unpriced_requests_total", 1, gen_ai_provider_name=who["gen_ai_provider_name"])
    if chat:
        observe(
            "gen_ai_client_inference_duration_seconds", line["call_s"], error_type=line.get("error_type", ""), **call
        )
        if line["stream"] and "ttft_s" in line:
            observe("gen_ai_client_inference_time_to_first_chunk_seconds", line["ttft_s"], **call)
        if "chunks" in line:
            count("claude_proxy_stream_outcomes_total", 1, outcome=STREAM_ENDS.get(outcome, "upstream_error"), **who)
        if line.get("chunks", 0) > 1:
            count("gen_ai_client_inference_time_per_output_chunk_seconds_count", line["chunks"] - 1, **call)
            observe("claude_proxy_stream_longest_gap_seconds", line["longest_gap_s"], **who)
        for field, (name, _) in _TOKENS.items():
            if line.get(field):
                count(name, line[field], **call)
    return dict(counts), sums


def _labels(labels: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((key, value) for key, value in labels.items() if value)


def _spans_agree(told: Told, *, failed: bool) -> None:
    line, server, chat = told.line, told.server, told.chat
    assert (line["trace_id"], line["span_id"]) == (server.trace_id, server.span_id)
    assert server.attributes["claude_proxy.outcome"] == line["outcome"]
    assert server.attributes["claude_proxy.request_id"] == line["request_id"]
    assert server.attributes.get("http.response.status_code") == line.get("status")
    assert server.attributes.get("error.type") == (line.get("error_type", line["outcome"]) if failed else None)
    assert server.status == ("ERROR" if failed else "UNSET")
    assert server.seconds == pytest.approx(line["total_s"], abs=SLACK)
    above = server
    if chat is not None:
        above = chat
        assert chat.parent_id == server.span_id
        assert chat.attributes["claude_proxy.outcome"] == line["outcome"]
        assert chat.attributes.get("error.type") == line.get("error_type")
        assert chat.status == ("ERROR" if "error_type" in line else "UNSET")
        assert chat.seconds == pytest.approx(line["call_s"], abs=SLACK)
        assert chat.attributes.get("gen_ai.response.time_to_first_chunk", 0) == pytest.approx(
            line.get("ttft_s", 0), abs=2e-6
        )
        for field, (_, attribute) in _TOKENS.items():
            assert chat.attributes.get(attribute) == line.get(field), field
        assert chat.attributes.get("anthropic.request.id") == line.get("upstream_request_id")
        assert chat.attributes.get("claude_proxy.cost_usd") == line.get("cost_usd")
        assert chat.attributes.get("claude_proxy.cost_certainty") == line.get("cost_certainty")
    for attempt in told.attempts:
        assert (attempt.kind, attempt.name, attempt.parent_id) == ("CLIENT", told.attempts[0].name, above.span_id)
        assert attempt.attributes["claude_proxy.span_ends_at"] == "headers"
